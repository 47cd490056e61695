"""A bundle says what the model says, stands alone, and is refused where it is not what was exported."""

import dataclasses
import errno
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from made_reader import made_reader
from refusals import refused
from safetensors.numpy import load_file
from tiny_tissue import PANEL

from tario_jax.export import bundle as bundles
from tario_jax.export import loader
from tario_jax.export.bundle import Exported, Wanted, export_bundle
from tario_jax.export.loader import Bundle, BundleError
from tario_jax.export.stored import StoredLeaves
from tario_jax.export.tensor_file import Tensor, write_tensors
from tario_jax.export.weights import SCALE, leaves_of
from tario_jax.model.model import Tario
from tario_jax.predict.predictor import load
from tario_jax.train.checkpoint import find_checkpoint


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    export_bundle(tiny_run, out, Wanted(), silent)
    return out


@pytest.fixture(scope="module")
def bundle(folder) -> Bundle:
    return Bundle(folder)


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def resealed(folder: Path) -> Path:
    """As if what lies there now had been exported."""
    files = {path.name: [path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
             for path in folder.iterdir() if path.is_file() and path.name != "bundle.json"}  # fmt: skip
    (folder / "bundle.json").write_text(json.dumps({"format_version": 1, "files": files}))
    return folder


def windows_of(predictor, section, bin_um: float, rows: int):
    """(H&E, places, sides, the model's own rates, which are real) of the first windows of a section."""
    cover = predictor.cover(section, tissue="virtual", bin_um=bin_um, overlap=0.5)
    some, batch = next(cover.batches(rows))
    rates_BxQxG = np.asarray(predictor.call(Tario.rates, batch))[: len(some), :, : len(PANEL)]
    side_px = round(cover.data.window_um / cover.data.he_um_per_px)
    he = np.stack([section.he_window(*cover.corners[number], side_px, cover.data.he_um_per_px) for number in some])
    real = batch.bin_measured_BxTxN.reshape(rows, -1)[: len(some)] > 0
    xy_um, side_um = batch.bin_xy_um_BxTxNx2.reshape(rows, -1, 2), batch.bin_size_um_BxTxN.reshape(rows, -1)
    return he, xy_um[: len(some)], side_um[: len(some)], rates_BxQxG, real


@pytest.mark.parametrize(("rows", "bin_um"), [(1, 18.0), (3, 9.0), (4, 36.0)])
def test_it_says_what_the_model_says(tiny_run, tiny_corpus, bundle, rows, bin_um):
    """Of any number of windows, and of squares of any side: tiles of 36 µm, windows of 72 µm."""
    predictor = load(tiny_run)
    he, xy_um, side_um, expected, real = windows_of(predictor, tiny_corpus.section("F1"), bin_um, rows)
    found = bundle.predict(he, xy_um, side_um)
    assert found.shape == (rows, xy_um.shape[1], len(PANEL)) and found.dtype == np.float32
    np.testing.assert_allclose(found[real], expected[real], rtol=1e-5)
    assert real.sum() > rows and np.ptp(expected[real][:, 0]) > 0


@pytest.mark.parametrize("pattern", [pytest.param(("local",), marks=pytest.mark.slow), ("local", "global")])
def test_local_layers_stay_within_their_tiles(tiny_run, tiny_corpus, pattern):
    predictor = made_reader(tiny_run, model={"pattern": pattern})
    exported = Exported.of(predictor.provenance, Wanted())
    parts = {"": predictor.parameters, "calibration.": predictor.calibration}
    flat = {prefix + ".".join(map(str, (key.key for key in path))): value for prefix, tree in parts.items()
            for path, value in jax.tree.leaves_with_path(tree)}  # fmt: skip
    he, xy_um, side_um, expected, real = windows_of(predictor, tiny_corpus.section("F1"), 18.0, 2)
    tensors = {name: flat[name] for name in exported.tensors()}
    found = np.asarray(jax.jit(exported.rates)(tensors, he, xy_um, side_um))
    np.testing.assert_allclose(found[real], expected[real], rtol=1e-5)


def test_it_needs_no_tario(folder, bundle):
    """In a process that cannot import tario_jax, from the copy of the loader that lies in the bundle."""
    program = """
import sys
class Refuse:
    def find_spec(self, name, *_):
        if name.split('.')[0] in ('tario_jax', 'flax', 'orbax', 'tensorstore'):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
from loader import Bundle
bundle = Bundle(sys.argv[1])
print(bundle.check_golden(), len(bundle.genes), bool(bundle.banner))
"""
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    off, genes, banner = done.stdout.split()
    assert float(off) < 1e-5 and int(genes) == len(PANEL) == len(bundle.genes) and banner == "True"


def test_it_describes_itself(folder, bundle):
    signature = bundle.signature
    assert signature["trained_on"] == "virtual" and "virtual tissue" in signature["banner"]
    assert signature["window"] == {"side_px": 72, "um_per_px": 1.0, "side_um": 72.0}
    assert [entry["name"] for entry in signature["inputs"]] == ["he", "xy_um", "side_um"]
    sides = signature["inputs"][2]
    assert (sides["default"], sides["trained"], sides["largest"]) == (18.0, [18.0], 72.0) and signature["starts"] == []
    assert signature["parameters"].keys() == bundle.parameters.keys()
    assert not any("content" in name or "near" in name for name in bundle.parameters)  # one-shot reads none
    card = (folder / "MODEL_CARD.md").read_text()
    assert "30 of 30 steps of 4 windows" in card
    assert "Not for clinical use" in card and signature["banner"] in card and "was not evaluated" in card
    assert (folder / "genes.tsv").read_text().splitlines()[1].split("\t")[0] == PANEL.symbols[0]
    assert len((Path(loader.__file__)).read_text().splitlines()) <= 100


@pytest.mark.parametrize("name", ["params.safetensors", "model.stablehlo", "golden.npz", "panel.tsv", "signature.json"])
def test_a_flipped_byte_is_refused(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}: differs from what was exported"):
        Bundle(copy)


def test_another_panel_is_refused(copy):
    lines = (copy / "panel.tsv").read_text().splitlines()
    lines[1], lines[2] = lines[2], lines[1]
    (copy / "panel.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(BundleError, match="the weights are of panel"):
        Bundle(resealed(copy))


@pytest.mark.parametrize(("field", "value", "why"), [
    ("jaxlib", "99.1.0", "exported with jaxlib 99.1.0"), ("calling_convention", 1, "export it again"),
])  # fmt: skip
def test_a_jax_that_cannot_read_it_is_told(copy, field, value, why):
    signature = json.loads((copy / "signature.json").read_text())
    signature["jax"][field] = value
    (copy / "signature.json").write_text(json.dumps(signature))
    with pytest.raises(BundleError, match=why):
        Bundle(resealed(copy))


def test_another_answer_than_the_golden_one_is_refused(copy):
    with np.load(copy / "golden.npz") as golden:
        arrays = dict(golden)
    arrays["rates"] = arrays["rates"] * np.float32(1.01)
    np.savez(copy / "golden.npz", **arrays)
    with pytest.raises(BundleError, match="golden input gives rates that are off by"):
        Bundle(resealed(copy))
    assert Bundle(copy, check=False).genes == PANEL.symbols


def test_another_format_is_refused_and_further_files_are_not_read(copy):
    (copy / "params-more.safetensors").write_bytes(b"nothing that was exported")
    assert Bundle(copy, check=False).genes == PANEL.symbols
    about = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps(about | {"format_version": 2}))
    with pytest.raises(BundleError, match="is of format 2, and this loader reads 1"):
        Bundle(copy)


def test_squares_that_are_not_pooled_whole_are_refused(bundle):
    """A part of such a square would be taken for all of it."""
    with pytest.raises(ValueError, match="side_um is up to 90 µm; expected at most 72"):
        bundle.predict(np.zeros((1, 72, 72, 3), np.uint8), [[[36, 36], [36, 36]]], [[18, 90]])


def test_an_unfinished_one_is_refused(copy, tmp_path):
    for files in ([], {"panel.tsv": 5}, {"panel.tsv": [5]}):
        (copy / "bundle.json").write_text(json.dumps({"format_version": 1, "files": files}))
        with pytest.raises(BundleError, match="no finished bundle"):
            Bundle(copy)
    (copy / "bundle.json").write_text("[]")
    with pytest.raises(BundleError, match="no finished bundle"):
        Bundle(copy)
    (copy / "bundle.json").unlink()
    for place in (copy, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match="no finished bundle"):
            Bundle(place)


def test_an_export_that_breaks_off_leaves_no_bundle(tiny_run, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundles, "model_card", broken)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(tiny_run, tmp_path / "out", Wanted(), silent)
    assert not list(tmp_path.iterdir())

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")  # of a write, it names no file

    monkeypatch.setattr(bundles, "model_card", full)
    said = refused(lambda: export_bundle(tiny_run, tmp_path / "out", Wanted(), silent))
    assert "out: No space left on device" in said and not list(tmp_path.iterdir())
    monkeypatch.undo()
    export_bundle(tiny_run, tmp_path / "out", Wanted(), silent)
    assert Bundle(tmp_path / "out").genes == PANEL.symbols
    assert "is there already" in refused(lambda: export_bundle(tiny_run, tmp_path / "out", Wanted(), silent))


def parameters_of(tiny_run) -> dict[str, np.ndarray]:
    workdir, step = find_checkpoint(tiny_run)
    stored = StoredLeaves((workdir / "checkpoints" / str(step) / "parameters").resolve())
    return {name: np.concatenate([np.atleast_1d(part) for part in stored.parts(name, 64)]) for name in stored.names}


def test_weights_are_read_in_parts_as_they_were_trained(tiny_run):
    """64 bytes at a time, one row at least."""
    predictor, found = load(tiny_run), parameters_of(tiny_run)
    flat = {".".join(str(key.key) for key in path): np.atleast_1d(np.asarray(value))
            for path, value in jax.tree.leaves_with_path(predictor.parameters)}  # fmt: skip
    assert found.keys() == flat.keys()
    for name, value in flat.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_run_may_have_any_name(tiny_run, tmp_path):
    workdir, step = find_checkpoint(tiny_run)
    odd = shutil.copytree(workdir / "checkpoints" / str(step) / "parameters", tmp_path / "100% of #1? ü")
    (part,) = StoredLeaves(odd).parts("decoder.mlp_gate", 1 << 30)
    assert part.any()


def test_weights_that_go_away_meanwhile_are_no_zeros(tiny_run, tmp_path):
    """A run that still trains removes its older checkpoints, also the one that is read."""
    workdir, step = find_checkpoint(tiny_run)
    item = shutil.copytree(workdir / "checkpoints" / str(step) / "parameters", tmp_path / "parameters")
    stored = StoredLeaves(item)
    parts = stored.parts("decoder.mlp_gate", 64)
    assert next(parts).any()
    item.rename(tmp_path / "deleting")
    assert "decoder.mlp_gate cannot be read" in refused(lambda: list(parts))
    assert "cannot be read" in refused(lambda: stored.open("decoder.mlp_out"))


@pytest.mark.parametrize("weights", ["int8", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_small_weights_are_near_the_trained_ones(tiny_run, bundle, tmp_path, weights):
    export_bundle(tiny_run, tmp_path / weights, Wanted(weights=weights), silent)
    trained, stored = parameters_of(tiny_run), load_file(tmp_path / weights / "params.safetensors")
    leaves, small = leaves_of(Exported.of(load(tiny_run).provenance, Wanted()).built), 0
    for name, value in stored.items():
        if name.endswith(SCALE) or name.startswith("calibration."):
            continue
        if value.dtype == np.int8:
            small += value.size
            step = stored[name + SCALE]
            assert step.shape == leaves[name].scale_shape
            # half a step, and what float32 rounds the quotient to
            assert np.abs(value * step - trained[name]).max() <= 0.5001 * step.max()
            assert (np.abs(value * step - trained[name]) <= 0.5001 * step).all()
        elif value.dtype == np.float32:
            np.testing.assert_array_equal(np.atleast_1d(value), trained[name])
        else:
            small += value.size
            np.testing.assert_allclose(value.astype(np.float32), trained[name], rtol=2**-8)
    assert small > 0.8 * sum(value.size for name, value in stored.items() if not name.endswith(SCALE))
    found, expected = Bundle(tmp_path / weights), bundle
    with np.load(tmp_path / weights / "golden.npz") as golden:
        given = golden["he"], golden["xy_um"], golden["side_um"]
    off = np.abs(found.predict(*given) / expected.predict(*given) - 1)
    assert 0 < off.max() < 0.1


def test_large_weights_lie_in_several_files(folder, tmp_path):
    """With an index, as other readers of safetensors expect."""
    arrays = {f"a{number}": np.full((10, 4), number, np.float32) for number in range(5)}
    tensors = [Tensor(name, "float32", of.shape, lambda of=of: iter((of[:3], of[3:]))) for name, of in arrays.items()]
    names = write_tensors(tmp_path, "params", tensors, most_bytes=330)
    assert names == [f"params-0000{number}-of-00003.safetensors" for number in (1, 2, 3)] + [
        "params.safetensors.index.json"
    ]
    index = json.loads((tmp_path / names[-1]).read_text())
    assert index["metadata"]["total_size"] == 800
    for name, value in arrays.items():
        np.testing.assert_array_equal(load_file(tmp_path / index["weight_map"][name])[name], value)
    short = Tensor("short", "float32", (2, 4), lambda: iter((np.zeros((1, 4), np.float32),)))
    with pytest.raises(RuntimeError, match="16 bytes were given, 32 were announced"):
        write_tensors(tmp_path, "short", [short])


def test_what_cannot_be_exported_is_refused(tiny_run, tmp_path):
    assert "expected at most the window, 72 µm" in refused(
        lambda: export_bundle(tiny_run, tmp_path / "out", Wanted(largest_um=100.0), silent)
    )
    assert "expected at least the largest side that was trained, 18 µm" in refused(
        lambda: export_bundle(tiny_run, tmp_path / "out", Wanted(largest_um=9.0), silent)
    )
    assert "expected one of float32, bfloat16, int8" in refused(lambda: Wanted(weights="int4"))
    provenance = load(tiny_run).provenance
    he = dataclasses.replace(provenance.config, train=dataclasses.replace(provenance.config.train, learns="he"))
    assert "knows no gene" in refused(lambda: Exported.of(dataclasses.replace(provenance, config=he), Wanted()))


def test_what_spots_and_starts_make_of_it(tiny_run):
    """Of spots alone the square of a spot's area was trained; a start on virtual tissue is told of."""
    provenance = load(tiny_run).provenance
    start = provenance.as_start("elder", 7)
    of_spots = dataclasses.replace(provenance, bin_um=88.6, trained_on="real", started_from=start)
    assert bundles.trained_um(of_spots) == (88.6,) and bundles.trained_um(provenance) == (18.0,)
    assert "pretrained on virtual tissue (elder)" in bundles.banner(of_spots)
    assert bundles.banner(dataclasses.replace(of_spots, started_from=None)) == ""
    wide = dataclasses.replace(of_spots, started_from=None)
    assert Exported.of(wide, Wanted()).shape.patches_across == 9  # no larger than the window of 72 µm
