"""Which examples are taken, and that every kind of picture is drawn."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from refusals import refused
from skimage.io import imread
from test_score_file import made_table
from tiny_tissue import spot_section, tiny_section, write_corpus

from tario_jax.cli import main as cli
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.section import Detections
from tario_jax.evaluate import gallery as gallery_module
from tario_jax.evaluate.figures import Drawn
from tario_jax.evaluate.gallery import Example, Gallery, at_r, best_median_worst, of_genes
from tario_jax.evaluate.map_figures import frame_of
from tario_jax.predict.maps import VIRTUAL_BANNER
from tario_jax.predict.predictor import load


def table():
    r_SxG = np.array([[0.6, 0.31, 0.1, np.nan], [0.52, 0.2, 0.18, 0.5], [0.1, 0.9, 0.17, 0.02]], np.float32)
    return dataclasses.replace(made_table(), moran_G=np.array([0.4, 0.3, 0.2, np.nan]), r={("model", "counts"): r_SxG})


def test_genes_are_taken_at_the_r_that_was_asked_for_and_none_twice():
    found = at_r(table(), (0.5, 0.3, 0.17))
    # G3 is nearest to 0.5, but it is not ranked
    assert [(one.section, one.symbol) for one in found] == [("s1", "G0"), ("s0", "G1"), ("s2", "G2")]
    again = at_r(table(), (0.5, 0.5, 0.5))
    assert len({one.symbol for one in again}) == 3
    assert at_r(table(), (0.5,) * 9) == again  # there are three genes
    empty = dataclasses.replace(table(), moran_G=np.full(4, np.nan))
    refused(lambda: at_r(empty), "no gene has a defined r")


def test_best_median_and_worst_are_by_mean_r_and_each_in_its_median_section():
    found = best_median_worst(table())
    assert [(one.section, one.symbol) for one in found] == [("s0", "G1"), ("s1", "G0"), ("s2", "G2")]
    assert [one.section for one in of_genes(table(), ("G3",))] == ["s2"]
    refused(lambda: of_genes(table(), ("TP53",)), "'TP53' was not evaluated", "G0")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    spots = spot_section("spots", "b", 4, x_um=np.arange(20, 160, 30.0), y_um=np.full(5, 70.0))
    alone = dataclasses.replace(tiny_section("alone", "c", 5), detections=None)
    return write_corpus(tmp_path_factory.mktemp("gallery") / "c", [tiny_section("cells", "a", 3), spots, alone])


def test_every_kind_of_picture_is_drawn(tiny_run, corpus, tmp_path):
    pytest.importorskip("matplotlib")
    said: list[str] = []
    gallery, predictor = Gallery(corpus, 18.0, 0.5, 0.9, said.append), load(tiny_run)
    examples = [Example("cells", "GENE1", "for a test"), Example("cells", "GENE4", "for a test")]
    drawn = [
        gallery.triptychs(tmp_path / "triptychs.png", predictor, examples, "x"),
        gallery.runs(tmp_path / "runs.png", {"small": predictor, "large": predictor}, examples, "x"),
        gallery.resolutions(tmp_path / "sides.png", predictor, examples, (36.0, 18.0), "x"),
        gallery.triptychs(tmp_path / "spots.png", predictor, [Example("spots", "GENE2", "for a test")], "x"),
        gallery.triptychs(tmp_path / "alone.png", predictor, [Example("alone", "GENE2", "for a test")], "x"),
    ]
    for one in drawn:
        assert one.path.read_bytes().startswith(b"\x89PNG") and "for a test" in one.caption
    assert len(said) == len(set(said)) == 6  # no section is predicted twice by one model at one side of bins


def test_of_a_section_the_genes_that_are_drawn_are_kept_and_no_others(tiny_run, corpus, tmp_path):
    pytest.importorskip("matplotlib")
    said: list[str] = []
    gallery, predictor = Gallery(corpus, 18.0, 0.5, 0.9, said.append), load(tiny_run)
    first, second, third = (Example("cells", symbol, "for a test") for symbol in ("GENE1", "GENE4", "GENE2"))
    gallery.will_draw([first, second])
    for one in (first, second):
        gallery.triptychs(tmp_path / "x.png", predictor, [one], "x")
    (kept,) = gallery._maps.values()
    assert kept.panel.symbols == ("GENE1", "GENE4") and kept.rates_NxG.shape[1] == 2 and len(said) == 1
    gallery.triptychs(tmp_path / "x.png", predictor, [third], "x")  # which nobody named before
    assert len(said) == 2
    refused(lambda: gallery._predicted(corpus.section("cells"), "TP53", "", predictor, 18.0, None), "panel of 12 genes")


def test_a_virtual_model_on_real_tissue_is_never_drawn_without_its_banner(tiny_run, tmp_path):
    pytest.importorskip("matplotlib")
    corpus = write_corpus(tmp_path / "c", [tiny_section("cells", "a", 3)], kind="real")
    predictor = load(tiny_run, allow_virtual_model=True)
    examples = [Example("cells", "GENE1", "for a test")]
    drawn = Gallery(corpus, 18.0, 0.5, 0.9, str).triptychs(tmp_path / "real.png", predictor, examples, "x")
    assert drawn.caption.startswith(VIRTUAL_BANNER)
    virtual = write_corpus(tmp_path / "v", [tiny_section("cells", "a", 3)])
    plain = Gallery(virtual, 18.0, 0.5, 0.9, str).triptychs(tmp_path / "virtual.png", predictor, examples, "x")
    assert plain.caption.startswith("Chosen")
    with_it, without = (imread(one.path).shape[0] for one in (drawn, plain))
    assert with_it > without  # by the lines under the heading


def test_what_was_not_measured_is_no_zero_expression(tiny_run, tmp_path):
    pytest.importorskip("matplotlib")
    whole = tiny_section("gap", "a", 6)
    found = whole.detections
    kept = found.x_um_D < 90
    detections = Detections(found.x_um_D[kept], found.y_um_D[kept], found.gene_D[kept])
    left = np.tile(np.arange(45) < 22.5, (38, 1))  # of 180 × 150 µm, at 4 µm
    section = dataclasses.replace(whole, detections=detections, measured=left)
    corpus = write_corpus(tmp_path / "c", [section])
    gallery = Gallery(corpus, 18.0, 0.5, 0.9, lambda line: None)
    truth = gallery._measured(corpus.section("gap"), "GENE1", 18.0)
    assert truth.x_um_N.max() < 90 and len(truth.values_N) >= 4 * 8
    one = gallery._predicted(corpus.section("gap"), "GENE1", "", load(tiny_run), 18.0, truth)
    r = float(one.title.split("r = ")[1])
    places = {(x, y): v for x, y, v in zip(one.x_um_N, one.y_um_N, one.values_N, strict=True)}
    told = [places[x, y] for x, y in zip(truth.x_um_N, truth.y_um_N, strict=True)]
    assert r == pytest.approx(np.corrcoef(truth.values_N, told)[0, 1], abs=0.006)


def test_a_gene_that_a_section_did_not_measure_is_no_zero_expression_either(tiny_run, tmp_path):
    unseen = np.arange(12) != 1
    sections = [tiny_section("cells", "a", 3, measured_gene_G=unseen),
                spot_section("spots", "b", 4, x_um=np.arange(20, 160, 30.0), y_um=np.full(5, 70.0),
                             measured_gene_G=np.ones(12, bool))]  # fmt: skip
    corpus = write_corpus(tmp_path / "c", sections)
    gallery, predictor = Gallery(corpus, 18.0, 0.5, 0.9, lambda line: None), load(tiny_run)
    section = corpus.section("cells")
    assert gallery._measured(section, "GENE1", 18.0) is None and gallery._measured(section, "GENE2", 18.0) is not None
    assert gallery._measured(corpus.section("spots"), "GENE1", 18.0) is not None
    assert "r =" not in gallery._predicted(section, "GENE1", "", predictor, 18.0, None).title


def test_maps_are_summed_up_from_the_bins_that_the_scores_are_of(tiny_run, corpus):
    predictor, section = load(tiny_run), corpus.section("cells")
    gallery = Gallery(corpus, 36.0, 0.5, 0.9, lambda line: None, read_um=18.0)
    truth = gallery._measured(section, "GENE1", 36.0)
    found = gallery._predicted(section, "GENE1", "", predictor, 36.0, truth)
    maps = predictor.predict_section(section, tissue="virtual", overlap=0.5, bin_um=18.0)
    sums = np.zeros((4, 5))
    for x, y, rate in zip(maps.x_um_N, maps.y_um_N, maps.gene("GENE1"), strict=True):
        if x < 180 and y < 144:
            sums[int(y // 36), int(x // 36)] += rate
    np.testing.assert_allclose(found.values_N, sums.ravel(), rtol=1e-5)
    r = np.corrcoef(sums.ravel(), truth.values_N)[0, 1]
    assert found.title == f"predicted, 36 µm from 18 µm · r = {r:.2f}"


def test_a_bin_that_is_measured_in_part_is_told_in_part_and_the_frame_is_that_of_all_maps(tiny_run, tmp_path):
    pytest.importorskip("matplotlib")
    measured = np.ones((150, 180), bool)  # at 1 µm
    measured[:, 95:] = False
    measured[:72, 54:62] = False  # 10 of 18 µm are left there
    data = dataclasses.replace(tiny_section("gap", "a", 6), measured=measured, measured_um_per_px=1.0)
    section = write_corpus(tmp_path / "c", [data]).sections[0]
    gallery = Gallery(Corpus.open(tmp_path / "c"), 18.0, 0.5, 0.5, lambda line: None)
    truth = gallery._measured(section, "GENE1", 18.0)
    predictor = load(tiny_run)
    one = gallery._predicted(section, "GENE1", "", predictor, 18.0, truth)
    told = dict(zip(zip(one.x_um_N, one.y_um_N, strict=True), one.values_N, strict=True))
    counted = {(x, y): ((found.gene_D == 1) & (abs(found.x_um_D - x) < 9) & (abs(found.y_um_D - y) < 9)).sum()
               for found in [data.detections] for x in np.arange(9, 90, 18) for y in np.arange(9, 144, 18)}  # fmt: skip
    assert dict(zip(zip(truth.x_um_N, truth.y_um_N, strict=True), truth.values_N, strict=True)) == counted
    share = {place: 10 / 18 if place[0] == 63 and place[1] < 72 else 1 for place in counted}
    r = np.corrcoef([*counted.values()], [share[place] * told[place] for place in counted])[0, 1]
    assert one.title.endswith(f"r = {r:.2f}")
    strict = Gallery(Corpus.open(tmp_path / "c"), 18.0, 0.5, 0.7)
    refused(lambda: strict._measured(section, "GENE1", 150.0), "gap", "no bin of 150 µm", "70%")
    assert frame_of([truth, one]) == one.frame_um != truth.frame_um  # what is predicted beyond it is not cut off


@pytest.fixture
def drawn_titles(monkeypatch) -> dict[str, list[str]]:
    """Titles of the maps of each picture that is drawn meanwhile, by its name."""
    titles: dict[str, list[str]] = {}

    def draw(path, heading, rows, caption, banner):
        titles[Path(path).stem] = [heading, *(one.title for _, maps in rows for one in maps)]
        return Drawn(path, f"{banner} {caption}".strip())

    monkeypatch.setattr(gallery_module, "draw_maps", draw)
    return titles


def scored(run, corpus, of=None, **changes):
    """scores.npz of the run's own checkpoint (or that of another) and corpus, but for what is changed."""
    symbols = corpus.panel.symbols[:4]
    own = {"checkpoint": load(of or run).checkpoint, "corpus_seal": corpus.seal, "sections": ("F1",) * 3,
           "symbols": symbols, "bin_um": 18.0}  # fmt: skip
    dataclasses.replace(made_table(), **own | changes).write(run / "scores.npz")


def test_two_runs_of_one_config_are_both_drawn(tiny_run, tiny_corpus, tmp_path, drawn_titles, capsys):
    first, second = (shutil.copytree(tiny_run, tmp_path / name / "run") for name in ("a", "b"))
    words = ["gallery", f"--workdir={second}", f"--corpus={tiny_corpus.root}", f"--out={tmp_path / 'out'}"]
    scored(second, tiny_corpus)
    assert cli.main([*words, f"--beside={first}"]) == 0, capsys.readouterr().err
    heading, _, one, other, *_ = drawn_titles["runs"]
    assert heading == "a/run beside b/run" and one.startswith("a/run, 18 µm") and other.startswith("b/run, 18 µm")
    assert cli.main([*words, f"--beside={second}"]) == 2
    assert "is given twice" in capsys.readouterr().err


def test_what_a_run_was_trained_on_is_not_shown_as_if_held_out(tiny_run, tiny_corpus, tmp_path, drawn_titles, capsys):
    words = ["gallery", f"--workdir={tiny_run}", f"--corpus={tiny_corpus.root}", "--genes=GENE1"]
    for section, seen in (("A1", True), ("F1", False)):
        assert cli.main([*words, f"--out={tmp_path / section}", f"--section={section}"]) == 0, capsys.readouterr().err
        assert (", seen in training · r" in drawn_titles["genes"][-1]) == seen
        assert ("Seen in training, not held out: A1." in capsys.readouterr().out) == seen
    mine, other = load(tiny_run), load(tiny_run)  # which has learnt from the patient that the first holds out
    other.provenance = dataclasses.replace(other.provenance, seen_patients=(*other.provenance.seen_patients, "F"))
    gallery = Gallery(tiny_corpus, 18.0, 0.5, 0.9, lambda line: None)
    drawn = gallery.runs(tmp_path / "runs.png", {"b": other, "a": mine}, [Example("F1", "GENE1", "for a test")], "x")
    assert drawn.caption.endswith("Seen in training, not held out: F1 by b.")
    _, _, first, second = drawn_titles["runs"]
    assert first.startswith("b, 18 µm, seen in training") and second.startswith("a, 18 µm · r")


def test_scores_may_lie_elsewhere_and_another_corpus_gets_a_report_of_its_own(tiny_run, tiny_corpus, tmp_path,
                                                                              drawn_titles, capsys):  # fmt: skip
    words = ["gallery", f"--workdir={tiny_run}", f"--corpus={tiny_corpus.root}", f"--out={tmp_path / 'out'}"]
    scored(tmp_path, tiny_corpus, of=tiny_run)
    assert cli.main([*words, f"--scores={tmp_path}"]) == 0, capsys.readouterr().err
    assert drawn_titles.keys() == {"at_r", "best_median_worst"}
    assert cli.main([*words, f"--scores={tmp_path}", "--genes=GENE1", "--section=F1"]) == 2
    assert "leave one out" in capsys.readouterr().err
    other = write_corpus(tmp_path / "other", [tiny_section("N1", "N", 9)])
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    for more in ((), ("--follow",), (f"--out={tiny_run}/",)):
        assert cli.main(["evaluate", f"--workdir={tiny_run}", f"--corpus={other.root}", *more]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "is not the one of training" in error and "--out=FOLDER" in error
    assert cli.main(["evaluate", f"--workdir={tiny_run}", "--follow", "--config.evaluate.read_um=(9.0,)"]) == 2
    assert "no readings are made with --follow" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")} == before


@pytest.mark.parametrize(("changes", "said"), [({"checkpoint": "7-other"}, "checkpoint 7-other"),
                                               ({"corpus_seal": "another"}, "corpus another"),
                                               ({"bin_um": 36.0}, "say --bin-um=36")])  # fmt: skip
def test_scores_of_something_else_choose_no_pictures(tiny_run, tiny_corpus, tmp_path, capsys, drawn_titles, changes,
                                                     said):  # fmt: skip
    run = shutil.copytree(tiny_run, tmp_path / "run")
    scored(run, tiny_corpus, **changes)
    status = cli.main(["gallery", f"--workdir={run}", f"--corpus={tiny_corpus.root}", f"--out={tmp_path / 'out'}"])
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and said in error and "scores.npz" in error and not drawn_titles
