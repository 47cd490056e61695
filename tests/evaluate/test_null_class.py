"""Null genes tell a leak from skill: the truth itself is caught, what the tissue can tell is not."""

import numpy as np
import pytest

from tario_jax.evaluate.bins import grid_counts
from tario_jax.evaluate.metrics import composition
from tario_jax.evaluate.null_class import MIN_TOTAL, null_report, without_total
from tario_jax.virtual import Settings, simulate_section, truth_rates

SIDE = 9


@pytest.fixture(scope="module")
def sections():
    """Counts, T and V of two sections, [N, G] each, and the null genes."""
    settings, found = Settings(section_um=36.0 * SIDE, panel="curated"), []
    for number in (0, 1):
        section = simulate_section(number, "core", settings)
        counts_NxG = grid_counts(section.detections, len(settings.genes.panel), SIDE, SIDE, 36.0)
        found.append((counts_NxG.astype(float), *(t.reshape(SIDE**2, -1) for t in truth_rates(section.truth, 36.0))))
    return found, settings.genes.genes_of("null")


def told(sections, of: int):
    found, null = sections
    return null_report([row[0][:, null] for row in found], [row[0].sum(1) for row in found],
                       [composition(row[of][:, null], row[of].sum(1)) for row in found])  # fmt: skip


def test_the_true_rate_of_null_genes_is_found_out_and_the_reachable_one_is_not(sections):
    true, reachable = told(sections, 1), told(sections, 2)
    assert true["found"] and true["beyond_total"] > max(10 * true["se"], 0.1)
    assert not reachable["found"] and abs(reachable["beyond_total"]) < 4 * reachable["se"]
    assert true["bins"] + true["bins_left_out"] == 2 * SIDE**2 and true["genes"] == len(sections[1])
    assert true["bins"] == sum(int((row[0].sum(1) >= MIN_TOTAL).sum()) for row in sections[0])
    assert abs(true["shuffled_mean"]) < 4 * true["shuffled_sd"] + 0.01


def test_a_prediction_of_totals_is_no_skill_beyond_them():
    # shares are constant, and so is all that could be known: depth alone makes r
    rng = np.random.default_rng(0)
    total_S = [rng.integers(200, 3000, 150) for _ in range(6)]
    counts_S = [rng.poisson(total_N[:, None] * np.full(80, 3e-4)).astype(float) for total_N in total_S]
    by_total = [np.log(total_N)[:, None] + rng.normal(0, 0.1, (150, 80)) for total_N in total_S]
    report = null_report(counts_S, total_S, by_total)
    assert report["r"] > 0.1 and abs(report["beyond_total"]) < 4 * report["se"] < 0.03
    assert not report["found"]


def test_what_is_left_is_free_of_any_smooth_function_of_the_total():
    total_N = np.geomspace(200, 2000, 60)
    smooth = np.stack([np.log(total_N) ** 2, np.sqrt(total_N), np.ones(60)], 1)
    assert np.abs(without_total(smooth, total_N)).max() < 0.05
    np.testing.assert_allclose(without_total(np.ones((60, 1)), np.full(60, 300)), 0, atol=1e-9)


@pytest.mark.parametrize(("bins", "total", "why"), [
    (9, 500.0, "no section has 40 bins of 200 counts"), (90, 50.0, "no section has 40 bins of 200 counts"),
    (90, 500.0, "fewer than two vary in bins of 200 counts"),
])  # fmt: skip
def test_where_too_little_was_counted_it_says_that_nothing_was_judged(bins, total, why):
    found = null_report([np.ones((bins, 3))], [np.full(bins, total)], [np.ones((bins, 3))])
    assert found == {"not_judged": why}
