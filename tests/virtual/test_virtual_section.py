"""Virtual sections: the same bits anywhere, and truths that are what they claim to be."""

import dataclasses
import hashlib
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest

from tario_jax.config import InputError
from tario_jax.virtual import Settings, simulate_section, truth_rates
from tario_jax.virtual.assay import BACKGROUND_SHARE
from tario_jax.virtual.detections import draw_detections
from tario_jax.virtual.fields import FieldBasis, Stream, generator
from tario_jax.virtual.genes import program
from tario_jax.virtual.hidden import draw_fields, draw_hidden
from tario_jax.virtual.kinds import TYPES
from tario_jax.virtual.patients import draw_patient
from tario_jax.virtual.rates import Loadings, expected_totals, express, null_weight, patient_weights, states_of
from tario_jax.virtual.regions import region_of
from tario_jax.virtual.section import draw_expression, draw_tissue
from tario_jax.virtual.truth import make_bins, reachable_rates, true_rates

SMALL = Settings(seed=3, section_um=160.0, panel="curated")
GENES = program(True)


def digest(number: int, region: str = "core") -> str:
    section = simulate_section(number, region, Settings(seed=3, section_um=128.0))
    found = section.detections
    arrays = (section.he, found.x_um_D, found.y_um_D, found.gene_D, found.in_nucleus_D, found.cell_D,
              *(section.truth[name] for name in sorted(section.truth)))  # fmt: skip
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def tissue(number: int, settings: Settings = SMALL):
    patient = draw_patient(number, settings.seed)
    region = region_of(patient, "core", settings.section_um)
    _, cells = draw_tissue(patient, region, settings)
    return patient, region, cells, *draw_expression(patient, region, cells, settings)


def dense_rates(expression, genes) -> np.ndarray:
    """The module's docstring written out in float64, gene by gene: the oracle of everything that avoids this array."""
    weight_NxG = expression.weight_TxG[expression.type_N].astype(np.float64)
    followed = np.maximum(genes.state_G, 0)
    log_NxG = genes.loading_G.astype(np.float64) * expression.state_NxS[:, followed] * (genes.state_G >= 0)
    rate_NxG = weight_NxG * np.exp(log_NxG)
    null = genes.genes_of("null")
    rate_NxG[:, null] = 0
    rate_NxG[:, null] = rate_NxG.sum(1, keepdims=True) * null_weight(genes) * expression.null_field_NxK
    return rate_NxG * expression.base_N.astype(np.float64)[:, None]


def counts(detections, bin_um: float, rows: int, genes: int) -> np.ndarray:
    row, column = (np.floor(place / bin_um).astype(int) for place in (detections.y_um_D, detections.x_um_D))
    inside = (row < rows) & (column < rows)
    flat = (row * rows + column)[inside] * genes + detections.gene_D[inside]
    return np.bincount(flat, minlength=rows**2 * genes).reshape(rows, rows, genes)


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))


def test_a_patient_is_the_same_bits_in_another_order_and_in_another_process():
    here = [digest(number) for number in (4, 2_000_001)]
    assert len({*here, digest(4, "border")}) == 3
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.map(digest, [2_000_001, 4])
    assert there[::-1] == here


def test_importing_the_simulator_does_not_import_jax():
    code = "import sys, tario_jax.virtual; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_section_has_the_shape_that_the_corpus_expects():
    section = simulate_section(1, "border", Settings(section_um=250.0))
    assert section.he.shape == (500, 500, 3) and section.he_um_per_px == 0.5
    found, genes = section.detections, program()
    for place in (found.x_um_D, found.y_um_D):
        assert place.min() >= 0 and place.max() < 250.0
    assert len(genes.panel) == 18_963 and 0 <= found.gene_D.min() and found.gene_D.max() < 18_963
    assert 100 < len(found) / section.quality["cells"] < 600  # this patient; the mean over patients is a claim
    assert section.quality["negative_probes"] > 0
    true, reachable = truth_rates(section.truth, 18.0, np.array([3, 18_000]))
    assert true.shape == reachable.shape == (13, 13, 2) and true.dtype == np.float32
    some = truth_rates(section.truth, 18.0, reachable=False)
    assert some[1] is None
    np.testing.assert_allclose(some[0][..., [3, 18_000]], true, rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"section_um": 20.0}, {"depth": "deep"}, {"seed": -1}])
def test_impossible_settings_are_refused_in_one_line(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))) as error:
        Settings(**wrong)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="has no region 'large'; expected one of core, border"):
        simulate_section(1, "large", SMALL)


def test_depth_scales_the_detections_and_leaves_the_tissue_alone():
    low, high = (simulate_section(5, "core", dataclasses.replace(SMALL, depth=depth)) for depth in ("low", "high"))
    assert len(high.detections) / len(low.detections) == pytest.approx(1000 / 150, rel=0.1)
    np.testing.assert_array_equal(low.he, high.he)


def test_spanned_loadings_reproduce_every_exponential():
    loadings = Loadings.of(GENES)
    state = np.linspace(-3, 3, 61)
    spanned = np.exp(state[:, None] * loadings.node_K) @ loadings.span_KxG
    np.testing.assert_allclose(spanned, np.exp(state[:, None] * GENES.loading_G), rtol=2e-5)


def test_what_null_genes_follow_is_the_dense_sum_over_the_others():
    _, _, cells, expression, hidden, _ = tissue(1)
    total_N = expected_totals(expression.weight_TxG, GENES, Loadings.of(GENES), hidden.type_N, states_of(cells, hidden))
    rate_NxG = dense_rates(expression, GENES)
    null_G = GENES.class_G == "null"
    np.testing.assert_allclose(total_N * expression.base_N, rate_NxG[:, ~null_G].sum(1), rtol=1e-4)
    np.testing.assert_allclose(expression.others_N, total_N)


def test_the_true_rate_in_bins_is_that_of_the_dense_array():
    _, region, cells, expression, _, assay = tissue(2)
    assay = dataclasses.replace(assay, lost_pool_F=np.array([5]))  # and a pool of genes is lost
    bins = make_bins(cells, region.side_um, 18.0)
    found = true_rates(expression, cells, bins, GENES, Loadings.of(GENES), assay, np.arange(len(GENES.panel)))
    rate_NxG = dense_rates(expression, GENES) * np.where(GENES.pool_G == 5, 0.25, 1.0)
    nuclear_NxG = rate_NxG * GENES.nuclear_share_G
    dense = (bins.nuclear_BxN @ nuclear_NxG + bins.outer_BxN @ (rate_NxG - nuclear_NxG))[:-1]
    total_G = rate_NxG.sum(0)
    null_G = GENES.class_G == "null"
    strays_G = BACKGROUND_SHARE * np.where(null_G, total_G, 0.5 * total_G + 0.5 * total_G[~null_G].mean())
    dense = (1 - BACKGROUND_SHARE) * dense + strays_G * (18.0 / 160.0) ** 2
    np.testing.assert_allclose(found.reshape(dense.shape), dense, rtol=1e-3, atol=1e-6)


def test_the_mean_of_redrawn_counts_approaches_the_true_rate():
    _, region, cells, expression, _, assay = tissue(1)
    bin_um, rows, redraws = 18.0, 8, 250
    truth = true_rates(expression, cells, make_bins(cells, region.side_um, bin_um), GENES, Loadings.of(GENES), assay,
                       np.arange(len(GENES.panel)))  # fmt: skip
    rng = np.random.default_rng(0)
    total = sum(
        counts(draw_detections(cells, expression, GENES, assay, rng)[0], bin_um, rows, len(GENES.panel))
        for _ in range(redraws)
    )
    mean = total / redraws
    assert mean.sum() == pytest.approx(truth.sum(), rel=0.01)
    # per bin over genes, and per gene over bins: a misplaced share or a wrong gene would show
    np.testing.assert_allclose(mean.sum(-1), truth.sum(-1), rtol=0.22)
    assert np.abs(mean.sum(-1) / truth.sum(-1) - 1).mean() < 0.035
    common = truth.sum((0, 1)) > 5
    np.testing.assert_allclose(mean.sum((0, 1))[common], truth.sum((0, 1))[common], rtol=0.25)
    assert pearson(mean.reshape(rows**2, -1)[:, common], truth.reshape(rows**2, -1)[:, common]).mean() > 0.95


def test_counts_of_a_cell_are_overdispersed_as_stated():
    _, _, cells, expression, _, assay = tissue(1)
    rng, redraws = np.random.default_rng(1), 300
    by_cell = np.stack([
        np.bincount(draw_detections(cells, expression, GENES, assay, rng)[0].cell_D, minlength=len(cells) + 1)[1:]
        for _ in range(redraws)
    ])  # fmt: skip
    inside = (np.minimum(cells.x_um_N, cells.y_um_N) > 20) & (np.maximum(cells.x_um_N, cells.y_um_N) < 140)
    mean, variance = by_cell.mean(0)[inside], by_cell.var(0)[inside]
    many = mean > 20
    # Gamma of shape 5 on the depth, bursts of 1, 2 and 3 with variance 1.48 times the mean
    np.testing.assert_allclose((variance[many] - 1.48 * mean[many]).sum() / (mean[many] ** 2).sum(), 0.2, rtol=0.12)


def test_the_mean_of_truths_with_all_unseen_redrawn_approaches_the_reachable_rate():
    # an oracle apart from reachable_rates: whole patients redrawn in all that is unseen, on the same drawn cells
    patient, region, cells, _, _, assay = tissue(2)
    loadings, wanted = Loadings.of(GENES), np.arange(len(GENES.panel))
    bins = make_bins(cells, region.side_um, 36.0)
    reachable = reachable_rates(patient, cells, bins, GENES, loadings, seed=3, region=0, section_um=region.side_um,
                                depth=400.0, wanted=wanted)  # fmt: skip
    rng, redraws = np.random.default_rng(1), 150
    plain = dataclasses.replace(assay, lost_pool_F=np.array([-1]))
    weight_TxG = patient_weights(patient, GENES, 3, known=False)  # tested by itself below
    total = np.zeros(reachable.shape)
    for _ in range(redraws):
        field_NxF = draw_fields(cells, region.side_um, rng, 1)[..., 0]
        level_U = rng.standard_normal(len(patient.level_U))
        hidden = draw_hidden(cells, region.side_um, field_NxF, level_U, rng.random(len(cells)))
        null_NxK = np.ones((len(cells), len(GENES.genes_of("null"))), np.float32)
        some = express(weight_TxG, GENES, loadings, cells, hidden, np.full(len(cells), 400.0), null_NxK)
        total += true_rates(some, cells, bins, GENES, loadings, plain, wanted)
    mean, reachable = (total / redraws).sum((0, 1)), reachable.sum((0, 1))
    assert patient.cohort not in ("LUAD", "LUSC")  # whose levels follow genotypes
    assert mean.sum() == pytest.approx(reachable.sum(), rel=0.03)
    assert np.median(np.abs(mean / reachable - 1)) < 0.05
    assert np.corrcoef(np.log(mean), np.log(reachable))[0, 1] > 0.99


def test_the_mean_of_patients_weights_is_what_is_known_of_them():
    patient = next(p for p in (draw_patient(k, 0) for k in range(200)) if p.cohort == "LUAD")
    expected = patient_weights(patient, GENES, 0, known=False)
    rng = np.random.default_rng(0)
    total, draws = np.zeros_like(expected), 600
    for k in range(draws):  # other patients of the same traits: their own effects and sex differ
        other = dataclasses.replace(patient, number=k, sex="female" if rng.random() < 0.48 else "male", mutated={})
        total += patient_weights(other, GENES, 0, known=True)
    unmutated = np.abs(GENES.mutation_loading_MxG).sum(0) == 0
    ratio = (total / draws / np.maximum(expected, 1e-12))[:, unmutated & (GENES.class_G != "silent")]
    np.testing.assert_allclose(np.median(ratio, 0), 1, atol=0.3)
    assert np.abs(ratio.mean() - 1) < 0.02


def test_what_is_unseen_leaves_the_drawn_and_the_reachable_rate_alone():
    patient, region, cells, expression, hidden, _ = tissue(0)
    bins, loadings, wanted = make_bins(cells, region.side_um, 36.0), Loadings.of(GENES), np.arange(len(GENES.panel))
    ask = {"seed": 3, "region": 0, "section_um": region.side_um, "depth": 400.0, "wanted": wanted}
    first = reachable_rates(patient, cells, bins, GENES, loadings, **ask)
    unlike = dataclasses.replace(patient, level_U=patient.level_U + 1, efficiency=2.0, sex="male", responded=None)
    other, other_hidden, _ = draw_expression(unlike, region, cells, SMALL)
    assert (other_hidden.state_NxU != hidden.state_NxU).any()
    assert not np.allclose(other.base_N, expression.base_N)
    np.testing.assert_array_equal(reachable_rates(unlike, cells, bins, GENES, loadings, **ask), first)


def test_markers_lie_in_the_right_cells():
    rules = {"EPCAM": ("tumour", "epithelium"), "COL1A1": ("fibroblast", "myofibroblast"),
             "CD3E": ("cd4_t", "cd8_t", "treg"), "MS4A1": ("b_cell",), "PECAM1": ("endothelial",),
             "CD163": ("macrophage",), "MZB1": ("plasma",), "CD8A": ("cd8_t",), "FOXP3": ("treg",)}  # fmt: skip
    shares = [(hidden.type_N, dense_rates(expression, GENES)) for _, _, _, expression, hidden, _ in map(tissue, (0, 1))]
    for symbol, names in rules.items():
        inside, outside = [], []
        for type_N, rate_NxG in shares:
            is_of_type_N = np.isin(type_N, [TYPES.index(name) for name in names])
            share_N = rate_NxG[:, GENES.panel.index[symbol]] / rate_NxG.sum(1)
            inside.append(share_N[is_of_type_N])
            outside.append(share_N[~is_of_type_N])
        assert np.concatenate(inside).mean() > 8 * np.concatenate(outside).mean(), symbol


def test_sex_shows_in_xist_and_the_y_genes():
    patients = [draw_patient(number, 0) for number in range(40)]
    found = {sex: next(p for p in patients if p.sex == sex and p.cohort == "LUAD") for sex in ("female", "male")}
    weight = {sex: patient_weights(patient, GENES, 0, known=True)[0] for sex, patient in found.items()}
    xist, y_gene = GENES.panel.index["XIST"], GENES.panel.index["RPS4Y1"]
    assert weight["female"][xist] > 20 * weight["male"][xist] and weight["male"][y_gene] > 10 * weight["female"][y_gene]


def test_null_genes_follow_depth_but_never_composition():
    section = simulate_section(4, "core", Settings(seed=3, section_um=400.0, panel="curated"))
    null, genes = GENES.genes_of("null"), len(GENES.panel)
    true, reachable = (rates.reshape(-1, genes) for rates in truth_rates(section.truth, 36.0))
    found = counts(section.detections, 36.0, 11, genes).reshape(-1, genes)
    share = reachable[:, null] / reachable.sum(1, keepdims=True)
    assert (share.std(0) / share.mean(0)).max() < 0.05  # what is left: genes differ in their share in the nucleus
    composition = np.log1p(1e4 * found / found.sum(1, keepdims=True))[:, null]
    assert abs(pearson(np.log1p(1e4 * share), composition).mean()) < 0.06
    true_share = true[:, null] / true.sum(1, keepdims=True)
    assert pearson(np.log1p(1e4 * true_share), composition).mean() > 0.12  # there is something to miss
    assert pearson(reachable[:, null], found[:, null]).mean() > 0.15


def test_nuclear_detections_lie_on_dark_nuclei():
    number = next(k for k in range(100) if np.linalg.norm(draw_patient(k, 3).stain.shift_um_2) < 1)
    section = simulate_section(number, "core", Settings(seed=3, section_um=256.0, panel="curated"))
    found = section.detections
    blueness = 255 - section.he[..., 0].astype(float)  # haematoxylin takes red, eosin hardly does
    at = blueness[(found.y_um_D / 0.5).astype(int), (found.x_um_D / 0.5).astype(int)]
    cytoplasm = ~found.in_nucleus_D & (found.cell_D > 0)
    assert at[found.in_nucleus_D].mean() > 1.25 * at[cytoplasm].mean()
    mirrored = blueness[(found.y_um_D / 0.5).astype(int), -1 - (found.x_um_D / 0.5).astype(int)]
    assert at[found.in_nucleus_D].mean() > 1.25 * mirrored[found.in_nucleus_D].mean()


def test_fields_have_unit_variance_at_every_place_and_agree_between_grid_and_points():
    basis = FieldBasis(20.0, 100.0)
    noise = basis.noise(np.random.default_rng(0), 4000)
    grid = basis.on_grid(10.0, noise)
    np.testing.assert_allclose(grid.std(-1), 1, atol=0.06)
    np.testing.assert_allclose(basis.at(np.array([35.0]), np.array([85.0]), noise)[0], grid[8, 3], atol=1e-4)


def test_streams_of_two_regions_are_apart():
    assert generator(0, 1, Stream.CELLS, 0).random() != generator(0, 1, Stream.CELLS, 1).random()
