"""Encoders of other libraries: timm, Hugging Face transformers, ONNX. Each is imported when it is asked for.

An adapter takes a card and the weights that were named, and gives the network, from normalised float32 pixels
[N, px, px, 3] to what it says (the card pools it), and a checksum of its weights.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.config import InputError
from tario_jax.config_files import expand
from tario_jax.he_features.card import EncoderCard
from tario_jax.he_features.needed import file_sha256, imported

Network = Callable[[np.ndarray], np.ndarray]


def onnx_encoder(card: EncoderCard, weights: Path | None) -> tuple[Network, str]:
    """A model of ONNX Runtime: one input of pixels, [N, 3, px, px], and the features as its first output."""
    what = f"encoder {card.name}"
    if weights is None:
        raise InputError(f"{what}: is an ONNX model, and no file was named; give --weights=MODEL.onnx")
    of_file = file_sha256(weights, what)  # first: a missing file is said in a line
    runtime = imported("onnxruntime", "encoders-onnx", what)
    sha256 = _with_beside(of_file, Path(expand(str(weights))), what)
    try:
        session = runtime.InferenceSession(expand(str(weights)), providers=runtime.get_available_providers())
    except Exception as error:  # the library has a type of its own for each fault, and none in common
        raise InputError(f"{what}: {weights}: ONNX Runtime cannot read it ({_line(error)})") from None
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise InputError(f"{what}: {weights} takes {len(inputs)} inputs; expected one, of pixels [N, 3, px, px]")

    def run(pixels_NxYxXx3: np.ndarray) -> np.ndarray:
        try:
            return session.run(None, {inputs[0].name: _channels_first(pixels_NxYxXx3)})[0]
        except Exception as error:
            raise InputError(f"{what}: {weights} does not take pixels {list(inputs[0].shape)} of this card, "
                             f"[N, 3, {card.input_px}, {card.input_px}] ({_line(error)})") from None  # fmt: skip

    return run, sha256


def timm_encoder(card: EncoderCard, weights: Path | None) -> tuple[Network, str]:
    """A model of timm by the card's name of it; weights: by default what timm fetches from the hub.

    Weights of a model of the hub are a folder as the hub has it, of which config.json says what the model is; of one
    that timm itself knows, a file.
    """
    what = f"encoder {card.name}"
    timm = imported("timm", "encoders-timm", what)
    torch = imported("torch", "encoders-timm", what)
    name, source = card.model, {"pretrained": True}
    if weights is not None:
        file_sha256(weights, what)
        place = Path(expand(str(weights)))
        if place.is_dir():
            name = f"local-dir:{place}"
        elif name.startswith("hf-hub:"):
            raise InputError(f"{what}: {weights} does not say which model its weights are of; expected a folder with "
                             f"it and the config.json that {card.source} has beside it")  # fmt: skip
        else:
            source = {"pretrained": False, "checkpoint_path": str(place)}
    try:
        # no classes: the head gives the vector that it pools
        model = timm.create_model(name, num_classes=0, **source, **_timm_arguments(card, timm, torch))
    except Exception as error:
        raise _not_made(what, "timm", card, weights, error) from None
    # forward_features gives tokens; the call itself the vector that the model's own head pools
    forward = model if card.pooling == "vector" else model.forward_features
    return _torch_network(torch, model, forward, card), _state_sha256(model)


def transformers_encoder(card: EncoderCard, weights: Path | None) -> tuple[Network, str]:
    """A vision model of transformers by the card's name; weights: a folder, by default what the hub gives."""
    what = f"encoder {card.name}"
    transformers = imported("transformers", "encoders-transformers", what)
    torch = imported("torch", "encoders-transformers", what)
    if weights is not None:
        file_sha256(weights, what)
    try:
        model, told = transformers.AutoModel.from_pretrained(
            card.model if weights is None else expand(str(weights)), output_loading_info=True
        )
    except Exception as error:
        raise _not_made(what, "transformers", card, weights, error) from None
    # what the weights lack is drawn at random; a pooler is often lacking, and is read for pooling "vector" alone
    drawn = set(told["missing_keys"])
    if lacking := sorted(name for name in drawn if card.pooling == "vector" or not name.startswith("pooler.")):
        raise InputError(f"{what}: its weights lack {', '.join(lacking[:3])}, {len(lacking)} arrays in all; expected "
                         "whole weights, or a card with pooling 'class' or 'class+mean'")  # fmt: skip

    model = model.float()  # weights that are stored as bfloat16 may be loaded so

    def forward(pixels):
        output = model(pixel_values=pixels)
        found = output.pooler_output if card.pooling == "vector" else output.last_hidden_state
        if found is None:
            raise ValueError("it pools no vector; expected a card with pooling 'class' or 'class+mean'")
        return found

    return _torch_network(torch, model, forward, card), _state_sha256(model, without=drawn)


ADAPTERS: dict[str, Callable[[EncoderCard, Path | None], tuple[Network, str]]] = {
    "onnx": onnx_encoder, "timm": timm_encoder, "transformers": transformers_encoder,
}  # fmt: skip


def _timm_arguments(card: EncoderCard, timm, torch) -> dict[str, Any]:
    """What the authors' pages say to pass beside the name: their configs on the hub do not hold it."""
    if card.model.endswith("/Virchow2"):
        return {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    if card.model.endswith(("/UNI", "/H-optimus-0")):
        return {"init_values": 1e-5, "dynamic_img_size": card.model.endswith("/UNI")}
    return {}


def _torch_network(torch, model, forward: Callable, card: EncoderCard) -> Network:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.eval()
    model.to(device)

    def run(pixels_NxYxXx3: np.ndarray) -> np.ndarray:
        try:
            with torch.inference_mode():
                return forward(torch.from_numpy(_channels_first(pixels_NxYxXx3)).to(device)).float().cpu().numpy()
        except Exception as error:
            raise InputError(f"encoder {card.name}: {card.model} fails on pixels of this card, [N, 3, {card.input_px}, "
                             f"{card.input_px}] ({_line(error)})") from None  # fmt: skip

    return run


def _with_beside(sha256: str, path: Path, what: str) -> str:
    """The checksum of an ONNX model's file with those of the files beside it that hold its larger weights."""
    onnx = imported("onnx", "encoders-onnx", what)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise InputError(f"{what}: {path}: onnx cannot read it ({_line(error)})") from None
    beside = sorted({entry.value for tensor in _tensors(model.graph) for entry in tensor.external_data
                     if entry.key == "location"})  # fmt: skip
    if not beside:
        return sha256
    sums = [sha256, *(file_sha256(path.parent / name, what) for name in beside)]
    return hashlib.sha256(" ".join(sums).encode()).hexdigest()


def _tensors(graph) -> Iterator[Any]:
    """All stored arrays of an ONNX graph and of the graphs in its nodes."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _channels_first(pixels_NxYxXx3: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels_NxYxXx3.transpose(0, 3, 1, 2))


def _state_sha256(model, without: Set[str] = frozenset()) -> str:
    """Of the arrays but some, wherever their file lies: the same for the hub's copy and for one's own."""
    state: Mapping[str, Any] = model.state_dict()
    digest = hashlib.sha256()
    for name in sorted(set(state) - without):
        array = state[name].detach().cpu().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _not_made(what: str, library: str, card: EncoderCard, weights: Path | None, error: Exception) -> InputError:
    given = f"the weights of {card.source}" if weights is None else str(weights)
    return InputError(f"{what}: {library} could not load {given} ({_line(error)}); where access is gated, accept the "
                      "licence there and log in, or give --weights")  # fmt: skip


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
