"""Bootstraps: the unit is the patient, blocks are paired, constants stay constants."""

import numpy as np
import pytest
import scipy.stats

from tario_jax.evaluate import curve, intervals
from tario_jax.evaluate.metrics import pearson_by_gene


def test_an_interval_is_the_middle_of_what_is_known():
    ends = intervals.ends(np.array([np.nan, *np.linspace(0, 1, 1001)]))
    assert ends == pytest.approx({"low": 0.025, "high": 0.975})
    assert np.isnan(intervals.interval(np.array([np.nan]))).all()


def test_patients_are_drawn_with_all_their_sections():
    resampling = intervals.patient_resampling(["a", "b", "a", "c"], 200, np.random.default_rng(0))
    weights = resampling.weights_BxS
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()


def test_patient_interval_has_the_width_of_the_standard_error():
    rng = np.random.default_rng(1)
    r = rng.normal(0.5, 0.1, (100, 1))
    resampling = intervals.patient_resampling([str(s) for s in range(100)], 2000, rng)
    low, high = intervals.interval(intervals.resample(intervals.Scores(r), np.array([0]), resampling)[:, 0])
    assert low < r.mean() < high
    assert (high - low) / 2 == pytest.approx(1.96 * r.std() / 10, rel=0.1)


def test_undefined_sections_are_left_out_of_every_sample():
    r = np.array([[np.nan, 0.2], [0.4, np.nan]])
    got = intervals.weighted_mean(r, np.array([[1.0, 1.0], [2.0, 0.0]]))
    np.testing.assert_allclose(got, [[0.4, 0.2], [np.nan, 0.2]])


def test_block_correlation_equals_pearson_on_the_repeated_bins():
    rng = np.random.default_rng(2)
    x = rng.poisson(2.0, (90, 5)).astype(float) + 1000
    p = x + rng.normal(size=x.shape)
    x[:, 3], p[:, 4] = 0.1, 7.7
    x[10:, 2] = 0.0  # constant once its block is not drawn
    block = np.repeat(np.arange(9), 10)
    weights = rng.multinomial(9, np.full(9, 1 / 9), 20).astype(float)
    weights[0] = 1
    weights[1] = [0, *[1] * 7, 2]
    got = intervals.block_correlation(x, p, block, weights)
    for b in range(20):
        rows = np.concatenate([np.tile(np.flatnonzero(block == k), int(weights[b, k])) for k in range(9)])
        np.testing.assert_allclose(got[b], pearson_by_gene(x[rows], p[rows]), atol=1e-7)
    assert np.isnan(got[1, 2]) and np.isnan(got[:, 3]).all() and (got[:, 4] == 0).all()


def test_blocks_are_squares_of_the_stated_side():
    x, y = (v.ravel() for v in np.meshgrid(np.arange(18, 300, 36.0), np.arange(18, 300, 36.0)))
    block = intervals.blocks(x, y, 100.0)
    assert block.max() + 1 == 9
    for k in range(9):
        assert np.ptp(x[block == k]) < 100 and np.ptp(y[block == k]) < 100


def test_a_constant_difference_has_a_paired_interval_of_no_width():
    rng = np.random.default_rng(3)
    r = rng.normal(size=(12, 1))
    resampling = intervals.patient_resampling([str(s) for s in range(12)], 300, rng)
    first, second = (intervals.resample(intervals.Scores(v), np.array([0]), resampling) for v in (r + 0.1, r))
    np.testing.assert_allclose(intervals.interval((first - second)[:, 0]), (0.1, 0.1))


def test_curve_is_the_mean_over_the_top_k_with_undefined_left_out():
    r = np.array([0.1, 0.9, np.nan, 0.5])
    sizes = curve.curve_sizes(4)
    np.testing.assert_allclose(curve.curve(r, np.array([2, 1, 3, 0]), sizes), [np.nan, 0.9, 0.7, 0.5])
    assert curve.curve_sizes(5000)[[0, 99, -1]].tolist() == [1, 100, 5000]


@pytest.mark.parametrize("patients", [2, 3, 5, 30])
def test_genes_without_skill_pass_the_t_interval_one_in_forty_times_whatever_the_number_of_patients(patients):
    values = np.random.default_rng(patients).normal(size=(patients, 20_000))
    assert (intervals.lower_t(values) > 0).mean() == pytest.approx(0.025, abs=0.004)
    values[:, 0], values[1:, 1] = np.nan, np.nan
    assert np.isnan(intervals.lower_t(values)[:2]).all()
    low = values[:, 5].mean() - scipy.stats.sem(values[:, 5]) * scipy.stats.t.ppf(0.975, patients - 1)
    assert intervals.lower_t(values)[5] == pytest.approx(low)


def test_one_patient_has_no_interval_and_not_one_of_no_width():
    resampling = intervals.patient_resampling(["a", "a"], 50, np.random.default_rng(0))
    r = np.random.default_rng(1).normal(size=(2, 3))
    samples = intervals.resample(intervals.Scores(r), np.arange(3), resampling)
    assert samples.shape == (50, 3) and np.isnan(samples).all()
    assert np.isnan(intervals.interval(samples[:, 0])).all()
