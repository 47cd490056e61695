"""Encoders of other libraries. ONNX Runtime runs a real model; timm and transformers are stood in for, by modules of
the same interface: their real weights are the user's."""

import dataclasses
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from made_encoders import made_card
from refusals import refused

from tario_jax.he_features.adapters import timm_encoder, transformers_encoder
from tario_jax.he_features.card import EncoderCard
from tario_jax.he_features.catalogue import CARDS
from tario_jax.he_features.encoders import Chosen, load_encoder

PX = 8


def card_file(path: Path, card: EncoderCard) -> Path:
    import json

    path.write_text(json.dumps(card.to_json()))
    return path


@pytest.fixture
def onnx_model(tmp_path) -> tuple[Path, np.ndarray]:
    """A model of one convolution over the whole patch, to seven numbers; and its weights."""
    onnx = pytest.importorskip("onnx", reason="extra [dev] is not installed")
    pytest.importorskip("onnxruntime", reason="extra [encoders-onnx] is not installed")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = np.random.default_rng(0).normal(size=(7, 3, PX, PX)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["pixels", "weight"], ["seen"]), helper.make_node("Flatten", ["seen"], ["said"])]
    graph = helper.make_graph(
        nodes, "made", [helper.make_tensor_value_info("pixels", kind, ["N", 3, PX, PX])],
        [helper.make_tensor_value_info("said", kind, ["N", 7])], [onnx.numpy_helper.from_array(weight, "weight")],
    )  # fmt: skip
    path = tmp_path / "made.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path, weight


def test_an_onnx_model_is_run(onnx_model, tmp_path):
    path, weight = onnx_model
    card = made_card(input_px=PX, features=7, mean=(0.5, 0.4, 0.3), sd=(0.2, 0.3, 0.4), full_scale=1.0)
    encoder = load_encoder("made", Chosen(card=card_file(tmp_path / "card.json", card), weights=path))
    pixels = np.random.default_rng(1).integers(0, 256, (3, PX, PX, 3), np.uint8)
    seen = (pixels / 255 - np.array(card.mean)) / np.array(card.sd)
    expected = np.einsum("nyxi,oiyx->no", seen, weight.astype(float))
    np.testing.assert_allclose(encoder.features(pixels), expected, rtol=1e-4, atol=1e-3)
    other = path.with_name("other.onnx")
    other.write_bytes(path.read_bytes() + b"\0\0")
    assert len(encoder.card.weights_sha256) == 64 and encoder.card.hash != card.hash


def test_weights_beside_an_onnx_model_are_part_of_its_card(onnx_model, tmp_path):
    onnx = pytest.importorskip("onnx")
    path, weight = onnx_model
    named = card_file(tmp_path / "card.json", made_card(input_px=PX, features=7))
    cards = []
    for name, scale in (("one", 1.0), ("two", 2.0), ("again", 1.0)):
        model = onnx.load(path)
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(scale * weight, "weight"))
        (tmp_path / name).mkdir()
        beside = tmp_path / name / "made.onnx"
        onnx.save(model, beside, save_as_external_data=True, location="made.data", size_threshold=0)
        cards.append(load_encoder("made", Chosen(card=named, weights=beside)).card)
    assert (tmp_path / "one/made.onnx").read_bytes() == (tmp_path / "two/made.onnx").read_bytes()
    assert cards[0].hash != cards[1].hash and cards[0].hash == cards[2].hash
    (tmp_path / "one/made.data").unlink()
    lost = Chosen(card=named, weights=tmp_path / "one/made.onnx")
    refused(lambda: load_encoder("made", lost), "made.data", "no such")


def test_faults_of_an_onnx_encoder_are_one_line(onnx_model, tmp_path):
    path, _ = onnx_model
    named = card_file(tmp_path / "card.json", made_card(input_px=PX, features=7))
    refused(lambda: load_encoder("made", Chosen(card=named)), "ONNX", "--weights")
    refused(lambda: load_encoder("made", Chosen(card=named, weights=tmp_path / "none.onnx")), "none.onnx", "no such")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(path.read_bytes()[:50])
    refused(lambda: load_encoder("made", Chosen(card=named, weights=broken)), "broken.onnx", "cannot read it")
    wider = card_file(tmp_path / "wider.json", made_card(input_px=2 * PX, features=7))
    encoder = load_encoder("made", Chosen(card=wider, weights=path))
    refused(lambda: encoder.features(np.zeros((1, 2 * PX, 2 * PX, 3), np.uint8)), "does not take", f"{2 * PX}")
    short = card_file(tmp_path / "short.json", made_card(input_px=PX, features=6))
    encoder = load_encoder("made", Chosen(card=short, weights=path))
    refused(lambda: encoder.features(np.zeros((1, PX, PX, 3), np.uint8)), "length 7", "says 6")


class _Array:
    """As much of a tensor as an adapter asks for."""

    def __init__(self, array: np.ndarray):
        self.array = np.asarray(array)

    def to(self, device: str) -> "_Array":
        return self

    def float(self) -> "_Array":
        return _Array(self.array.astype(np.float32))

    def cpu(self) -> "_Array":
        return self

    def detach(self) -> "_Array":
        return self

    def numpy(self) -> np.ndarray:
        return self.array


class _Network:
    """Gives tokens whose numbers say where they come from: the mean of a channel, the token and the number in it."""

    tokens, length = 7, 3

    def __init__(self, **told):
        self.told, self.evaluated = told, False

    def eval(self):
        self.evaluated = True

    def to(self, device: str):
        return self

    def float(self):
        return self

    def state_dict(self) -> dict[str, _Array]:
        drawn = np.random.default_rng().normal(size=(2, len(self.told.get("lacking", ())))).astype(np.float32)
        pooler = {name: _Array(of) for name, of in zip(self.told.get("lacking", ()), drawn.T, strict=True)}
        return {"weight": _Array(np.arange(4, dtype=np.float32))} | pooler

    def forward_features(self, pixels: _Array) -> _Array:
        assert self.evaluated and pixels.array.dtype == np.float32
        assert pixels.array.shape[1:] == (3, PX, PX)  # channels first
        of_channel = pixels.array.mean((2, 3))
        return _Array(of_channel[:, None, :] + 10 * np.arange(self.tokens)[None, :, None])

    def __call__(self, pixels: _Array | None = None, pixel_values: _Array | None = None):
        tokens = self.forward_features(pixels if pixel_values is None else pixel_values)
        if pixel_values is None:
            return _Array(tokens.array[:, 0])
        return types.SimpleNamespace(last_hidden_state=tokens, pooler_output=_Array(tokens.array[:, 0]))


@pytest.fixture
def made(monkeypatch) -> list[dict]:
    """timm, torch and transformers of the same interface; what models were asked for with."""
    asked: list[dict] = []

    def create(name: str, **told):
        asked.append({"name": name, **told})
        return _Network(**told)

    class Nothing:
        def __enter__(self):
            return self

        def __exit__(self, *told):
            return None

    torch = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(is_available=lambda: False)
    torch.nn = types.SimpleNamespace(SiLU="SiLU")
    torch.from_numpy, torch.inference_mode = _Array, Nothing
    timm = types.ModuleType("timm")
    timm.create_model, timm.layers = create, types.SimpleNamespace(SwiGLUPacked="SwiGLUPacked")
    transformers = types.ModuleType("transformers")
    lacking: list[str] = []  # what the weights of the next one lack

    def from_pretrained(name: str, *, output_loading_info: bool):
        assert output_loading_info
        return create(name, lacking=lacking), {"missing_keys": list(lacking)}

    transformers.AutoModel = types.SimpleNamespace(from_pretrained=from_pretrained, lacking=lacking)
    for module in (torch, timm, transformers):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def smaller(name: str, **fields) -> EncoderCard:
    return dataclasses.replace(CARDS[name], input_px=PX, **fields)


PIXELS = np.random.default_rng(2).integers(0, 256, (2, PX, PX, 3), np.uint8)


def means(card: EncoderCard) -> np.ndarray:
    return ((PIXELS / 255 - np.array(card.mean)) / np.array(card.sd)).mean((1, 2))


@pytest.mark.parametrize("name", ["uni", "h-optimus-0"])
def test_timm_gives_the_vector_that_the_model_pools(made, name):
    card = smaller(name, features=3)
    run, sha256 = timm_encoder(card, None)
    np.testing.assert_allclose(card.pooled(run(card.normalised(PIXELS))), means(card), atol=1e-5)
    assert made[0]["name"] == CARDS[name].model and made[0]["pretrained"] and made[0]["init_values"] == 1e-5
    assert made[0]["num_classes"] == 0
    assert len(sha256) == 64


def test_virchow2_is_its_class_token_and_the_mean_of_its_patches(made):
    card = smaller("virchow2", features=6)
    run, _ = timm_encoder(card, None)
    found = card.pooled(run(card.normalised(PIXELS)))
    np.testing.assert_allclose(found[:, :3], means(card), atol=1e-5)
    np.testing.assert_allclose(found[:, 3:], means(card) + 55.0, atol=1e-4)  # of tokens 5 and 6: four are registers
    assert made[0]["mlp_layer"] == "SwiGLUPacked" and made[0]["act_layer"] == "SiLU"


def test_transformers_gives_the_class_token(made):
    card = smaller("phikon-v2", features=3)
    run, _ = transformers_encoder(card, None)
    np.testing.assert_allclose(card.pooled(run(card.normalised(PIXELS))), means(card), atol=1e-5)
    assert made[0]["name"] == "owkin/phikon-v2"


def test_what_weights_lack_is_never_read(made):
    """transformers draws it at random: a pooler that is not read may be lacking, and is no part of the checksum."""
    lacking, card = sys.modules["transformers"].AutoModel.lacking, smaller("phikon-v2", features=3)
    _, whole = transformers_encoder(card, None)
    lacking.append("pooler.dense.weight")
    _, without = transformers_encoder(card, None)
    assert without == whole
    refused(lambda: transformers_encoder(dataclasses.replace(card, pooling="vector"), None), "pooler.dense.weight",
            "'class'")  # fmt: skip
    lacking[:] = ["weight"]
    refused(lambda: transformers_encoder(card, None), "lack weight", "whole weights")


def test_own_weights_are_taken_from_the_disk(made, tmp_path):
    weights = tmp_path / "uni.bin"
    refused(lambda: timm_encoder(smaller("uni"), weights), "uni.bin", "no such file")
    weights.write_bytes(b"weights")
    refused(lambda: timm_encoder(smaller("uni"), weights), "uni.bin", "folder", "config.json")  # of which model?
    timm_encoder(smaller("uni", model="vit_large_patch16_224"), weights)
    assert made[-1]["checkpoint_path"] == str(weights) and not made[-1]["pretrained"]
    timm_encoder(smaller("uni"), tmp_path)
    assert made[-1]["name"] == f"local-dir:{tmp_path}" and made[-1]["pretrained"]
    transformers_encoder(smaller("phikon-v2"), tmp_path)
    assert made[-1]["name"] == str(tmp_path)


def test_a_model_that_fails_on_pixels_is_one_line(made, monkeypatch):
    def fails(self, pixels=None, pixel_values=None):
        raise RuntimeError("Input height (8) does not match model (224)")

    run, _ = timm_encoder(smaller("uni"), None)
    monkeypatch.setattr(_Network, "__call__", fails)
    refused(lambda: run(PIXELS), "uni", "fails on pixels", f"3, {PX}, {PX}", "(224)")
    pooled = types.SimpleNamespace(last_hidden_state=None, pooler_output=None)
    monkeypatch.setattr(_Network, "__call__", lambda self, pixel_values: pooled)
    run, _ = transformers_encoder(smaller("phikon-v2", pooling="vector"), None)
    refused(lambda: run(PIXELS), "phikon-v2", "pools no vector", "'class'")


def test_timm_itself_reads_a_folder_of_the_hub(tmp_path):
    """A small transformer of random weights, stored as the hub stores UNI's."""
    torch = pytest.importorskip("torch", reason="extra [encoders-timm] is not installed")
    timm = pytest.importorskip("timm", reason="extra [encoders-timm] is not installed")
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, init_values=1e-5, dynamic_img_size=True).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    card = dataclasses.replace(CARDS["uni"], features=192)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    run, sha256 = timm_encoder(card, tmp_path)
    with torch.inference_mode():
        expected = model(torch.from_numpy(card.normalised(pixels).transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(card.pooled(run(card.normalised(pixels))), expected, atol=1e-5)
    tokens = dataclasses.replace(card, pooling="class+mean", features=384)
    run, same = timm_encoder(tokens, tmp_path)
    np.testing.assert_allclose(tokens.pooled(run(card.normalised(pixels)))[:, :192], expected, atol=1e-5)
    assert sha256 == same
    refused(lambda: run(np.zeros((1, 100, 100, 3), np.float32)), "uni", "fails on pixels")


def test_a_gated_model_is_said_in_a_line(made, monkeypatch):
    def gated(name, **told):
        raise OSError("401: access to this model is restricted\nand more")

    monkeypatch.setattr(sys.modules["timm"], "create_model", gated)
    refused(lambda: timm_encoder(smaller("uni"), None), "uni", "401", "accept the licence", "--weights")
    monkeypatch.setattr(sys.modules["transformers"].AutoModel, "from_pretrained", gated)
    refused(lambda: transformers_encoder(smaller("phikon-v2"), None), "phikon-v2", "401")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("uni", "timm", "encoders-timm"), ("virchow2", "torch", "encoders-timm"),
     ("phikon-v2", "transformers", "encoders-transformers")],
)  # fmt: skip
def test_a_missing_library_is_named_with_its_extra(made, monkeypatch, name, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    refused(lambda: load_encoder(name), f"'{module}'", f"pip install 'tario-jax[{extra}]'")
