"""The job: it goes on where it was interrupted, processes share it, and what it leaves says what it should."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats
from refusals import refused
from tiny_tissue import spot_section, tiny_section, write_corpus

from tario_jax.cli import main as cli
from tario_jax.config import Config, DataConfig, EvaluateConfig
from tario_jax.evaluate import job
from tario_jax.evaluate.bins import area_weights, grid_counts, grid_places, sparse_grid_counts
from tario_jax.evaluate.job import evaluate_checkpoint, headline_table, refuse_readings
from tario_jax.evaluate.kept import Kept
from tario_jax.evaluate.moran import morans_i, neighbour_weights
from tario_jax.evaluate.report import banners, render
from tario_jax.evaluate.score_file import read_scores
from tario_jax.predict.gene_validation import read_gene_validation

PATIENTS = 5


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Patients that the model has not seen."""
    sections = [tiny_section(f"N{k}", f"N{k}", 40 + k) for k in range(PATIENTS)]
    return write_corpus(tmp_path_factory.mktemp("others") / "c", sections)


@pytest.fixture(scope="module")
def config(predictor):
    return dataclasses.replace(predictor.provenance.config.evaluate, min_bins=8, top_genes=6, bootstraps=50,
                               examples=1)  # fmt: skip


@pytest.fixture(scope="module")
def whole(predictor, others, config, tmp_path_factory):
    """An evaluation without a break: its folder."""
    folder = tmp_path_factory.mktemp("whole")
    evaluate_checkpoint(predictor, others, config, folder, title="x", say=lambda line: None)
    return folder


def tables(folder):
    report = json.loads((folder / "report.json").read_text())
    report["headline"].pop("seconds")
    return report, (folder / "genes.tsv").read_text(), (folder / "validation.parquet").read_bytes()


@pytest.mark.parametrize("after", ["measure: 3", "truth and noise: 2", "predict: 4"])
def test_interrupted_and_started_again_the_tables_are_equal(
    predictor, others, config, whole, tmp_path, after, monkeypatch
):
    def say(line):
        if line.startswith(after):
            raise Interrupted

    with pytest.raises(Interrupted):
        evaluate_checkpoint(predictor, others, config, tmp_path, title="x", say=say)
    assert not (tmp_path / "report.json").exists()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    evaluate_checkpoint(predictor, others, config, tmp_path, title="x", say=lambda line: None)
    assert tables(tmp_path) == tables(whole)
    assert before and all(path.stat().st_mtime_ns == was for path, was in before.items())  # nothing was done twice


def test_the_headline_says_of_how_many_genes_it_is_and_what_was_not_judged(whole):
    report = json.loads((whole / "report.json").read_text())
    lines = headline_table(report).splitlines()
    assert report["headline"]["genes"] == 6 and any(line.startswith("spatial_r_top6 ") for line in lines)
    assert not any("top100" in line or "null genes" in line for line in lines)
    why = "no section has 40 bins of 200 counts"
    text = headline_table(report | {"null_class": {"not_judged": why}})
    assert f"{'null genes':<32} not judged, {why}" in text
    report |= {"null_class": {"not_judged": why}}
    assert f"not judged, {why}." in render(report, [], "x") and not any("Null" in line for line in banners(report))


def test_processes_share_the_work_and_each_has_the_whole_of_it(predictor, others, config, whole, tmp_path):
    made: list[list[str]] = []
    for part in ((2, 3), (1, 3), (3, 3)):
        lines: list[str] = []
        evaluate_checkpoint(predictor, others, config, tmp_path, title="x", part=part, say=lines.append)
        assert tables(tmp_path) == tables(whole)
        made.append(lines)


@pytest.mark.slow
def test_two_processes_at_once_write_equal_tables(cli_tario, tiny_run, others, tmp_path):
    import concurrent.futures

    command = ("evaluate", f"--workdir={tiny_run}", f"--corpus={others.root}", "--config.evaluate.min_bins=8")
    alone = cli_tario(*command, f"--out={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    with concurrent.futures.ThreadPoolExecutor() as pool:
        parts = list(pool.map(lambda k: cli_tario(*command, f"--out={tmp_path / 'two'}", f"--part={k}/2"), (1, 2)))
    assert [part.returncode for part in parts] == [0, 0], [part.stderr for part in parts]
    assert tables(tmp_path / "two") == tables(tmp_path / "alone")


def test_another_checkpoint_measures_the_sections_no_second_time(
    predictor, others, config, whole, tmp_path, monkeypatch
):
    kept = tmp_path / "kept"
    evaluate_checkpoint(predictor, others, config, tmp_path / "one", title="x", shared=kept, say=lambda line: None)
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*.npz")}
    other = predictor.of_step(predictor.parameters, predictor.calibration, "another")
    evaluate_checkpoint(other, others, config, tmp_path / "two", title="x", shared=kept, say=lambda line: None)
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*.npz")} == before
    assert tables(tmp_path / "one") == tables(whole)


def test_other_settings_are_worked_out_anew(predictor, others, config, whole, tmp_path):
    left_out = []
    for min_total in (config.min_total, 92, 40_000):  # of none of the bins are so many left that anything is ranked
        changed = dataclasses.replace(config, min_total=min_total)
        evaluate_checkpoint(predictor, others, changed, tmp_path, title="x", say=lambda line: None)
        left_out.append(tables(tmp_path)[0]["skipped"]["bins_below_min_total"])
    assert left_out[0] < left_out[1] < left_out[2] == tables(whole)[0]["sections"]["held_out_bins"]


def test_scores_are_those_of_a_plain_loop(predictor, others, whole):
    scores = read_scores(whole / "scores.npz")
    assert scores.sections == tuple(f"N{k}" for k in range(PATIENTS)) and scores.gene_class == ("",) * 12
    for s, name in enumerate(scores.sections):
        section = others.section(name)
        maps = predictor.predict_section(section, tissue="virtual", overlap=0.5)
        columns = int(section.width_um / 18 + 1e-6)
        rows = int(section.height_um / 18 + 1e-6)
        counts_NxG = grid_counts(section.all_detections(), 12, columns, rows, 18.0)
        x, y = grid_places(columns, rows, 18.0)
        at = [int(np.argmin(np.hypot(maps.x_um_N - a, maps.y_um_N - b))) for a, b in zip(x, y, strict=True)]
        for g, symbol in enumerate(scores.symbols):
            column = predictor.panel.index[symbol]
            r = scipy.stats.pearsonr(counts_NxG[:, column], maps.rates_NxG[at, column]).statistic
            assert scores.r["model", "counts"][s, g] == pytest.approx(r, abs=1e-5)
        told_NxG = maps.rates_NxG[at].astype(np.float64)
        share_NxG = told_NxG / told_NxG.sum(1, keepdims=True)
        nats = -(counts_NxG * np.log(share_NxG)).sum() / counts_NxG.sum()
        assert scores.gene_nats_S[s] == pytest.approx(nats, rel=1e-6)
        totals_N = told_NxG.sum(1)
        nats = -scipy.stats.poisson.logpmf(counts_NxG.sum(1), totals_N).sum() / counts_NxG.sum()
        assert scores.total_nats_S[s] == pytest.approx(nats, rel=1e-6)


def test_maps_carry_what_is_known_of_each_gene(predictor, others, whole, tmp_path):
    anndata = pytest.importorskip("anndata")
    found = read_gene_validation(whole / "validation.parquet")
    assert found.cohorts == ("all", "LUAD") and found.patients_C.tolist() == [PATIENTS] * 2
    assert found.for_model(predictor.panel.hash, predictor.checkpoint) is found
    refused(lambda: found.for_model(predictor.panel.hash, "1-0"), "checkpoint", "1-0")
    refused(lambda: found.of("BRCA", ("GENE0",)), "cohort 'BRCA'", "all, LUAD")
    maps = predictor.predict_section(others.section("N0"), tissue="virtual")
    assert "nothing" in maps.metadata()["validated_on"] and not maps.gene_columns()
    maps = dataclasses.replace(maps, validation=found)
    maps.write_h5ad(tmp_path / "maps.h5ad")
    read = anndata.read_h5ad(tmp_path / "maps.h5ad")
    scores = read_scores(whole / "scores.npz")
    mean_r = scores.r["model", "counts"].mean(0)
    for symbol, r in zip(scores.symbols, mean_r, strict=True):
        assert read.var.loc[symbol, "held_out_r_all"] == pytest.approx(r, abs=1e-5)
    assert read.var["validated_LUAD"].dtype == bool and read.uns["tario"]["validated_on"].startswith(
        "bins of 18 µm: all: 5 patients"
    )
    about = read.uns["tario"]
    assert (about["validation_corpus_seal"], about["validation_split_by"]) == (others.seal, found.about["split_by"])
    maps.write_table(tmp_path / "maps.tsv")
    lines = (tmp_path / "maps.genes.tsv").read_text().splitlines()
    assert len(lines) == 13 and lines[0].startswith("symbol\theld_out_r_all")


def test_fine_bins_are_read_and_summed_up(predictor, others, config, tiny_run, tmp_path, capsys):
    evaluation = evaluate_checkpoint(predictor, others, config, tmp_path, title="x", bin_um=36.0, read_um=18.0,
                                     say=lambda line: None)  # fmt: skip
    assert (evaluation.report["bin_um"], evaluation.report["read_um"]) == (36.0, 18.0)
    assert "bins of 36 µm, predicted at 18 µm and summed up)" in (tmp_path / "report.html").read_text()
    scores = read_scores(tmp_path / "scores.npz")
    assert (scores.bin_um, scores.read_um) == (36.0, 18.0)
    section = others.section("N0")
    maps = predictor.predict_section(section, tissue="virtual", bin_um=18.0)
    column = predictor.panel.index["GENE0"]
    sums = np.zeros((4, 5))
    for x, y, rate in zip(maps.x_um_N, maps.y_um_N, maps.rates_NxG[:, column], strict=True):
        if x < 180 and y < 144:
            sums[int(y // 36), int(x // 36)] += rate
    counts = grid_counts(section.all_detections(), 12, 5, 4, 36.0)[:, column]
    r = scipy.stats.pearsonr(counts, sums.ravel()).statistic
    assert scores.r["model", "counts"][0, scores.symbols.index("GENE0")] == pytest.approx(r, abs=1e-5)
    refused(lambda: evaluate_checkpoint(predictor, others, config, tmp_path, title="x", bin_um=18.0, read_um=36.0),
            "--read-um=36", "18 µm")  # fmt: skip
    refuse_readings(predictor, others, dataclasses.replace(config, read_um=(36.0,)), 36.0)  # whatever side was trained
    asked = [f"--{name}={value}" for name, value in (("corpus", others.root), ("out", tmp_path / "none"))]
    asked += [f"--workdir={tiny_run}", "--bin-um=9", "--config.evaluate.read_um=(18.0,)"]
    assert cli.main(["evaluate", *asked]) == 2
    error = capsys.readouterr().err
    assert "evaluate.read_um holds 18" in error and "read_um=()" in error and not (tmp_path / "none").exists()
    # the config says the same: the model, of bins of 18 µm, is read at these
    coarse = dataclasses.replace(config, bin_um=36.0)
    said = evaluate_checkpoint(predictor, others, coarse, tmp_path / "said", title="x", say=lambda line: None)
    assert (said.report["bin_um"], said.report["read_um"]) == (36.0, predictor.provenance.bin_um) == (36.0, 18.0)
    np.testing.assert_array_equal(read_scores(tmp_path / "said/scores.npz").r["model", "counts"],
                                  scores.r["model", "counts"])  # fmt: skip
    refused(lambda: Config(data=DataConfig(bin_um=36.0), evaluate=EvaluateConfig(bin_um=18.0)),
            "evaluate.bin_um is 18.0", "at least data.bin_um = 36.0")  # fmt: skip


def test_genes_are_ranked_on_bins_of_36_um_whatever_is_evaluated(predictor, others, config, whole, tmp_path):
    reports = {}
    for bin_um in (18.0, 36.0):
        folder = tmp_path / f"{bin_um:g}"
        found = evaluate_checkpoint(predictor, others, config, folder, title="x", bin_um=bin_um, say=lambda line: None)
        reports[bin_um] = found.report
        assert found.report["ranked_bin_um"] == 36.0
        assert "ranked on held-out sections by bins of 36 µm" in (folder / "report.html").read_text()
    tables = [read_scores(tmp_path / side / "scores.npz") for side in ("18", "36")]
    np.testing.assert_array_equal(tables[0].moran_G, tables[1].moran_G)
    x_um_N, y_um_N = grid_places(5, 4, 36.0)
    morans = [morans_i(grid_counts(section.all_detections(), 12, 5, 4, 36.0),
                       neighbour_weights(x_um_N, y_um_N, 36.0, "square")) for section in others.sections]  # fmt: skip
    np.testing.assert_allclose(tables[0].moran_G, np.mean(morans, 0), atol=1e-6)
    by_sides = [found["sections"]["held_out_bins"] for found in reports.values()]
    assert by_sides[0] == 4 * by_sides[1]  # what is evaluated are bins of 18 µm


def test_a_damaged_table_of_genes_is_told_in_a_line(whole, tmp_path):
    held = (whole / "validation.parquet").read_bytes()
    for cut in range(50, len(held), 97):
        (tmp_path / "validation.parquet").write_bytes(held[: cut // 2] + held[cut:])
        refused(lambda: read_gene_validation(tmp_path / "validation.parquet"), "no validation table")


def test_sections_without_an_h_and_e_or_counts_are_counted(predictor, config, tmp_path):
    sections = [tiny_section(f"N{k}", f"N{k}", 40 + k) for k in range(4)]
    sections[1] = dataclasses.replace(sections[1], he=None, he_um_per_px=None)
    sections[3] = dataclasses.replace(sections[3], detections=None)
    corpus, lines = write_corpus(tmp_path / "c", sections), []
    report = evaluate_checkpoint(predictor, corpus, config, tmp_path / "o", title="x", say=lines.append).report
    assert report["skipped"]["sections_without_he"] == ["N1"] and report["sections"]["held_out"] == 2
    assert report["skipped"]["sections_without_counts"] == ["N3"]
    page = (tmp_path / "o/report.html").read_text()
    for what, name in (("H&E", "N1"), ("counts", "N3")):
        assert any(f"1 held-out sections have no {what} and are left out ({name}" in line for line in lines)
    assert "Held-out sections without an H&amp;E: N1" in page and "Held-out sections without counts: N3" in page
    alone = write_corpus(tmp_path / "alone", [sections[3]])
    refused(lambda: evaluate_checkpoint(predictor, alone, config, tmp_path / "p", title="x", say=lines.append),
            "none of 1 held-out sections has both an H&E and counts", "'tario predict'")  # fmt: skip


def test_counts_of_spots_are_let_go_of_once_they_are_measured(predictor, config, tmp_path):
    x_um, y_um = (part.ravel() for part in np.meshgrid(np.arange(5) * 33.0 + 15, np.arange(4) * 36.0 + 15))
    sections = [spot_section(f"N{k}", f"N{k}", 40 + k, x_um=x_um, y_um=y_um) for k in range(2)]
    corpus = write_corpus(tmp_path / "c", sections)
    report = evaluate_checkpoint(predictor, corpus, config, tmp_path / "o", title="x", say=lambda line: None).report
    assert report["sections"]["held_out"] == 2 and report["bin_um"] is None
    assert not any("spots" in vars(section) for section in corpus.sections)


def test_the_density_lines_are_fitted_on_sections_from_the_first_to_the_last(predictor, tiny_corpus, config, tmp_path,
                                                                             monkeypatch):  # fmt: skip
    monkeypatch.setattr(job, "_DENSITY_SECTIONS", 2)
    evaluate_checkpoint(predictor, tiny_corpus, config, tmp_path, title="x", say=lambda line: None)
    assert {path.name.split(".")[0] for path in (tmp_path / "kept/total").iterdir()} == {"A1", "D1"}


@pytest.mark.parametrize(("field", "value"), [("examples", -1), ("min_detected", 2.0), ("min_total", -1), ("seed", -1),
                                              ("bootstraps", 1)])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(field, value):
    refused(lambda: EvaluateConfig(**{field: value}), f"evaluate.{field} is {value}")


def test_bins_that_do_not_nest_are_shared_by_area():
    weights = area_weights(grid_places(4, 4, 18.0), 18.0, grid_places(2, 2, 36.0), 36.0).toarray()
    assert set(np.unique(weights)) == {0.0, 1.0} and (weights.sum(1) == 4).all()
    fine, coarse = grid_places(10, 10, 18.0), grid_places(5, 5, 35.0)
    weights = area_weights(fine, 18.0, coarse, 35.0)
    np.testing.assert_allclose(weights @ np.ones(100), (35 / 18) ** 2)
    # a square of 35 µm holds the first square of 18 µm whole and 17 of 18 µm of the next
    assert weights.toarray()[0, :2].tolist() == pytest.approx([1.0, 17 / 18])


def test_sparse_counts_are_those_of_the_grid(others):
    found = others.section("N1").all_detections()
    dense = grid_counts(found, 12, 10, 8, 18.0)
    np.testing.assert_array_equal(sparse_grid_counts(found, 12, 10, 8, 18.0).toarray(), dense)


def test_kept_of_a_folder_that_cannot_be_written_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as raised:
        Kept(tmp_path / "file").get("a/b", "key", lambda: {"a": np.zeros(1)})
    assert "file" in str(raised.value.filename)
