"""evaluate() from end to end on tissue whose answer is known, the figures, and the page."""

import dataclasses
import json
import re

import numpy as np
import pytest
import scipy.sparse

from tario_jax.config import EvaluateConfig, InputError
from tario_jax.evaluate.bulk import bulk_report, pool
from tario_jax.evaluate.map_figures import Look
from tario_jax.evaluate.report import write_report
from tario_jax.evaluate.report_figures import draw_figures
from tario_jax.evaluate.section_bins import SectionBins, SectionSource
from tario_jax.evaluate.tables import evaluate

GENES, SIDE = 40, 9
SYMBOLS = tuple(f"GENE{g}" for g in range(GENES))
CONFIG = EvaluateConfig(top_genes=15, mean_genes=20, bootstraps=200, min_total=20)


@dataclasses.dataclass(frozen=True)
class Tissue:
    """A section with all that is known of it."""

    section_id: str
    patient_id: str
    cohort: str
    x_um_N: np.ndarray
    y_um_N: np.ndarray
    pitch_um: float
    layout: str
    counts_NxG: np.ndarray
    features_NxF: np.ndarray
    nuclear_density_N: np.ndarray
    measured_gene_G: np.ndarray
    rates_NxG: np.ndarray | None
    true_rate_NxG: np.ndarray | None
    reachable_NxG: np.ndarray | None

    def __len__(self):
        return len(self.x_um_N)

    @property
    def bins(self) -> SectionBins:
        return SectionBins(
            self.section_id, self.patient_id, self.cohort, self.x_um_N, self.y_um_N, self.pitch_um, self.layout,
            scipy.sparse.csr_array(self.counts_NxG), self.features_NxF, self.nuclear_density_N, self.measured_gene_G,
        )  # fmt: skip

    @property
    def source(self) -> SectionSource:
        return SectionSource(
            self.section_id, self.patient_id, self.cohort, lambda: self.bins,
            None if self.rates_NxG is None else lambda: self.rates_NxG.__getitem__,
            None if self.true_rate_NxG is None else lambda: (self.true_rate_NxG, self.reachable_NxG),
        )  # fmt: skip


def make_section(number, rng, cohort="lung", layout="square", pitch=36.0):
    """Three smooth programmes; the H&E (features, V) shows two of them, the last 8 genes follow the hidden one."""
    x, y = (v.ravel() for v in np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5))
    waves = np.stack([np.sin(rng.uniform(0.4, 0.9) * (x * np.cos(a) + y * np.sin(a)) + rng.uniform(0, 6))
                      for a in rng.uniform(0, 6, 3)], 1)  # fmt: skip
    fixed = np.random.default_rng(99)
    loading = fixed.normal(0, 0.7, (3, GENES))
    loading[2, :-8], loading[:2, -8:] = 0, 0
    base = fixed.gamma(2.0, 3.0, GENES)
    shift = rng.normal(0, 0.3, 2)  # of the patient: what bulk correlation can find
    density = np.exp(0.3 * waves[:, 0])
    seen = np.concatenate([waves[:, :2] + shift, np.zeros((len(x), 1))], 1)
    full = seen + np.stack([np.zeros(len(x)), np.zeros(len(x)), waves[:, 2]], 1)
    true_rate, reachable = (density[:, None] * base * np.exp(z @ loading) for z in (full, seen))
    features = np.concatenate([seen[:, :2], np.exp(seen[:, :2]), rng.normal(size=(len(x), 3))], 1)
    return Tissue(
        f"s{number}", f"p{number}", cohort, x * pitch, y * pitch, pitch, layout,
        rng.poisson(true_rate).astype(np.float32), features.astype(np.float32), density,
        np.ones(GENES, bool), reachable.astype(np.float32), true_rate, reachable,
    )  # fmt: skip


def make_split(train=12, held_out=12, **more):
    rng = np.random.default_rng(5)
    sections = [make_section(k, rng, **more) for k in range(train + held_out)]
    return sections[:train], sections[train:]


def run(train, held_out, config=CONFIG, symbols=SYMBOLS, **more):
    named = {"trained_on": "virtual", "corpus_kind": "virtual", "split_by": "patient", **more}
    sources = ([section.source for section in side] for side in (train, held_out))
    return evaluate(*sources, symbols, config, **named)


@pytest.fixture(scope="module")
def split():
    return make_split()


@pytest.fixture(scope="module")
def perfect(split):
    """The prediction is V itself: the best that any H&E model can do."""
    return run(*split)


def test_a_perfect_h_and_e_predictor_has_a_share_of_one(perfect):
    entry = perfect.report["sets"]["top_moran"]
    for form in ("counts", "composition", "residual"):
        assert entry["share_of_reachable"][form]["share"] == pytest.approx(1.0, abs=1e-6)
    assert perfect.report["headline"]["share_of_reachable_top100"] == pytest.approx(1.0, abs=1e-6)


def test_predicting_the_true_rate_reaches_the_noise_ceiling(split):
    train, held_out = split
    told = [dataclasses.replace(s, rates_NxG=s.true_rate_NxG.astype(np.float32)) for s in held_out]
    methods = run(train, told).report["sets"]["top_moran"]["methods"]
    for form, off in (("counts", 0.02), ("composition", 0.05), ("residual", 0.05)):
        assert methods["model"][form]["mean_r"] == pytest.approx(methods["ceiling"][form]["mean_r"], abs=off)
        assert methods["model"][form]["mean_r"] == pytest.approx(methods["true_rate"][form]["mean_r"], abs=1e-5)


def test_headline_equals_a_plain_loop_over_sections_and_genes(split, perfect):
    _, held_out = split
    genes = [SYMBOLS.index(symbol) for symbol in perfect.report["sets"]["top_moran"]["symbols"]]
    r = [np.mean([np.corrcoef(s.counts_NxG[:, g], s.rates_NxG[:, g])[0, 1] for s in held_out]) for g in genes]
    headline = perfect.report["headline"]
    assert headline["spatial_r_top100"] == pytest.approx(np.mean(r), abs=1e-5)
    assert headline["genes"] == 15
    density = [np.mean([np.corrcoef(s.counts_NxG[:, g], s.nuclear_density_N)[0, 1] for s in held_out]) for g in genes]
    assert headline["density_r_top100"] == pytest.approx(np.mean(density), abs=1e-5)


def test_controls_are_ordered_as_they_must_be(perfect):
    for form in ("counts", "composition"):
        m = {k: v[form]["mean_r"] for k, v in perfect.report["sets"]["top_moran"]["methods"].items() if form in v}
        assert m["ceiling"] + 0.03 > m["model"] > m["ridge"] > m["nuclear_density"]  # the ceiling is an estimate
        assert m["model"] > m["displaced_1"] + 0.02 and m["displaced_1"] > m["displaced_2"] + 0.05
        assert m["mean_composition"] == 0
    shuffled = perfect.report["sets"]["top_moran"]["methods"]["shuffled"]["counts"]
    assert abs(shuffled["mean_r"]) < 0.25 and shuffled["sd"] > 0 and shuffled["runs"] == 10
    gain = perfect.report["sets"]["top_moran"]["differences"]["model_minus_own_density"]["counts"]
    assert gain["low"] > 0 and gain["low"] < gain["mean_r"] < gain["high"]


def test_displacement_equals_a_plain_loop_over_the_four_directions(split, perfect):
    _, held_out = split
    genes = [SYMBOLS.index(symbol) for symbol in perfect.report["sets"]["top_moran"]["symbols"]]
    r = []
    for s in held_out:
        x, p = (v.reshape(SIDE, SIDE, GENES) for v in (s.counts_NxG, s.rates_NxG))
        pairs = [(x[:, :-2], p[:, 2:]), (x[:, 2:], p[:, :-2]), (x[:-2], p[2:]), (x[2:], p[:-2])]
        r += [[np.corrcoef(a[..., g].ravel(), b[..., g].ravel())[0, 1] for a, b in pairs] for g in genes]
    displaced = perfect.report["sets"]["top_moran"]["methods"]["displaced_2"]["counts"]["mean_r"]
    assert displaced == pytest.approx(np.mean(r), abs=1e-5)


@pytest.mark.parametrize("pitches", [1, 2])
def test_a_difference_to_displacement_is_over_the_same_bins_in_each_direction(split, perfect, pitches):
    entry, differences = perfect.report["sets"]["top_moran"], []
    genes = [SYMBOLS.index(symbol) for symbol in entry["symbols"]]
    first, last = (slice(None, -pitches), slice(None)), (slice(pitches, None), slice(None))
    for s in split[1]:
        x, p = (v.reshape(SIDE, SIDE, GENES) for v in (s.counts_NxG, s.rates_NxG))
        for here, there in ((first, last), (last, first), (first[::-1], last[::-1]), (last[::-1], first[::-1])):
            differences += [[np.corrcoef(x[here][..., g].ravel(), p[at][..., g].ravel())[0, 1] for at in (here, there)]
                            for g in genes]  # fmt: skip
    own, displaced = np.mean(differences, 0)
    found = entry["differences"][f"model_minus_displaced_{pitches}"]["counts"]
    assert found["mean_r"] == pytest.approx(own - displaced, abs=1e-5) and found["low"] < found["mean_r"]
    assert abs(found["mean_r"] - (entry["methods"]["model"]["counts"]["mean_r"] - displaced)) > 1e-4


def test_bulk_is_within_cohorts_and_the_pooled_figure_is_apart():
    rng = np.random.default_rng(6)
    cohorts = ["lung"] * 10 + ["colon"] * 10
    level = np.where(np.array(cohorts) == "colon", 30.0, 3.0)[:, None]  # of cancer type: not the model's merit
    truth, predicted = (level + rng.normal(0, 0.1, (20, 300)) for _ in range(2))
    total = np.full(20, 1000.0)
    models = {"model": (predicted, total)}
    report, by_gene = bulk_report((truth, total), models, np.full(300, 1e-2), {}, cohorts, 50, rng)
    assert abs(report["counts"]["model"]) < 0.1
    assert report["pooled"]["counts"]["model"] > 0.99
    assert set(by_gene) == {"lung/model", "colon/model"}


def test_bulk_does_not_tell_patients_apart_by_what_their_panels_hold():
    """Ten patients of 200 genes and ten of which 100 were measured, one and the same prediction for all of them."""
    rng = np.random.default_rng(3)
    few_G = np.arange(200) < 100
    rate_G = rng.gamma(2.0, 1.0, 200)
    arrays = []
    for patient in range(20):
        measured_G = few_G if patient >= 10 else np.ones(200, bool)
        arrays.append({"patient": f"P{patient:02}", "number": 50, "measured": measured_G})
        for name, sum_G in (("measured", rng.poisson(50 * rate_G)), ("model", 50 * rate_G)):
            arrays[-1] |= {f"bulk/{name}": sum_G * measured_G, f"bulk_total/{name}": (sum_G * measured_G).sum()}
    patients = [of["patient"] for of in arrays]

    def r(one_panel: bool, of=arrays) -> float:
        truth, model = (pool(of, name, patients[: len(of)], one_panel=one_panel) for name in ("measured", "model"))
        report, _ = bulk_report(truth, {"model": model}, np.full(200, 1 / 200), {}, ["lung"] * len(of), 50, rng)
        return report["log_cpm"]["model"]

    assert r(one_panel=True) > 0.5  # what totals over panels of their own would say
    assert abs(r(one_panel=False)) < 1e-6  # a constant prediction says nothing
    values, total = pool(arrays, "model", patients, one_panel=False)
    np.testing.assert_allclose(total, rate_G[few_G].sum())
    assert np.isnan(values[10:, ~few_G]).all() and r(one_panel=True, of=arrays[:10]) == 0


def test_a_model_that_knows_only_density_has_no_skill_above_its_control(split):
    train, held_out = split
    share = np.mean([s.counts_NxG.sum(0) / s.counts_NxG.sum() for s in train], 0)
    both = (*train, *held_out)
    flat = [dataclasses.replace(s, rates_NxG=s.reachable_NxG.sum(1, keepdims=True) * share) for s in both]
    entry = run(flat[: len(train)], flat[len(train) :]).report["sets"]["top_moran"]
    assert entry["methods"]["model"]["counts"]["mean_r"] > 0.05
    assert entry["methods"]["model"]["residual"]["mean_r"] == 0
    assert entry["methods"]["model_rates"]["composition"]["mean_r"] == 0
    gain = entry["differences"]["model_minus_own_density"]
    assert max(abs(gain["counts"][key]) for key in ("mean_r", "low", "high")) < 1e-5
    # a line fitted to the composition itself follows the depth at least as well as what a density expects of it
    assert gain["composition"]["mean_r"] < 0.02


def test_genes_are_ranked_on_training_sections_alone(split, perfect):
    train, held_out = split
    other = [dataclasses.replace(s, counts_NxG=np.random.default_rng(0).permuted(s.counts_NxG, axis=0))
             for s in held_out]  # fmt: skip
    for name, entry in run(train, other).report["sets"].items():
        assert entry["symbols"] == perfect.report["sets"][name]["symbols"]


def test_missing_prediction_is_zero_and_unmeasured_or_constant_genes_are_left_out(split):
    train, held_out = split
    counts = held_out[0].counts_NxG.copy()
    counts[:, 3] = 0
    seen = np.arange(GENES) != 4
    none = [dataclasses.replace(s, rates_NxG=None) for s in held_out[1:]]
    first = dataclasses.replace(held_out[0], counts_NxG=counts, measured_gene_G=seen,
                                rates_NxG=np.where(np.arange(GENES) == 5, np.nan, held_out[0].rates_NxG))  # fmt: skip
    report = run(train, [first, *none]).report
    assert report["skipped"]["constant_gene_sections"] == 2
    assert len(report["skipped"]["sections_without_prediction"]) == 11
    table = run(train, [first, first.__class__(**{**vars(first), "section_id": "again"})], split_by="section").genes
    r = dict(zip(table["symbol"], table["model_counts_r"], strict=True))
    assert np.isnan(r["GENE3"]) and "GENE4" not in r and r["GENE5"] == 0 and r["GENE6"] != 0


def test_small_sections_are_skipped_and_counted_and_none_left_is_an_error(split):
    train, held_out = split

    def cut(s, n):
        fields = {name: value[:n] for name, value in vars(s).items()
                  if isinstance(value, np.ndarray) and len(value) == len(s) and name != "measured_gene_G"}  # fmt: skip
        return dataclasses.replace(s, **fields)

    empty, one = cut(held_out[0], 0), cut(held_out[1], 1)
    report = run(train, [empty, one, *held_out[2:]]).report
    assert report["skipped"]["held_out_sections"] == 2
    assert [s["bins"] for s in report["skipped"]["sections"]] == [0, 1]
    with pytest.raises(InputError, match="min_bins is 32; the largest of 2 held-out sections has 1 bins"):
        run(train, [empty, one])


def test_a_patient_on_both_sides_is_refused_unless_split_by_section(split):
    train, held_out = split
    with pytest.raises(InputError, match="patient 'p0' is in training and held out"):
        run(train, [train[0], *held_out])
    assert run(train[1:], [train[0]], split_by="section").report["split_by"] == "section"


def test_one_section_gets_block_intervals_and_many_patients_a_patient_bootstrap(split, perfect):
    train, held_out = split
    assert perfect.report["interval"]["kind"] == "patient bootstrap"
    assert perfect.report["interval"]["patients"] == 12
    report = run(train, held_out[:1]).report
    assert report["interval"]["kind"] == "block interval"
    model = report["sets"]["top_moran"]["methods"]["model"]["counts"]
    assert model["low"] < model["mean_r"] < model["high"]
    assert report["headline"]["bulk_r"] is None


def test_bulk_needs_ten_patients_and_finds_the_patients_shift(split, perfect):
    lung = perfect.report["bulk"]["by_cohort"]["lung"]
    assert lung["log_cpm"]["model"]["r"] > 0.4 and lung["log_cpm"]["total_only"]["r"] == 0
    assert lung["log_cpm"]["model"]["low"] < lung["log_cpm"]["model"]["r"] < lung["log_cpm"]["model"]["high"]
    _, held_out = split
    patients = sorted(s.patient_id for s in held_out)
    by_id = {s.patient_id: s for s in held_out}
    x, p = (np.stack([getattr(by_id[k], name).mean(0) for k in patients]) for name in ("counts_NxG", "rates_NxG"))
    r = [np.corrcoef(x[:, g], p[:, g])[0, 1] for g in range(GENES)]
    assert lung["counts"]["model"]["r"] == pytest.approx(np.mean(r), abs=1e-5)
    train, _ = split
    few = run(train, held_out[:9]).report
    assert "9 held-out patients" in few["bulk"]["by_cohort"]["lung"]["not_estimable"]


def test_without_training_sections_genes_rank_on_the_truth_and_it_says_so(split):
    report = run([], split[1]).report
    assert report["ranked_on"] == "held-out sections"
    assert report["headline"]["ridge_r_top100"] is None and report["headline"]["spatial_r_top100"] > 0.3


def test_a_truth_of_some_sections_is_no_method_of_all(split):
    train, held_out = split
    some = [held_out[0], *(dataclasses.replace(s, true_rate_NxG=None, reachable_NxG=None) for s in held_out[1:])]
    bulk = run(train, some).report["bulk"]["by_cohort"]["lung"]["counts"]
    assert "model" in bulk and "reachable" not in bulk


def test_ranking_asks_for_bins_enough_of_those_that_it_is_of(split):
    """Training sections in few bins of 36 µm, be they many at the side that is evaluated."""
    train, held_out = split

    def ranked_by(few: int, bins: int) -> dict:
        """The first `few` training sections hold no more than so many bins of those that genes are ranked on."""
        sources = []
        for k, s in enumerate(train):
            fields = vars(s) | {name: vars(s)[name][:bins] for name in ("x_um_N", "y_um_N", "counts_NxG",
                                                                      "features_NxF", "nuclear_density_N")}  # fmt: skip
            own = dataclasses.replace(s.source, key=s.section_id)
            small = dataclasses.replace(Tissue(**fields).source, key=f"{s.section_id} small")
            sources.append(dataclasses.replace(own, ranked=small if k < few else own))
        return evaluate(sources, [s.source for s in held_out], SYMBOLS, CONFIG, trained_on="virtual",
                        corpus_kind="virtual", split_by="patient").report  # fmt: skip

    some, every = ranked_by(5, 16), ranked_by(12, 16)
    assert some["sections"]["train"] == every["sections"]["train"] == 12
    assert some["ranking_sections"] == 7 and every["ranking_sections"] == 12  # rather few bins than held-out ones
    assert some["ranked_on"] == every["ranked_on"] == "training sections"


def test_genes_may_be_ranked_on_the_test_truth_for_published_curves(split, perfect):
    train, held_out = split
    other = [dataclasses.replace(s, counts_NxG=np.random.default_rng(0).permuted(s.counts_NxG, axis=0)) for s in train]
    config = dataclasses.replace(CONFIG, ranked_on="held_out")
    report = run(other, held_out, config).report
    assert report["ranked_on"] == "held-out sections" and report["headline"]["ridge_r_top100"] is not None
    assert report["sets"]["top_moran"]["symbols"] == run([], held_out).report["sets"]["top_moran"]["symbols"]


def test_rare_genes_do_not_enter_a_moran_ranking(split):
    train, held_out = split
    corner_NxG = (np.arange(GENES) == 7) * (np.arange(SIDE**2) < 4)[:, None]
    rare = [dataclasses.replace(s, counts_NxG=np.where(np.arange(GENES) == 7, corner_NxG, s.counts_NxG)) for s in train]
    kept = run(rare, held_out, dataclasses.replace(CONFIG, top_genes=GENES, mean_genes=5)).report
    left = run(rare, held_out, dataclasses.replace(CONFIG, top_genes=GENES, mean_genes=5, min_detected=0.1)).report
    assert "GENE7" in kept["sets"]["top_moran"]["symbols"]
    assert "GENE7" not in left["sets"]["top_moran"]["symbols"]


def test_same_seed_same_report(split, perfect):
    assert run(*split).report == perfect.report


def test_figures_and_a_page_that_opens_offline(split, perfect, tmp_path):
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    sections = {s.section_id: s for s in split[1]}

    def shown(section_id, symbol):
        s, gene = sections[section_id], SYMBOLS.index(symbol)
        number = s.counts_NxG[:, gene].astype(int)
        x, y = (np.repeat(v, number) + rng.uniform(-18, 18, number.sum()) for v in (s.x_um_N, s.y_um_N))
        look = Look(np.full((324, 324, 3), 220, np.uint8), 1.0, x, y)
        return s.bins, s.counts_NxG[:, gene], s.rates_NxG[:, gene], look

    stale = [tmp_path / name for name in ("triptych_4.png", "triptych_12.png")]
    for path in [*stale, tmp_path / "mine.png"]:
        path.write_bytes(b"of another evaluation")
    drawn = draw_figures(tmp_path, perfect, shown)
    assert not any(path.exists() for path in stale) and (tmp_path / "mine.png").exists()
    triptychs = [f"triptych_{k}.png" for k in (1, 2, 3)]
    assert [figure.path.name for figure in drawn] == ["curve.png", *triptychs, "bulk.png"]
    for figure in drawn:
        assert figure.path.read_bytes().startswith(b"\x89PNG") and figure.path.stat().st_size > 5_000
    page = write_report(tmp_path, perfect, drawn, "a <title>")
    text = page.read_text()
    assert text.count('src="data:image/png;base64,') == 5
    outside = re.sub(r'src="data:image/png;base64,[^"]*"', "", text)
    assert not re.search(r"https?:|<link|<script|src=|url\(|@import", outside)
    assert "a &lt;title&gt;" in text and "prefers-color-scheme:dark" in text
    assert json.loads((tmp_path / "report.json").read_text()) == perfect.report
    assert (tmp_path / "genes.tsv").read_text().count("\n") == GENES + 1
    assert not list(tmp_path.glob("*.partial"))


def test_spots_have_figures_too(tmp_path):
    pytest.importorskip("matplotlib")
    train, held_out = make_split(3, 1, layout="spots", pitch=200.0)
    held_out = [dataclasses.replace(held_out[0], true_rate_NxG=None, reachable_NxG=None)]  # as real tissue is
    evaluation = run(train, held_out, trained_on="real", corpus_kind="real", split_by="section")
    he = np.full((400, 400, 3), 200, np.uint8)
    (s,) = held_out

    def shown(_, symbol):
        gene = SYMBOLS.index(symbol)
        return s.bins, s.counts_NxG[:, gene], s.rates_NxG[:, gene], Look(he, 4.5)

    (tmp_path / "bulk.png").write_bytes(b"of several patients")
    drawn = draw_figures(tmp_path, evaluation, shown)
    assert [figure.path.name for figure in drawn][-1] == "triptych_3.png" and not (tmp_path / "bulk.png").exists()
    text = write_report(tmp_path, evaluation, drawn, "spots").read_text()
    assert "Split by section" in text and "blocks of 3 × 3 spots" in text and "virtual" not in text


def test_a_virtual_model_on_real_tissue_bears_its_banner(split, tmp_path):
    evaluation = run(*split, corpus_kind="real")
    text = write_report(tmp_path, evaluation, [], "xenium").read_text()
    assert "This model was trained on virtual tissue; it knows no biology" in text
