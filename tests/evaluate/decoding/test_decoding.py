"""Ways of decoding beside each other: scores that can be computed by hand, pairs, restarts, refusals, the commands."""

import copy
import json

import numpy as np
import pytest
import scipy.stats
from made_reader import made_reader
from refusals import refused
from skimage.io import imread
from tiny_tissue import PANEL, spot_section, write_corpus

import tario_jax
from tario_jax.cli.main import main
from tario_jax.config import InputError
from tario_jax.evaluate.decoding import measure as decoding
from tario_jax.evaluate.decoding import section as of_section
from tario_jax.evaluate.decoding.figure import decoding_tables, draw_decoding
from tario_jax.evaluate.decoding.measure import Asked, Gathered, gene_classes, genes_by_moran, measure_decoding
from tario_jax.evaluate.decoding.section import (
    CONDITIONS,
    Subject,
    Truth,
    measure_given,
    measure_steps,
    nearest_means,
    read_truth,
)
from tario_jax.evaluate.decoding.spread import POISSON
from tario_jax.evaluate.intervals import patient_resampling
from tario_jax.predict.condition import Condition, NothingAsked, predict_given
from tario_jax.predict.gene_validation import SPLIT_BY_SECTION
from tario_jax.predict.generate import Samples, Steps
from tario_jax.predict.maps import VIRTUAL_BANNER
from tario_jax.virtual.genes import curated_panel

GENES = np.random.default_rng(0).permutation(len(PANEL))
ASKED = Asked((4,), samples=2, given=("half", "panel", "no-he"), bin_um=18.0, overlap=0.0, min_total=60, bootstraps=50)


@pytest.fixture(scope="module")
def reader(tiny_run):
    return made_reader(tiny_run)


@pytest.fixture(scope="module")
def sections(tiny_corpus):
    return [tiny_corpus.section(name) for name in ("D1", "E1", "F1")]


def measured(reader, corpus, sections, folder, asked=ASKED, **more):
    return measure_decoding(reader, corpus, sections, GENES, asked, folder, **{"say": lambda line: None} | more)


@pytest.fixture(scope="module")
def done(reader, tiny_corpus, sections, tmp_path_factory):
    """The folder of a finished job, and its report."""
    folder = tmp_path_factory.mktemp("decoding")
    return folder, measured(reader, tiny_corpus, sections, folder)


def counted(section) -> np.ndarray:
    """Counts of the 18 µm bins that lie whole on a section of 180 × 150 µm, row by row, [80, G]."""
    found = section.all_detections()
    counts_NxG = np.zeros((8 * 10, len(PANEL)))
    column, row = (found.x_um_D // 18).astype(int), (found.y_um_D // 18).astype(int)
    inside = row < 8
    np.add.at(counts_NxG, (row[inside] * 10 + column[inside], found.gene_D[inside]), 1)
    return counts_NxG


def mean_r(x_NxG, p_NxG) -> float:
    return np.mean([np.corrcoef(x, p)[0, 1] for x, p in zip(x_NxG.T, p_NxG.T, strict=True)])


def test_one_shot_is_scored_as_by_hand(done, reader, sections):
    maps = [reader.predict_section(section, tissue="virtual", overlap=0.0).rates_NxG for section in sections]
    counts = [counted(section) for section in sections]
    one_shot = done[1]["ways"]["one-shot"]
    expected = np.mean([mean_r(x[:, GENES], p[:, GENES]) for x, p in zip(counts, maps, strict=True)])
    assert one_shot["counts_r"] == pytest.approx(expected, abs=1e-4)

    def composed(values):
        return np.log1p(1e4 * values / values.sum(1, keepdims=True))[:, GENES]

    def expected_composed(rates):
        n = np.arange(200)
        value_NxC = np.log1p(1e4 * n / rates.sum(1, dtype=np.float64)[:, None])
        chance = scipy.stats.poisson.pmf(n, rates[:, GENES, None].astype(np.float64))
        return (chance * value_NxC[:, None]).sum(2)

    pairs = [(x[kept], p[kept]) for x, p in zip(counts, maps, strict=True) for kept in [x.sum(1) >= 15]]
    expected = np.mean([mean_r(composed(x), expected_composed(p)) for x, p in pairs])
    assert one_shot["composition_r"] == pytest.approx(expected, abs=1e-4)
    below = sum((x.sum(1) < 15).sum() for x in counts)  # 60 of a bin of 36 µm
    assert done[1]["bins_below_min_total"] == below > 0 and f"{below} of too few counts" in decoding_tables(done[1])
    assert done[1]["bins"] == 240 and done[1]["sections"] == done[1]["patients"] == 3
    assert set(done[1]["ways"]) == {"one-shot", "4 steps, random"} == set(done[1]["seconds"])
    gain = done[1]["ways"]["4 steps, random"]["gain"]["counts_r"]
    assert gain["mean"] == pytest.approx(
        done[1]["ways"]["4 steps, random"]["counts_r"] - one_shot["counts_r"], abs=2e-6
    )
    assert gain["low"] <= gain["mean"] <= gain["high"]


def test_neighbours_are_the_eight_nearest_given_places(done):
    rng = np.random.default_rng(0)

    def places(number):
        return Truth(*rng.uniform(0, 500, (2, number)), 36.0, "square", rng.uniform(0.9, 1, number),
                     rng.poisson(3.0, (number, 4)).astype(float), rng.poisson(40.0, number).astype(float),
                     np.ones(4, bool))  # fmt: skip

    given, asked, few = places(60), places(30), places(3)
    for known, number in ((given, 8), (few, 3)):
        distance = np.hypot(asked.x_um_N[:, None] - known.x_um_N, asked.y_um_N[:, None] - known.y_um_N)
        near = np.argsort(distance, 1)[:, :number]
        counts, total = nearest_means(known, asked)
        np.testing.assert_allclose(counts, known.counts_Nxg[near].mean(1) * asked.share_N[:, None])
        np.testing.assert_allclose(total, known.total_N[near].mean(1) * asked.share_N)
    assert "neighbours" not in done[1]["given"]["panel"]  # no bin has any of the asked genes
    assert set(done[1]["given"]["no-he"]["model"]) >= {"counts_r", "gain over one-shot", "gain over neighbours"}


def subject_of(reader, corpus, section) -> Subject:
    return Subject(reader, corpus, section, read_truth(section, corpus, reader, GENES, 18.0), GENES, 18.0, 0.0, 60)


def test_of_too_few_places_the_same_readers_are_told_nothing(done, reader, tiny_corpus, sections, monkeypatch):
    monkeypatch.setattr(of_section, "_LEAST_BINS", 10**6)
    subject = subject_of(reader, tiny_corpus, sections[0])
    for name in ("panel", "half"):
        found = measure_given(subject, CONDITIONS[name], None, 4096)
        with np.load(done[0] / "sections" / "D1.npz") as held:
            known = {key.removeprefix(f"given {name}/") for key in held.files if key.startswith(f"given {name}/")}
        assert found.keys() == known and all(np.isnan(r_g).all() for r_g in found.values())


def test_a_section_that_is_given_whole_is_told_nothing_of(reader, tiny_corpus, sections, monkeypatch):
    """As one that is no wider than the first band of half of the tissue: the others are measured all the same."""
    monkeypatch.setattr(Condition, "given_bins", lambda condition, cover: np.ones(len(cover), bool))
    found = measure_given(subject_of(reader, tiny_corpus, sections[0]), CONDITIONS["half"], None, 4096)
    assert "neighbours/counts_r" in found and all(np.isnan(r_g).all() for r_g in found.values())
    with pytest.raises(NothingAsked, match="none is left to predict"):
        predict_given(reader, tiny_corpus, sections[0], CONDITIONS["half"], bin_um=18.0, overlap=0.0, capacity=4096)


def test_moran_of_rates_and_draws_is_of_the_genes_that_were_measured(reader, tiny_corpus, sections):
    subject = subject_of(reader, tiny_corpus, sections[0])
    truth = subject.truth
    truth.counts_Nxg[:, 1] = np.nan
    found = measure_steps(subject, Steps(1, 3), POISSON)
    for name in ("moran", "moran_drawn"):
        np.testing.assert_array_equal(np.isfinite(found[name]), np.isfinite(truth.spread(truth.counts_Nxg)))
    assert np.isnan(found["moran"][1]) and np.isfinite(found["moran_drawn"][0])


def test_sections_of_few_bins_are_left_out_and_counted(tiny_run, tiny_corpus, tmp_path, capsys):
    command = ["decode", f"--workdir={tiny_run}", f"--corpus={tiny_corpus.root}", f"--out={tmp_path}", "--steps=1"]
    assert main([*command, "--config.evaluate.min_bins=5000"]) == 2
    assert "evaluate.min_bins is 5000; the largest of" in capsys.readouterr().err
    assert main([*command, "--config.evaluate.top_genes=9"]) == 2
    assert "reads source, evaluate.overlap, evaluate.min_total, evaluate.min_bins and" in capsys.readouterr().err


def test_draws_of_bins_that_were_measured_in_part_are_of_that_part():
    """Poisson draws of whole bins are, of a share of them, Poisson of that share of the rate: the mixture's CRPS."""
    rng = np.random.default_rng(0)
    rate_Nxg, share_N = np.full((400, 3), 20.0), np.where(np.arange(400) < 200, 1.0, 0.4)
    samples = Samples(np.repeat(rate_Nxg[None], 60, 0).astype(np.float32),
                      rng.poisson(rate_Nxg, (60, 400, 3)).astype(np.float32), np.ones((400, 3)))  # fmt: skip
    counts_Nxg = rng.poisson(rate_Nxg * share_N[:, None]).astype(float)
    truth = Truth(np.arange(400.0), np.zeros(400), 36.0, "square", share_N, counts_Nxg, counts_Nxg.sum(1),
                  np.ones(3, bool))  # fmt: skip
    found = of_section._fit(truth, samples, np.arange(400), 0, POISSON)
    np.testing.assert_allclose(found["crps_drawn"], found["crps"], rtol=0.05)
    again = of_section._fit(truth, samples, np.arange(400), 0, POISSON)
    np.testing.assert_array_equal(again["crps_drawn"], found["crps_drawn"])


def test_given_genes_are_not_scored(done, reader, tiny_corpus, sections):
    with np.load(done[0] / "sections" / "F1.npz") as held:
        scored = np.isfinite(held["given panel/model/counts_r"])
        np.testing.assert_array_equal(scored, np.isfinite(held["given panel/one-shot/counts_r"]))
        assert np.isfinite(held["given half/model/counts_r"]).all()
    np.testing.assert_array_equal(scored, ~Condition("all").given_genes(len(PANEL))[GENES])
    assert 0 < scored.sum() < len(GENES)


def test_a_job_that_was_interrupted_ends_with_equal_tables(done, reader, tiny_corpus, sections, tmp_path, monkeypatch):
    def killed(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(reader, tiny_corpus, sections, tmp_path, say=killed)
    assert [path.name for path in (tmp_path / "sections").iterdir()] == ["D1.npz"]
    (tmp_path / "sections/E1.npz").write_bytes((tmp_path / "sections/D1.npz").read_bytes()[:900])  # a full disk
    measure, again = decoding._measure, []
    monkeypatch.setattr(decoding, "_measure", lambda *given: again.append(given[2].id) or measure(*given))
    report = measured(reader, tiny_corpus, sections, tmp_path)
    assert again == ["E1", "F1"]
    seconds = {"seconds": {}}
    assert json.dumps(report | seconds) == json.dumps(done[1] | seconds)


def test_an_order_that_is_unknown_is_refused_also_where_nothing_is_ordered():
    refused(lambda: Asked((1,), orders=("foo",)), "--order: holds 'foo'", "hilbert")


def test_scatter_is_fitted_once_and_covers_better_on_sections_it_was_not_fitted_on(done, reader, tiny_corpus, sections,
                                                                                   tmp_path):  # fmt: skip
    """Of tiny sections, whose counts scatter far more than Poisson's around what a model of a few steps says."""
    seen = []
    asked = Asked((1,), samples=2, bin_um=18.0, overlap=0.0, min_total=60, bootstraps=50)
    fitted_on = [tiny_corpus.section("A1")]
    found = measured(reader, tiny_corpus, sections, tmp_path, asked, fitted_on=fitted_on, say=seen.append)
    assert seen[0] == "decoding: scatter of counts around one-shot, from 1 sections of validation"
    of_way = found["ways"]["one-shot"]
    assert of_way["spread"]["bursts"] + of_way["spread"]["uncertain"] > 0.05
    assert of_way["crps"] < of_way["crps_poisson"]
    assert abs(of_way["covered_80"] - 0.8) < abs(of_way["covered_poisson_80"] - 0.8)
    assert "if counts were Poisson" in decoding_tables(found)
    again = []
    same = measured(reader, tiny_corpus, sections, tmp_path, asked, fitted_on=fitted_on, say=again.append)
    assert again == [] and same["ways"]["one-shot"]["spread"] == of_way["spread"]
    poisson = done[1]["ways"]["one-shot"]  # no sections of validation: nothing is known of the scatter
    assert set(poisson["spread"].values()) == {0.0} and poisson["crps"] == poisson["crps_poisson"]


def test_other_options_are_refused_in_a_folder_that_is_begun(done, reader, tiny_corpus, sections):
    folder, _ = done
    other = Asked((4,), samples=3, given=ASKED.given, bin_um=18.0, overlap=0.0, min_total=60, bootstraps=50)
    refused(lambda: measured(reader, tiny_corpus, sections, folder, other), "D1.npz", "other options", "--out")
    later = copy.copy(reader)
    later.checkpoint = "x"
    refused(lambda: measured(later, tiny_corpus, sections, folder), "another checkpoint")


def test_differences_are_of_the_same_sections_genes_and_patients():
    rng = np.random.default_rng(0)
    theirs = rng.normal(size=(4, 6))
    ours = theirs + 0.3
    ours[1, 2] = np.nan  # undefined on one side: out on both
    theirs[0] += 5.0
    ours[0] += 5.0
    sections = [{"a/counts_r": a, "b/counts_r": b} for a, b in zip(ours, theirs, strict=True)]
    found = Gathered(sections, patient_resampling(list("ppqr"), 200, rng)).gain("a/counts_r", "b/counts_r")
    assert found == {"mean": 0.3, "low": 0.3, "high": 0.3}
    assert Gathered(sections, None).gain("a/counts_r", "b/counts_r") == {"mean": 0.3}


def test_genes_are_ranked_by_what_was_measured(reader, tiny_corpus, sections):
    genes = genes_by_moran(reader, tiny_corpus, sections, 5)
    assert len(set(genes.tolist())) == 5
    assert len(genes_by_moran(reader, tiny_corpus, sections, 99)) == len(PANEL)


def test_classes_are_those_of_virtual_genes():
    symbols = [*curated_panel().symbols[:200], "GENE1"]
    classes = gene_classes(symbols)
    assert sum(len(own) for own in classes.values()) <= 200 and "type_marker" in classes
    assert all(len(own) >= 3 and own.max() < 200 for own in classes.values())


def test_tables_and_figure_hold_every_way(done, tmp_path):
    text = decoding_tables(done[1])
    for name in ("one-shot", "4 steps, random", "half: neighbours", "panel: model", "no-he: one-shot", "95 %"):
        assert name in text
    assert max(map(len, text.splitlines())) < 160
    draw_decoding(tmp_path / "new" / "decoding.png", done[1])
    assert (tmp_path / "new" / "decoding.png").read_bytes().startswith(b"\x89PNG")


def test_a_virtual_model_on_real_tissue_and_a_split_by_section_are_said_first(done, tmp_path):
    report = done[1] | {"banner": VIRTUAL_BANNER, "split_by": "section"}
    assert decoding_tables(report).splitlines()[:2] == [VIRTUAL_BANNER, SPLIT_BY_SECTION]
    assert done[1]["banner"] == "" and "Split by section" not in decoding_tables(done[1])
    draw_decoding(tmp_path / "with.png", report)
    draw_decoding(tmp_path / "without.png", done[1])
    with_it, without = (imread(tmp_path / f"{name}.png").shape[0] for name in ("with", "without"))
    assert with_it > without


def test_one_patient_has_no_interval_and_is_drawn_all_the_same(reader, tiny_corpus, sections, tmp_path):
    report = measured(reader, tiny_corpus, sections[:1], tmp_path)
    assert set(report["ways"]["4 steps, random"]["gain"]["counts_r"]) == {"mean"} and report["interval"] is None
    assert "one patient, no interval" in decoding_tables(report)
    draw_decoding(tmp_path / "decoding.png", report)


def test_a_side_of_bins_is_refused_of_spots(tiny_run, tmp_path, capsys):
    x_um, y_um = (part.ravel() for part in np.meshgrid(np.arange(5) * 33.0 + 15, np.arange(4) * 36.0 + 15))
    corpus = write_corpus(tmp_path / "spots", [spot_section("N1", "N", 0, x_um=x_um, y_um=y_um)])
    words = ["decode", f"--workdir={tiny_run}", f"--corpus={corpus.root}", f"--out={tmp_path / 'd'}", "--bin-um=36",
             "--config.evaluate.min_bins=8"]  # fmt: skip
    assert main([*words]) == 2
    assert "is measured in spots" in capsys.readouterr().err and not (tmp_path / "d").exists()


@pytest.mark.slow
def test_spots_are_compared_as_bins_are(reader, tmp_path):
    x_um, y_um = (part.ravel() for part in np.meshgrid(np.arange(5) * 36.0 + 15, np.arange(4) * 36.0 + 15))
    data = [spot_section(f"{patient}1", patient, seed, x_um=x_um, y_um=y_um) for seed, patient in enumerate("AB")]
    corpus = write_corpus(tmp_path / "spots", data)
    report = measured(reader, corpus, list(corpus.sections), tmp_path / "d")
    assert report["bins"] == 40 and report["given"]["half"]["neighbours"]["counts_r"] is not None
    assert report["ways"]["4 steps, random"]["counts_r"] is not None


def test_what_cannot_be_compared_is_refused_in_a_line(tiny_run, tiny_corpus, sections, tmp_path):
    one_shot = tario_jax.load(tiny_run)
    refused(lambda: measured(one_shot, tiny_corpus, sections, tmp_path), "trained one-shot")
    refused(lambda: Asked(given=("third",)), "'third'", "half, checkerboard, random, panel, coarse, no-he")
    with pytest.raises(InputError, match="spiral"):
        Asked(orders=("spiral",))


def test_the_command_writes_tables_of_a_model_that_reads_no_contents(tiny_run, tiny_corpus, tmp_path, capsys):
    given = [f"--workdir={tiny_run}", f"--corpus={tiny_corpus.root}", f"--out={tmp_path / 'd'}", "--genes=6"]
    assert main(["decode", *given, "--steps=1", "--samples=2", f"--json={tmp_path / 'd.json'}"]) == 0
    out = capsys.readouterr().out
    assert "one-shot" in out and "one patient, no interval" in out and "seconds a section" in out
    assert (tmp_path / "d" / "decoding.txt").read_text() in out
    report = json.loads((tmp_path / "d.json").read_text())
    assert report["genes"] == 6 and report["chosen"].endswith("training sections")
    assert main(["decode", *given, "--steps=4"]) == 2
    assert "trained one-shot" in capsys.readouterr().err
    for wrong, word in (("--steps=1,x", "'1,x'"), ("--given=all", "'all'"), ("--order=spiral", "'spiral'")):
        try:
            status = main(["decode", *given, wrong])
        except SystemExit as ended:
            status = ended.code
        assert status == 2 and word in capsys.readouterr().err
