"""Finer readouts and the price of a shift, of readers whose answer is known."""

import copy
import dataclasses
import shutil
import types

import numpy as np
import pytest
from refusals import refused
from skimage.io import imread
from tiny_tissue import tiny_section, write_corpus

from tario_jax.config import DataConfig, EvaluateConfig
from tario_jax.corpus.section import Detections
from tario_jax.corpus.write import begin_corpus, seal_corpus, write_section
from tario_jax.evaluate.bins import grid_counts, grid_places
from tario_jax.evaluate.finer import measure, registration_cost, scored
from tario_jax.evaluate.finer import section as finer_section
from tario_jax.evaluate.finer.figures import draw_finer, draw_shift
from tario_jax.evaluate.finer.gene_sets import rank_by_moran
from tario_jax.evaluate.finer.measure import measure_finer
from tario_jax.evaluate.finer.registration_cost import measure_registration_cost, shift_table
from tario_jax.evaluate.finer.shifted import directions
from tario_jax.evaluate.scope import sections_of
from tario_jax.predict.maps import VIRTUAL_BANNER, GeneMaps
from tario_jax.predict.nuclei import NucleusSettings
from tario_jax.virtual import Settings, curated_panel, simulate_section, truth_rates

CONFIG = EvaluateConfig(top_genes=60, mean_genes=20, bootstraps=100)
SIDE_UM = 216.0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root, panel = tmp_path_factory.mktemp("finer") / "c", curated_panel()
    begin_corpus(root, panel, "virtual", {"made": "by a test"})
    for number in (0, 1, 2):
        data = simulate_section(number, "core", Settings(section_um=SIDE_UM, panel="curated"))
        write_section(root, panel, "virtual", data)
    return seal_corpus(root, panel, "virtual", {"vt00000": "train", "vt00001": "held_out", "vt00002": "held_out"})


class Oracle:
    """Says the true rates of bins; of squares, those of the 9 µm bin that holds their centre, by area."""

    checkpoint, trained_on = "oracle", "virtual"

    def __init__(self, corpus):
        self.panel, self.asked = corpus.panel, 0
        self.provenance = types.SimpleNamespace(
            config=types.SimpleNamespace(data=DataConfig()), corpus_seal=corpus.seal, train=("vt00000_core",),
            held_out=("vt00001_core", "vt00002_core"), seen_patients=("vt00000",), split_by="patient",
        )  # fmt: skip

    def predict_section(self, section, *, tissue, bin_um, overlap):
        self.asked += 1
        true, _ = truth_rates(section.truth, bin_um, reachable=False)
        side = len(true)
        true = true.reshape(side * side, -1)
        return GeneMaps(section.id, self.panel, *grid_places(side, side, bin_um), bin_um, true, 0.5, "virtual", tissue)

    def predict_squares(self, section, x_um_N, y_um_N, side_um_N, *, tissue, overlap):
        maps = self.predict_section(section, tissue=tissue, bin_um=9.0, overlap=overlap)
        row_N, column_N = (np.minimum(place // 9, SIDE_UM // 9 - 1).astype(int) for place in (y_um_N, x_um_N))
        return maps.rates_NxG[row_N * int(SIDE_UM // 9) + column_N] * (side_um_N[:, None] / 9) ** 2


@pytest.fixture(scope="module")
def measured(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    oracle = Oracle(corpus)
    ranked_on, sections = sections_of(oracle.provenance, corpus)
    said = []
    result = measure_finer(oracle, corpus, sections, folder, CONFIG, ranked_on=ranked_on, say=said.append)
    assert said == ["finer: 1/2 sections", "finer: 2/2 sections"]
    return folder, result


def test_who_says_the_truth_has_all_of_it_and_no_more_of_the_counts_than_there_is(measured):
    _, result = measured
    assert result["ranked_on"] == "training sections" and result["patients"] == 2
    for place in ("36", "18", "9"):
        readers = result["scores"][place]
        for form in ("counts", "composition"):
            assert readers["model"]["truth"][form]["top"]["mean"] == pytest.approx(1, abs=1e-6)
            assert readers["model"]["counts"][form]["top"]["mean"] > readers["reachable"]["counts"][form]["top"]["mean"]
        # r(T, X), once as the model's and once as the measurement's; of composition rates say more than theirs
        model, measurement = readers["model"]["counts"], readers["measured"]["truth"]
        assert model["counts"]["top"] == pytest.approx(measurement["counts"]["top"])
        assert model["composition"]["top"]["mean"] > measurement["composition"]["top"]["mean"]
        assert readers["density"]["truth"]["counts"]["top"]["mean"] < 0.9
        assert readers["density"]["truth"]["composition"]["top"]["mean"] == 0
    for place in ("18", "9"):
        gain = result["differences"][place]["model - coarse"]["truth"]["counts"]["top"]
        assert gain["low"] > 0.05 and gain["low"] <= gain["mean"] <= gain["high"]


def test_a_cell_is_read_better_from_fine_bins_than_from_coarse_ones(measured):
    _, result = measured
    for place in ("cells", "nuclei"):
        for pair in ("bins - coarse", "queries - coarse"):
            assert result["differences"][place][pair]["truth"]["counts"]["top"]["mean"] > 0.02
        classes = result["scores"][place]["reachable"]["truth"]["counts"]
        assert classes["visible_state"]["mean"] > 0.9 > classes["hidden_state"]["mean"] + 0.1
    nuclei = result["nuclei"]
    assert 0.85 < nuclei["recall"]["mean"] <= 1 and 0.85 < nuclei["precision"]["mean"] <= 1
    assert nuclei["recall"]["low"] <= nuclei["recall"]["mean"] <= nuclei["recall"]["high"]


def test_the_table_and_the_figure_show_what_was_measured(measured):
    folder, result = measured
    for words in ("bins of 9 µm", "cells, nuclei found", "a query a cell", "hidden_state", "recall 0."):
        assert words in result["table"]
    draw_finer(folder / "finer.png", result)
    assert (folder / "finer.png").read_bytes()[:4] == b"\x89PNG"


def test_one_patient_is_shown_without_intervals(measured, priced, corpus, monkeypatch):
    _, (section, _) = sections_of(Oracle(corpus).provenance, corpus)
    say = {"ranked_on": corpus.sections[:1], "say": lambda line: None}
    finer = measure_finer(Oracle(corpus), corpus, [section], measured[0], CONFIG, **say)
    monkeypatch.setattr(registration_cost, "BINS_UM", (36.0, 9.0))
    shift = measure_registration_cost(Oracle(corpus), corpus, [section], priced[0], CONFIG, **say)
    entries = [finer["scores"]["36"]["model"]["truth"]["counts"]["top"], finer["nuclei"]["recall"],
               finer["differences"]["9"]["model - coarse"]["truth"]["counts"]["top"],
               shift["falls"]["36"]["model"]["9"]["counts"]["top"]]  # fmt: skip
    assert all((entry["low"], entry["high"]) == (None, None) and entry["mean"] != 0 for entry in entries)
    for result, draw in ((finer, draw_finer), (shift, draw_shift)):
        assert "[" not in result["table"] and "they need two patients" in result["table"]
        draw(measured[0] / "alone.png", result)


def test_a_restart_measures_what_is_left_and_says_the_same(measured, corpus, tmp_path):
    folder, result = measured
    ranked_on, sections = sections_of(Oracle(corpus).provenance, corpus)
    files = sorted((folder / "finer").iterdir())
    assert [file.name.split(".")[0] for file in files] == ["vt00001_core", "vt00002_core"]
    files[1].write_bytes(files[1].read_bytes()[:1000])  # what a full disk leaves
    oracle = Oracle(corpus)
    again = measure_finer(oracle, corpus, sections, folder, CONFIG, ranked_on=ranked_on, say=lambda line: None)
    assert again == result and oracle.asked == 5  # three sides of bins and two kinds of cells, of one section


@pytest.mark.parametrize("changed", ["truth_key", "NucleusSettings"])
def test_what_is_kept_of_another_truth_or_of_other_nuclei_is_measured_anew(measured, corpus, tmp_path, monkeypatch,
                                                                           changed):  # fmt: skip
    folder = shutil.copytree(measured[0], tmp_path / "out")
    _, (section, _) = sections_of(Oracle(corpus).provenance, corpus)
    say = {"ranked_on": corpus.sections[:1], "say": lambda line: None}
    other = {"truth_key": lambda section: "another", "NucleusSettings": lambda: NucleusSettings(above=0.3)}
    monkeypatch.setattr(scored if changed == "truth_key" else measure, changed, other[changed])
    oracle = Oracle(corpus)
    measure_finer(oracle, corpus, [section], folder, CONFIG, **say)
    assert oracle.asked == 5


def test_where_no_nucleus_is_that_of_a_cell_cells_found_have_no_r(measured, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(finer_section, "match_places", lambda found, true: np.full(len(found), -1))
    say = {"ranked_on": corpus.sections[:1], "say": lambda line: None}
    result = measure_finer(Oracle(corpus), corpus, corpus.sections[1:], tmp_path, CONFIG, **say)
    whole = measured[1]["scores"]
    assert result["nuclei"]["recall"]["mean"] == 0 and result["scores"]["cells"] == whole["cells"]
    assert np.isnan(result["scores"]["nuclei"]["queries"]["truth"]["counts"]["top"]["mean"])
    draw_finer(tmp_path / "finer.png", result)


def test_real_tissue_has_no_truth_to_be_scored_on(corpus, tmp_path):
    real = write_corpus(tmp_path / "c", [tiny_section("A1", "A", 0)], kind="real", split={"A": "train"})
    say = {"say": lambda line: None}
    refused(lambda: measure_finer(Oracle(real), real, real.sections, tmp_path, CONFIG, **say), "virtual truth",
            "--cells")  # fmt: skip
    refused(lambda: measure_finer(Oracle(corpus), corpus, [], tmp_path, CONFIG, **say), "no section")


@pytest.fixture(scope="module")
def priced(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shift")
    ranked_on, sections = sections_of(Oracle(corpus).provenance, corpus)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(registration_cost, "BINS_UM", (36.0, 9.0))

        def priced_again():
            return measure_registration_cost(Oracle(corpus), corpus, sections, folder, CONFIG, ranked_on=ranked_on,
                                             say=lambda line: None)  # fmt: skip

        yield folder, priced_again(), priced_again


def test_a_perfect_reader_pays_more_for_each_shift_and_most_in_fine_bins(priced):
    _, result, _ = priced
    for reader in ("model", "reachable"):
        for form in ("counts", "composition"):
            r = {side: [entry[form]["top"]["mean"] for entry in result["scores"][side][reader].values()]
                 for side in ("36", "9")}  # fmt: skip
            assert all(line[0] > line[2] > line[4] for line in r.values())
            assert r["9"][2] / r["9"][0] < r["36"][2] / r["36"][0]  # 9 µm are more to a bin of 9 µm
    falls = result["falls"]["9"]["model"]
    assert falls["0"]["counts"]["top"] == {"mean": 0, "low": 0, "high": 0}
    assert falls["9"]["counts"]["top"]["high"] < 0
    at = result["scores"]["9"]["model"]
    assert falls["9"]["counts"]["top"]["mean"] == pytest.approx(
        at["9"]["counts"]["top"]["mean"] - at["0"]["counts"]["top"]["mean"],
        abs=5e-3,  # the fall is of fewer pairs
    )


def test_a_gene_counts_in_the_directions_in_which_it_is_seen(priced, corpus):
    section, bin_um, shift_um = corpus.section("vt00001_core"), 36.0, 36.0
    found, columns = section.all_detections(), int(SIDE_UM / bin_um)
    inner = np.arange(columns**2).reshape(columns, columns)[1:-1, 1:-1].ravel()  # what a move leaves measured
    seen = []
    for way in directions(registration_cost.DIRECTIONS):
        right, down = shift_um * way
        moved = Detections(found.x_um_D + right, found.y_um_D + down, found.gene_D)
        counts_NxG = grid_counts(moved, len(corpus.panel), columns, columns, bin_um)[inner]
        seen.append(np.ptp(counts_NxG, axis=0) > 0)
    with np.load(next((priced[0] / "shift").glob("vt00001_core.*"))) as kept:
        defined_G = np.isfinite(kept["36/model/36/counts"])
    np.testing.assert_array_equal(defined_G, np.any(seen, 0))
    assert (np.any(seen, 0) != np.all(seen, 0)).any()  # some genes are constant in some directions


def test_a_restart_of_the_price_list_says_the_same(priced):
    folder, result, again = priced
    assert "36 µm" in result["table"] and "left" in result["table"]
    next((folder / "shift").glob("vt00002_core.*")).unlink()
    assert again() == result
    with pytest.MonkeyPatch.context() as patched:  # V may have changed: the files that are there are not taken
        patched.setattr(scored, "truth_key", lambda section: section.id)
        patched.setattr(registration_cost, "_measure", lambda *words: pytest.fail("measured anew"))
        with pytest.raises(pytest.fail.Exception, match="anew"):
            again()
    draw_shift(folder / "shift.png", result)
    assert (folder / "shift.png").read_bytes()[:4] == b"\x89PNG"
    on_real = result | {"banner": VIRTUAL_BANNER}  # as of a virtual model on real tissue
    assert result["banner"] == "" and shift_table(on_real).split("\n", 1) == [VIRTUAL_BANNER, result["table"]]
    draw_shift(folder / "real.png", on_real)
    assert imread(folder / "real.png").shape[0] > imread(folder / "shift.png").shape[0]


def test_what_the_he_can_tell_is_of_all_sections_or_of_none(priced, monkeypatch):
    _, result, again = priced
    whole = registration_cost.score_sections

    def without_truth_in_the_first(*given, **more):
        scored = whole(*given, **more)
        for name in [name for name in scored.found[0] if "/reachable/" in name]:
            del scored.found[0][name]
        return scored

    monkeypatch.setattr(registration_cost, "score_sections", without_truth_in_the_first)
    for first in (0, 1):
        monkeypatch.setattr(registration_cost, "score_sections", lambda *given, first=first, **more: _turned(
            without_truth_in_the_first(*given, **more), first))  # fmt: skip
        less = again()["scores"]
        assert set(less["36"]) == {"model"} and set(less) == set(result["scores"])


def _turned(scored, first):
    """With the sections the other way round."""
    if first:
        scored.found.reverse()
    return scored


def test_what_cannot_be_moved_is_refused(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(registration_cost, "SHIFTS_UM", (0.0, 60.0))
    _, sections = sections_of(Oracle(corpus).provenance, corpus)
    refused(lambda: measure_registration_cost(Oracle(corpus), corpus, sections, tmp_path, CONFIG),
            "none of 2 sections has 16 bins of 36 µm that stay measured", "60 µm")  # fmt: skip
    refused(lambda: measure_registration_cost(Oracle(corpus), corpus, [], tmp_path, CONFIG), "no section of a patient")


def test_sections_with_nothing_to_be_scored_on_are_left_out_and_counted(tmp_path, monkeypatch):
    data = [tiny_section(name, name, seed) for seed, name in enumerate("ABC")]
    small = tiny_section("D", "D", 3, width_um=30.0)
    corpus = write_corpus(tmp_path / "c", [data[0], dataclasses.replace(data[1], detections=None), small,
                                           dataclasses.replace(data[2], he=None, he_um_per_px=None)])  # fmt: skip
    monkeypatch.setattr(registration_cost, "_LEAST_BINS", 4)

    class Scored(Exception):
        pass

    def scored_sections(job, measure, predictor, corpus, sections, *given, **more):
        raise Scored(job, [section.id for section in sections])

    monkeypatch.setattr(registration_cost, "score_sections", scored_sections)
    said = []
    with pytest.raises(Scored) as raised:
        measure_registration_cost(Oracle(corpus), corpus, corpus.sections, tmp_path, CONFIG, say=said.append)
    assert raised.value.args == ("shift", ["A"])
    assert said[0] == "shift: 2 sections are left out, without an H&E and detections (B, …)"
    assert said[1].startswith("shift: 1 sections are left out, without 4 bins of 36 µm") and "(D, …)" in said[1]
    refused(lambda: measure_finer(Oracle(corpus), corpus, corpus.sections, tmp_path, CONFIG, say=said.append),
            "none of 2 sections has virtual truth")  # fmt: skip
    assert said[2:] == ["finer: 2 sections are left out, without an H&E and detections (B, …)"]


def test_what_is_not_known_well_enough_is_left_out_and_spots_rank_nothing(corpus, tmp_path, monkeypatch):
    class Scored(Exception):
        pass

    def scored_sections(job, measure, predictor, corpus, sections, *given, **more):
        raise Scored(*(section.id for section in sections))

    sections = [copy.copy(section) for section in corpus.sections]
    sections[1].record = sections[1].record | {"quality": {"place_precision_um": 8.0}}  # Visium HD, squares of 8 µm
    said = []
    with monkeypatch.context() as patched, pytest.raises(Scored) as raised:
        patched.setattr(registration_cost, "score_sections", scored_sections)
        measure_registration_cost(Oracle(corpus), corpus, sections, tmp_path, CONFIG, say=said.append)
    assert sections[1].id not in raised.value.args and len(raised.value.args) == 2
    assert said == [f"shift: 1 sections are left out, without places that are known to 4.5 µm ({sections[1].id}, …)"]

    spotted = copy.copy(corpus.sections[0])
    spotted.record = spotted.record | {"arrays": ["he", "spots"]}
    ranked = []
    monkeypatch.setattr(scored, "rank_by_moran", lambda sections, genes: ranked.extend(sections) or np.ones(genes))
    scored.score_sections("shift", lambda *_: {"x": np.zeros(1)}, Oracle(corpus), corpus, corpus.sections[1:], tmp_path,
                          CONFIG, depends_on={}, ranked_on=[spotted, corpus.sections[1]], say=str)  # fmt: skip
    assert [section.id for section in ranked] == [corpus.sections[1].id]


def test_finer_readouts_leave_out_what_has_no_truth_and_what_is_too_small(corpus, tmp_path, monkeypatch):
    class Scored(Exception):
        pass

    def scored_sections(job, measure, predictor, corpus, sections, *given, **more):
        raise Scored(*(section.id for section in sections))

    monkeypatch.setattr(measure, "score_sections", scored_sections)
    sections = [copy.copy(section) for section in corpus.sections]
    for section, changed in zip(sections, ({"truth": False}, {"width_um": 40.0}, {}), strict=True):
        section.record = section.record | changed
    said = []
    with pytest.raises(Scored) as raised:
        measure_finer(Oracle(corpus), corpus, sections, tmp_path, CONFIG, say=said.append)
    assert raised.value.args == ("vt00002_core",)
    assert said == ["finer: 1 sections are left out, without virtual truth (vt00000_core, …)",
                    "finer: 1 sections are left out, without two bins of 36 µm a side (vt00001_core, …)"]  # fmt: skip


def test_genes_rank_by_their_moran(corpus):
    moran_G = rank_by_moran(corpus.sections, len(corpus.panel))
    assert moran_G.shape == (len(corpus.panel),) and np.nanmax(moran_G) > 0.3
