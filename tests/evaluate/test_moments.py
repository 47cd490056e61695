"""Sums over strips against values that are made as they are defined, on ordinary and on degenerate input."""

import numpy as np
import pytest
import scipy.sparse
import scipy.stats

from tario_jax.evaluate import moments
from tario_jax.evaluate.metrics import composition, pearson_by_gene, pearson_residuals
from tario_jax.evaluate.moments import FORMS, FromRates, Line, measure, section_sums

BINS, GENES, MIN_TOTAL = 150, 40, 60


@pytest.fixture
def tissue():
    """Counts and rates with a constant gene, a gene that is nowhere, one that was not measured, and empty bins."""
    rng = np.random.default_rng(0)
    rate_NxG = rng.gamma(1.0, 1.0, (BINS, 1)) * rng.gamma(1.0, 2.0, GENES) * rng.gamma(5.0, 0.2, (BINS, GENES))
    counts_NxG = rng.poisson(rate_NxG).astype(np.float64)
    counts_NxG[:, 0], counts_NxG[:, 1], counts_NxG[:5] = 0, 2, 0
    told_NxG = (rate_NxG * rng.gamma(9.0, 1 / 9, (BINS, GENES))).astype(np.float32)
    told_NxG[:, 3], told_NxG[:, 4], told_NxG[7] = 1.5, 0.0, 0.0
    return counts_NxG, told_NxG, np.arange(GENES) != 2


def values_of(counts_NxG, total_N, form):
    """As in metrics: every value is there at once."""
    if form == "counts":
        return counts_NxG
    kept_N = np.flatnonzero(total_N >= MIN_TOTAL)
    return {"composition": composition, "residual": pearson_residuals}[form](counts_NxG[kept_N], total_N[kept_N])


def composed_on_average(rates_NxG, total_N):
    """The expectation of the composition over Poisson counts, summed as it is defined."""
    n = np.arange(400)
    scale_N = np.divide(1e4, total_N, out=np.zeros(len(total_N)), where=total_N > 0)
    value_NxC = np.log1p(n * scale_N[:, None])
    return np.stack([(scipy.stats.poisson.pmf(n, rate_N[:, None]) * value_NxC).sum(1) for rate_N in rates_NxG.T], 1)


def scipy_r(x_N, p_N):
    if np.ptp(x_N) == 0:
        return np.nan
    return 0.0 if np.ptp(p_N) <= 1e-6 * abs(p_N).max() else scipy.stats.pearsonr(x_N, p_N).statistic


@pytest.mark.parametrize("values_at_once", [1 << 18, 7 * GENES, 1])
def test_r_in_three_forms_equals_scipy_on_the_values(tissue, values_at_once, monkeypatch):
    monkeypatch.setattr(moments, "VALUES_AT_ONCE", values_at_once)
    counts_NxG, told_NxG, seen_G = tissue
    measured = measure(scipy.sparse.csr_array(counts_NxG), seen_G, np.arange(GENES), MIN_TOTAL)
    told_total_N = told_NxG[:, seen_G].sum(1, dtype=np.float64)
    direct = {form: lambda rows: told_NxG[rows] ** 2 for form in FORMS}
    made = {"rates": FromRates(lambda rows: told_NxG[rows], told_total_N), "direct": direct,
            "counted": FromRates(lambda rows: told_NxG[rows], told_total_N, counted=True)}  # fmt: skip
    rng = np.random.default_rng(2)
    line = Line(rng.gamma(2.0, 1.0, BINS), rng.normal(size=GENES), rng.normal(size=GENES))
    line.slope_G[5] = 0.0  # a constant
    made["line"] = dict.fromkeys(FORMS, line)
    found = section_sums(measured, made)
    total_N = counts_NxG[:, seen_G].sum(1)
    kept_N = total_N >= MIN_TOTAL
    assert 0 < kept_N.sum() < BINS - 5
    for form in FORMS:
        x_NxG = values_of(np.where(seen_G, counts_NxG, 0), total_N, form)
        of_form = slice(None) if form == "counts" else kept_N
        p_NxG = counted_NxG = told_NxG.astype(np.float64)
        if form == "composition":
            p_NxG = composed_on_average(p_NxG[kept_N], told_total_N[kept_N])
            counted_NxG = composition(counted_NxG[kept_N], told_total_N[kept_N])
        elif form == "residual":
            p_NxG = counted_NxG = pearson_residuals(p_NxG[kept_N], told_total_N[kept_N])
        squared_NxG = told_NxG[of_form].astype(np.float64) ** 2
        of_line = ("line", line(slice(None))[of_form])
        for method, told in (("rates", p_NxG), ("counted", counted_NxG), ("direct", squared_NxG), of_line):
            expected_G = np.array([scipy_r(x_NxG[:, g], told[:, g]) for g in range(GENES)])
            expected_G[~seen_G] = np.nan
            # rates above 16 are expanded around their mean
            atol = 3e-4 if (method, form) == ("rates", "composition") else 1e-6
            np.testing.assert_allclose(found[method, form].r(), expected_G, atol=atol, err_msg=f"{method} {form}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("entries_at_once", [1 << 22, 500, 1])
def test_products_with_counts_that_stay_sparse_are_those_of_the_values(tissue, form, entries_at_once, monkeypatch):
    monkeypatch.setattr(moments, "ENTRIES_AT_ONCE", entries_at_once)
    counts_NxG, _, seen_G = tissue
    given_NxF = np.random.default_rng(1).normal(size=(BINS, 3))
    measured = measure(scipy.sparse.csr_array(counts_NxG.astype(np.float32)), seen_G, np.arange(GENES), MIN_TOTAL)
    total_N = counts_NxG[:, seen_G].sum(1)
    values_NxG = values_of(counts_NxG * seen_G, total_N, form)
    bins = slice(None) if form == "counts" else total_N >= MIN_TOTAL
    found_FxG = measured.products(form, given_NxF)
    np.testing.assert_allclose(found_FxG, given_NxF[bins].T @ values_NxG, atol=1e-9)
    np.testing.assert_array_equal(found_FxG[:, ~seen_G], 0.0)
    dense_NxG = np.nan_to_num(measured.dense(form, measured.bins(form)))
    np.testing.assert_allclose(found_FxG, given_NxF[bins].T @ dense_NxG, atol=1e-9)


def test_a_pure_density_prediction_is_constant_given_the_total(tissue):
    counts_NxG, _, _ = tissue
    measured = measure(counts_NxG, np.ones(GENES, bool), np.arange(GENES), MIN_TOTAL)
    level_N = np.random.default_rng(1).gamma(2.0, 1.0, BINS)
    flat_NxG = (level_N[:, None] * counts_NxG.mean(0)).astype(np.float32)
    told = FromRates(lambda rows: flat_NxG[rows], flat_NxG.sum(1, dtype=np.float64))
    found = section_sums(measured, {"density": told})
    r_G = found["density", "residual"].r()
    assert (r_G[np.isfinite(r_G)] == 0).all() and np.isfinite(r_G).sum() >= GENES - 2
    # not so the composition of counts, which follows their number: its expectation says that it does
    for form in ("counts", "composition"):
        assert (found["density", form].r()[2:] != 0).all()


@pytest.mark.parametrize("values_at_once", [1 << 18, 7 * GENES])
@pytest.mark.parametrize("order", ["in order", "mixed"])
def test_blocks_that_are_drawn_weigh_as_often_as_they_are(tissue, values_at_once, order, monkeypatch):
    monkeypatch.setattr(moments, "VALUES_AT_ONCE", values_at_once)
    counts_NxG, told_NxG, seen_G = tissue
    measured = measure(counts_NxG, seen_G, np.arange(GENES), 1)
    block_N = np.arange(BINS) // 30
    if order == "mixed":
        block_N = np.random.default_rng(4).permutation(block_N)
    told = FromRates(lambda rows: told_NxG[rows], told_NxG[:, seen_G].sum(1, dtype=np.float64))
    rng = np.random.default_rng(5)
    line = Line(rng.gamma(2.0, 1.0, BINS), rng.normal(size=GENES), rng.normal(size=GENES))
    both = section_sums(measured, {"model": told, "line": {"counts": line}}, block_N)
    weights_BxK = np.array([[1.0, 1, 1, 1, 1], [0, 2, 1, 0, 2]])
    for method, values_NxG in (("model", told_NxG), ("line", line(slice(None)))):
        sums = both[method, "counts"]
        for weights_K, r_G in zip(weights_BxK, sums.r(weights_BxK), strict=True):
            rows = np.concatenate([np.tile(np.flatnonzero(block_N == k), int(w)) for k, w in enumerate(weights_K)])
            expected_G = pearson_by_gene(counts_NxG[rows], values_NxG[rows])
            np.testing.assert_allclose(r_G[seen_G], expected_G[seen_G], atol=1e-9)
        np.testing.assert_allclose(sums.of(np.array([5, 8])).r(), sums.r()[[5, 8]], rtol=1e-12)
    some = section_sums(measured.of(np.array([5, 8])), {"line": {"counts": line.of(np.array([5, 8]))}}, block_N)
    np.testing.assert_allclose(some["line", "counts"].r(), both["line", "counts"].r()[[5, 8]], rtol=1e-12)


@pytest.mark.parametrize("bins", [0, 1])
def test_too_few_bins_are_undefined(bins):
    measured = measure(np.ones((bins, 3)), np.ones(3, bool), np.arange(3), 1)
    told = FromRates(lambda rows: np.ones((bins, 3))[rows], np.full(bins, 3.0))
    for sums in section_sums(measured, {"model": told}).values():
        assert np.isnan(sums.r()).all()


def test_missing_predictions_are_no_skill(tissue):
    counts_NxG, told_NxG, _ = tissue
    told_NxG[:, 5] = np.nan
    measured = measure(counts_NxG, np.ones(GENES, bool), np.arange(GENES), 1)
    told = FromRates(lambda rows: told_NxG[rows], np.nansum(told_NxG, 1, dtype=np.float64))
    for sums in section_sums(measured, {"model": told}).values():
        assert sums.r()[5] == 0 and np.isfinite(sums.r()[6])


def test_the_bits_do_not_depend_on_the_number_of_cores(tissue, monkeypatch):
    monkeypatch.setattr(moments, "VALUES_AT_ONCE", 3 * GENES)
    counts_NxG, told_NxG, seen_G = tissue
    measured = measure(counts_NxG, seen_G, np.arange(GENES), 1)
    told = FromRates(lambda rows: told_NxG[rows], told_NxG[:, seen_G].sum(1, dtype=np.float64))
    found = []
    for cores in (1, 4):
        monkeypatch.setattr(moments.os, "cpu_count", lambda cores=cores: cores)
        found.append({name: sums.r() for name, sums in section_sums(measured, {"model": told}).items()})
    for name, r_G in found[0].items():
        np.testing.assert_array_equal(r_G, found[1][name])
