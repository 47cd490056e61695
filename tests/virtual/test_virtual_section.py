"""Virtual sections: the same bits anywhere, and truths that are what they claim to be."""

import dataclasses
import functools
import hashlib
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest

from tario_jax.config import InputError
from tario_jax.virtual import simulate_section, virtual_panel
from tario_jax.virtual.expression import (
    bin_truth,
    draw_detections,
    draw_unseen,
    draw_visible,
    reachable_rates,
    true_rates,
)
from tario_jax.virtual.fields import FieldBasis, Stream, generator
from tario_jax.virtual.genes import TYPES, program
from tario_jax.virtual.patients import draw_patient
from tario_jax.virtual.section import draw_tissue

SECTION_UM = 256.0
simulate = functools.partial(simulate_section, seed=3, section_um=SECTION_UM, with_truth=True)


def digest(patient: int) -> str:
    section = simulate(patient)
    found = section.detections
    arrays = (section.he, found.x_um_D, found.y_um_D, found.gene_D, found.in_nucleus_D, found.cell_D,
              section.truth.rate_YxXxG, section.truth.reachable_YxXxG)  # fmt: skip
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def tissue_and_rates(number: int, section_um: float = SECTION_UM, seed: int = 3):
    patient = draw_patient(number, seed)
    _, cells = draw_tissue(patient, seed=seed, section_um=section_um)
    rng = generator(seed, number, Stream.HIDDEN)
    visible = draw_visible(cells, section_um, 90.0, rng)
    hidden = draw_unseen(patient, cells, section_um, rng)
    return patient, cells, visible, hidden, true_rates(patient, visible, hidden)


def counts(detections, bin_um: float, rows: int) -> np.ndarray:
    genes = len(virtual_panel())
    row, column = (np.floor(place / bin_um).astype(int) for place in (detections.y_um_D, detections.x_um_D))
    inside = (row < rows) & (column < rows)
    flat = (row * rows + column)[inside] * genes + detections.gene_D[inside]
    return np.bincount(flat, minlength=rows**2 * genes).reshape(rows, rows, genes)


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))


def test_a_patient_is_the_same_bits_in_another_order_and_in_another_process():
    here = [digest(number) for number in (4, 2_000_001)]
    assert here[0] != here[1]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.map(digest, [2_000_001, 4])
    assert there[::-1] == here


def test_another_seed_is_another_patient():
    assert not np.array_equal(simulate(4).he, simulate(4, seed=4).he)


def test_importing_the_simulator_does_not_import_jax():
    code = "import sys, tario_jax.virtual; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_section_has_the_shape_that_the_corpus_expects():
    section = simulate(1, section_um=250.0, truth_bin_um=18.0)
    assert section.he.shape == (500, 500, 3) and section.he_um_per_px == 0.5
    assert section.truth.rate_YxXxG.shape == section.truth.reachable_YxXxG.shape == (13, 13, len(virtual_panel()))
    found = section.detections
    for place in (found.x_um_D, found.y_um_D):
        assert place.min() >= 0 and place.max() < 250.0
    assert found.gene_D.max() < len(virtual_panel())
    assert simulate(1, with_truth=False).truth is None


@pytest.mark.parametrize("wrong", [{"section_um": 20.0}, {"truth_bin_um": 600.0}, {"detections_per_cell": 0.0}])
def test_an_impossible_section_is_refused_in_one_line(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))) as error:
        simulate_section(0, **({"seed": 0, "section_um": 128.0, "with_truth": True} | wrong))
    assert "\n" not in str(error.value)


def test_the_mean_of_redrawn_counts_approaches_the_true_rate():
    _, cells, _, _, rate_NxG = tissue_and_rates(1, 160.0)
    bin_um, rows, redraws = 18.0, 8, 250
    (truth,) = bin_truth(cells, 160.0, bin_um, rate_NxG)
    rng = np.random.default_rng(0)
    total = sum(counts(draw_detections(cells, rate_NxG, 160.0, rng), bin_um, rows) for _ in range(redraws))
    mean = total / redraws
    assert mean.sum() == pytest.approx(truth.sum(), rel=0.01)
    # per bin over genes, and per gene over bins: a misplaced share or a wrong gene would show
    np.testing.assert_allclose(mean.sum(-1), truth.sum(-1), rtol=0.12)
    assert np.abs(mean.sum(-1) / truth.sum(-1) - 1).mean() < 0.025
    common = truth.sum((0, 1)) > 5
    np.testing.assert_allclose(mean.sum((0, 1))[common], truth.sum((0, 1))[common], rtol=0.25)
    assert pearson(mean.reshape(rows**2, -1)[:, common], truth.reshape(rows**2, -1)[:, common]).mean() > 0.95


def test_the_mean_of_truths_with_all_unseen_redrawn_approaches_the_reachable_rate():
    # an oracle apart from reachable_rates: whole patients redrawn in all that is unseen, on the same drawn cells
    section_um, seed = 160.0, 3
    patient, cells, visible, _, _ = tissue_and_rates(2, section_um)
    genes = program()
    rng = np.random.default_rng(1)
    (reachable,) = bin_truth(cells, section_um, 36.0, reachable_rates(patient, cells, visible, section_um, seed))
    total, redraws = np.zeros(reachable.shape), 150
    for _ in range(redraws):
        other = dataclasses.replace(patient, level_U=rng.standard_normal(len(patient.level_U)))
        # the null genes' fields are drawn anew with the unseen; their drawn part stays
        fresh = draw_visible(cells, section_um, 90.0, rng)
        np.testing.assert_array_equal(fresh.state_factor_NxG, visible.state_factor_NxG)
        rate_NxG = true_rates(other, fresh, draw_unseen(other, cells, section_um, rng))
        hidden_part = np.exp(patient.hidden_log_effect_G) * patient.efficiency
        null_G = genes.class_G == "null"
        rate_NxG[:, ~null_G] /= hidden_part[~null_G]  # of mean 1 across patients
        rate_NxG[:, null_G] = 0  # a share of the others; tested below
        total += bin_truth(cells, section_um, 36.0, rate_NxG)[0]
    seen = genes.class_G != "null"
    mean, reachable = (total / redraws)[..., seen].sum((0, 1)), reachable[..., seen].sum((0, 1))
    assert mean.sum() == pytest.approx(reachable.sum(), rel=0.03)
    assert np.median(np.abs(mean / reachable - 1)) < 0.05
    assert np.corrcoef(np.log(mean), np.log(reachable))[0, 1] > 0.99


def test_what_is_unseen_leaves_the_drawn_and_the_reachable_rate_alone():
    section_um = 160.0
    patient, cells, visible, hidden, rate_NxG = tissue_and_rates(0, section_um)
    before = {name: getattr(cells, name).copy() for name in cells.__dataclass_fields__}
    first = reachable_rates(patient, cells, visible, section_um, 3)
    unlike = dataclasses.replace(
        patient, level_U=patient.level_U + 1, efficiency=2.0, hidden_log_effect_G=patient.hidden_log_effect_G + 1,
        log_effect_G=patient.log_effect_G + 1,
    )  # fmt: skip
    other_hidden = draw_unseen(unlike, cells, section_um, np.random.default_rng(8))
    assert (other_hidden.type_N != hidden.type_N).any()
    assert not np.allclose(true_rates(unlike, visible, other_hidden), rate_NxG)
    np.testing.assert_allclose(reachable_rates(unlike, cells, visible, section_um, 3), first, rtol=1e-4)
    for name, values in before.items():
        np.testing.assert_array_equal(getattr(cells, name), values)


def test_markers_lie_in_the_right_cells():
    panel, checked = virtual_panel(), 0
    rules = {"EPCAM": ("tumour", "epithelium"), "COL1A1": ("fibroblast", "myofibroblast"), "CD3E": ("cd4_t", "cd8_t"),
             "MS4A1": ("b_cell",), "PECAM1": ("endothelial",), "CD163": ("macrophage",), "MZB1": ("plasma",),
             "CD8A": ("cd8_t",)}  # fmt: skip
    tissues = [tissue_and_rates(number) for number in (0, 1)]
    for symbol, names in rules.items():
        inside, outside = [], []
        for _, _, _, hidden, rate_NxG in tissues:
            is_of_type_N = np.isin(hidden.type_N, [TYPES.index(name) for name in names])
            share_N = rate_NxG[:, panel.index[symbol]] / rate_NxG.sum(1)
            inside.append(share_N[is_of_type_N])
            outside.append(share_N[~is_of_type_N])
        assert np.concatenate(inside).mean() > 8 * np.concatenate(outside).mean(), symbol
        checked += 1
    assert checked == len(rules)
    melanoma, breast = tissue_and_rates(2)[-1], tissues[1][-1]
    assert melanoma[:, panel.index["PMEL"]].sum() > 5 * breast[:, panel.index["PMEL"]].sum()


def test_null_genes_follow_depth_but_never_composition():
    section = simulate(4, section_um=400.0)
    genes = len(virtual_panel())
    null = program().genes_of("null")
    truth, reachable = (array.reshape(-1, genes) for array in (section.truth.rate_YxXxG, section.truth.reachable_YxXxG))
    found = counts(section.detections, 36.0, section.truth.rate_YxXxG.shape[0]).reshape(-1, genes)
    share = reachable[:, null] / reachable.sum(1, keepdims=True)
    assert (share.std(0) / share.mean(0)).max() < 0.03  # what is left: genes differ in their share in the nucleus
    composition = np.log1p(1e4 * found / found.sum(1, keepdims=True))[:, null]
    assert abs(pearson(np.log1p(1e4 * share), composition).mean()) < 0.06
    true_share = truth[:, null] / truth.sum(1, keepdims=True)
    assert pearson(np.log1p(1e4 * true_share), composition).mean() > 0.25  # there is something to miss
    assert pearson(reachable[:, null], found[:, null]).mean() > 0.15


def test_nuclear_detections_lie_on_dark_nuclei():
    section = simulate(1)
    found = section.detections
    blueness = 255 - section.he[..., 0].astype(float)  # haematoxylin takes red, eosin hardly does
    at = blueness[(found.y_um_D / 0.5).astype(int), (found.x_um_D / 0.5).astype(int)]
    cytoplasm = ~found.in_nucleus_D & (found.cell_D > 0)
    assert at[found.in_nucleus_D].mean() > 1.3 * at[cytoplasm].mean()
    mirrored = blueness[(found.y_um_D / 0.5).astype(int), -1 - (found.x_um_D / 0.5).astype(int)]
    assert at[found.in_nucleus_D].mean() > 1.3 * mirrored[found.in_nucleus_D].mean()


def test_fields_have_unit_variance_at_every_place_and_agree_between_grid_and_points():
    basis = FieldBasis(20.0, 100.0)
    noise = basis.noise(np.random.default_rng(0), 4000)
    grid = basis.on_grid(10.0, noise)
    np.testing.assert_allclose(grid.std(-1), 1, atol=0.06)
    np.testing.assert_allclose(basis.at(np.array([35.0]), np.array([85.0]), noise)[0], grid[8, 3], atol=1e-4)
