"""`tario predict --slide` as it is typed: what it writes, and what it refuses before anything starts."""

import pytest
from made_reader import made_reader
from made_slides import write_pyramid
from tiny_tissue import tiny_section

from tario_jax.cli.main import main
from tario_jax.predict.map_store import MapStore


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    picture = tiny_section("slide", "P", 5, width_um=200.0, height_um=160.0).he
    return write_pyramid(tmp_path_factory.mktemp("slides") / "slide.ome.tif", picture, ome=True, px_per_cm=20_000)


@pytest.fixture
def asked(tiny_run, slide, tmp_path, capsys):
    def run(*more: str, out: str = "slide.maps") -> tuple[int, str, str]:
        words = ["predict", f"--workdir={tiny_run}", f"--slide={slide}", f"--out={tmp_path / out}", "--everywhere",
                 "--allow-virtual-model", *more]  # fmt: skip
        status = main(words)
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


def test_steps_are_drawn_and_told(asked, tiny_run, tmp_path, monkeypatch):
    made = made_reader(tiny_run)
    made.allow_virtual_model = True
    monkeypatch.setattr("tario_jax.predict.predictor.load", lambda path, **_: made)
    status, out, _ = asked("--steps=3", "--uncertainty", "--samples=2", "--seed=4")
    assert status == 0 and "predict: " in out and "write: " in out
    store = MapStore(tmp_path / "slide.maps")
    assert store.arrays == ("rates", "spread", "drawn") and "drawn in 3 steps" in store.about["decoding"]
    status, _, err = asked("--steps=3", "--uncertainty", "--samples=2", "--seed=5")
    assert status == 2 and "asked otherwise" in err


@pytest.mark.parametrize(("more", "words"), [
    (("--samples=4",), "--samples: are for --uncertainty"),
    (("--seed=4",), "--seed: means nothing to one-shot prediction"),
    (("--seed=0",), "--seed: means nothing to one-shot prediction"),
    (("--order=hilbert",), "--order: means nothing to one-shot prediction"),
    (("--table=a.tsv",), "--table: goes with --section and --image"),
    (("--outlines=a.geojson",), "--outlines: goes with --section and --image"),
    (("--grow-um=2",), "--grow-um: goes with --section and --image"),
    (("--steps=4",), "trained one-shot"),
    (("--steps=1",), "one step writes nothing"),
    (("--reference-um-per-px=0.5",), "goes with --stain=IMAGE"),
    (("--um-per-px=4",), "expected 0.1 to 1.2"),
])  # fmt: skip
def test_what_does_not_go_together_is_one_line(asked, more, words):
    status, _, err = asked(*more)
    assert status == 2 and words in err and len(err.strip().splitlines()) == 1


def test_a_full_disk_says_what_to_do(asked, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path / "windows/3.npz"))

    with monkeypatch.context() as patch:
        patch.setattr("tario_jax.predict.spool.Spool.add", full)
        status, _, err = asked()
    assert status == 2 and "windows/3.npz: No space left on device; make room" in err and err.count("\n") == 1
    assert asked()[0] == 0


def test_a_folder_of_maps_is_asked_for(asked):
    status, _, err = asked(out="slide.h5ad")
    assert status == 2 and "give --out=NAME.maps" in err
