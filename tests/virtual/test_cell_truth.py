"""The truths of single cells add up to the truths of bins, and are what is written of them."""

import numpy as np
import pytest
from test_virtual_section import dense_rates

from tario_jax.virtual import Settings, simulate_section, truth_rates
from tario_jax.virtual.assay import BACKGROUND_SHARE, LOST_POOL_LEFT, background
from tario_jax.virtual.cell_truth import cell_truth_rates, he_shift_um, nucleus_rings, stored_cells
from tario_jax.virtual.genes import program
from tario_jax.virtual.patients import draw_patient
from tario_jax.virtual.regions import region_of
from tario_jax.virtual.section import draw_expression, draw_tissue
from tario_jax.virtual.truth import make_bins

SIDE_UM = 160.0
SMALL = Settings(seed=3, section_um=SIDE_UM, panel="curated")
GENES = program(True)


@pytest.fixture(scope="module")
def stored():
    return simulate_section(4, "core", SMALL).truth


def test_a_cell_is_expected_what_its_rates_say(stored):
    patient = draw_patient(4, SMALL.seed)
    region = region_of(patient, "core", SIDE_UM)
    _, cells = draw_tissue(patient, region, SMALL)
    expression, _, assay = draw_expression(patient, region, cells, SMALL)
    expected = dense_rates(expression, GENES) * (1 - BACKGROUND_SHARE)
    lost_N = assay.lost_pool_F[assay.field_of(cells.x_um_N, cells.y_um_N)]
    expected = np.where(lost_N[:, None] == GENES.pool_G, LOST_POOL_LEFT * expected, expected)
    true, _ = cell_truth_rates(stored, reachable=False)
    np.testing.assert_allclose(true, expected, rtol=1e-3, atol=1e-7)


def test_the_truths_of_cells_add_up_to_those_of_bins(stored):
    cells, wanted = stored_cells(stored), np.arange(0, len(GENES.panel), 7)
    bins = make_bins(cells, SIDE_UM, 40.0)
    nuclear_G = GENES.nuclear_share_G[wanted]
    pairs = zip(cell_truth_rates(stored, wanted), truth_rates(stored, 40.0, wanted), strict=True)
    whole = zip(cell_truth_rates(stored), strict=True)
    for (of_cells, of_bins), (all_genes,) in zip(pairs, whole, strict=True):
        assert of_cells.shape == (len(cells), len(wanted))
        total_G = all_genes.sum(0, dtype=np.float64) / (1 - BACKGROUND_SHARE)
        strays_G = background(total_G, GENES.class_G == "null")[0][wanted] * bins.area_share
        added = (bins.nuclear_BxN[:-1] @ of_cells) * nuclear_G + (bins.outer_BxN[:-1] @ of_cells) * (1 - nuclear_G)
        np.testing.assert_allclose((added + strays_G).reshape(4, 4, -1), of_bins, rtol=2e-4)


def test_detections_follow_the_truth_of_their_cell():
    data = simulate_section(4, "core", Settings(seed=3, section_um=SIDE_UM, panel="curated", depth="high"))
    true, reachable = cell_truth_rates(data.truth)
    counted = np.bincount(data.detections.cell_D, minlength=len(true) + 1)[1:]
    inside = (np.abs(stored_cells(data.truth).x_um_N - SIDE_UM / 2) < SIDE_UM / 2 - 15) & (
        np.abs(stored_cells(data.truth).y_um_N - SIDE_UM / 2) < SIDE_UM / 2 - 15
    )
    assert counted[inside].sum() == pytest.approx(true[inside].sum(), rel=0.06)
    # a cell's depth varies by a factor of its own (Gamma, shape 5)
    assert np.corrcoef(counted[inside], true[inside].sum(1))[0, 1] > 0.55
    visible = GENES.genes_of("visible_state")
    r = [np.corrcoef(true[:, g], reachable[:, g])[0, 1] for g in visible[:20]]
    assert np.mean(r) > 0.8


def test_nuclei_are_drawn_where_the_registration_error_puts_them():
    """Their haematoxylin is darkest at the shift that is said, not at none."""
    number = next(n for n in range(40) if np.hypot(*draw_patient(n, 3).stain.shift_um_2) > 4)
    data = simulate_section(number, "core", SMALL)
    shift = he_shift_um(data.truth)
    rings = nucleus_rings(stored_cells(data.truth))
    assert rings.shape[1:] == (24, 2)
    centre = rings.mean(1)

    def darkness(by) -> float:
        column, row = ((centre + by) / 0.5).astype(int).T
        inside = (column >= 0) & (row >= 0) & (column < 320) & (row < 320)
        return float((255 - data.he[row[inside], column[inside], 0].astype(float)).mean())

    assert 4 < np.hypot(*shift) <= 5.5 and darkness(shift) > 1.15 * max(darkness(0), darkness(-shift))
