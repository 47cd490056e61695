"""Null genes tell a leak from skill: the truth itself is caught, what the tissue can tell is not."""

import numpy as np
import pytest

from tario_jax.evaluate.bins import grid_counts
from tario_jax.evaluate.metrics import composition
from tario_jax.evaluate.null_class import LIKE, MIN_TOTAL, exchanged, null_report
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
    assert true["found"] and true["excess"] > 10 * true["excess_se"] and true["r"] > 0.1
    assert not reachable["found"] and abs(reachable["excess"]) < 4 * reachable["excess_se"]
    assert true["bins"] + true["bins_left_out"] == 2 * SIDE**2 and true["genes"] == len(sections[1])
    kept = sum(int((row[0].sum(1) >= MIN_TOTAL).sum()) for row in sections[0])
    assert true["bins"] == kept


def test_a_prediction_of_totals_is_no_skill_where_totals_are_alike(sections):
    found, null = sections
    total_S = [row[0].sum(1) for row in found]
    by_total = [np.repeat(np.log(total_N)[:, None], len(null), 1) for total_N in total_S]
    report = null_report([row[0][:, null] for row in found], total_S, by_total)
    assert not report["found"] and abs(report["excess"]) < 0.005
    assert report["like_total"] - report["plain"] > 0.1


def test_counts_are_exchanged_among_bins_of_like_total_only():
    total_N = np.array([5.0, 100, 1, 90, 7, 80, 2, 70])
    counts_NxK = np.arange(16.0).reshape(8, 2)
    out = exchanged(counts_NxK, total_N, LIKE, np.random.default_rng(0))
    low = np.argsort(total_N)[:LIKE]
    assert set(map(tuple, out[low])) == set(map(tuple, counts_NxK[low])) and (out != counts_NxK).any()
    assert (counts_NxK == np.arange(16.0).reshape(8, 2)).all()


def test_too_few_bins_are_no_report():
    assert null_report([np.ones((9, 3))], [np.full(9, 500.0)], [np.ones((9, 3))]) is None
