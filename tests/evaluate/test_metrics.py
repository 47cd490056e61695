"""Correlations, Moran's I and ceilings against independent float64 oracles, and on degenerate input."""

import numpy as np
import pytest
import scipy.sparse
import scipy.stats

from tario_jax.evaluate import metrics, moments, moran, noise


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def grid(side, pitch_um=36.0):
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    return (x.ravel() + 0.5) * pitch_um, (y.ravel() + 0.5) * pitch_um


def dense_moran(z, weights):
    """The textbook double sum."""
    z = z - z.mean()
    total = sum(weights[i, j] * z[i] * z[j] for i in range(len(z)) for j in range(len(z)))
    return len(z) / weights.sum() * total / (z**2).sum()


def dense_queen(x, y, pitch):
    near = (np.abs(x[:, None] - x) < 1.5 * pitch) & (np.abs(y[:, None] - y) < 1.5 * pitch)
    np.fill_diagonal(near, False)
    rows = near.sum(1, keepdims=True)
    return np.divide(near, rows, out=np.zeros(near.shape), where=rows > 0)


def test_pearson_equals_scipy_by_gene(rng):
    x = rng.poisson(3.0, (50, 20)).astype(np.float32)
    p = (x + rng.normal(size=x.shape)).astype(np.float32)
    expected = [scipy.stats.pearsonr(x[:, g].astype(float), p[:, g].astype(float))[0] for g in range(20)]
    np.testing.assert_allclose(metrics.pearson_by_gene(x, p), expected, atol=1e-12)


def test_constant_truth_is_undefined_and_constant_or_missing_prediction_is_zero(rng):
    x = rng.normal(size=(40, 5))
    p = x.copy()
    x[:, 0] = 3.0
    x[:, 1] = np.nan
    p[:, 2] = 0.1  # not exactly representable: its variance is rounding noise
    p[:, 3] = np.nan
    np.testing.assert_allclose(metrics.pearson_by_gene(x, p), [np.nan, np.nan, 0, 0, 1], atol=1e-12)


@pytest.mark.parametrize("bins", [0, 1])
def test_too_few_bins_are_undefined_not_an_error(bins):
    assert np.isnan(metrics.pearson_by_gene(np.ones((bins, 3)), np.ones((bins, 3)))).all()
    assert np.isnan(metrics.reliability(np.ones((bins, 3)))).all()
    x = np.zeros(bins)
    assert np.isnan(moran.morans_i(np.ones((bins, 3)), moran.neighbour_weights(x, x, 36.0, "square"))).all()


def test_pure_density_has_no_composition_and_no_residual(rng):
    total = rng.gamma(5.0, 100.0, 60)
    share = rng.dirichlet(np.ones(12))
    rates = (total[:, None] * share).astype(np.float32)
    x = rng.poisson(rates).astype(float)
    for form in (metrics.composition, metrics.pearson_residuals):
        assert (metrics.pearson_by_gene(form(x, x.sum(1)), form(rates, rates.sum(1))) == 0).all()
    assert metrics.pearson_by_gene(x, rates).mean() > 0.5


def test_composition_is_log1p_of_1e4_and_empty_bins_are_zero():
    values = np.array([[1.0, 3.0], [0.0, 0.0]])
    expected = [[np.log1p(2500), np.log1p(7500)], [0, 0]]
    np.testing.assert_allclose(metrics.composition(values, values.sum(1)), expected)


def test_residuals_are_those_of_a_contingency_table(rng):
    counts = rng.poisson(4.0, (30, 6)).astype(float)
    expected = scipy.stats.contingency.expected_freq(counts)
    residuals = metrics.pearson_residuals(counts, counts.sum(1))
    np.testing.assert_allclose(residuals, (counts - expected) / np.sqrt(expected), atol=1e-9)


def test_expected_composition_equals_the_sum_over_the_poisson(rng):
    rates = np.array([[0.01, 0.4, 3.0, 15.9, 16.1, 80.0]])
    total = np.array([500.0])
    n = np.arange(0, 400)
    expected = [(scipy.stats.poisson.pmf(n, rate) * np.log1p(n * 1e4 / 500.0)).sum() for rate in rates[0]]
    np.testing.assert_allclose(metrics.expected_composition(rates, total)[0], expected, atol=4e-3)
    for rate in (0.0, 0.003, 0.1, 0.4, 0.5, 1.9, 2.0, 2.1, 15.9):  # each alone: the number of terms follows the rate
        for total in (30.0, 500.0, 20000.0):
            expected = (scipy.stats.poisson.pmf(n, rate) * np.log1p(n * 1e4 / total)).sum()
            found = metrics.expected_composition(np.array([[rate]]), np.array([total]))
            np.testing.assert_allclose(found, [[expected]], atol=2e-5)


@pytest.mark.parametrize("layout", ["square", "spots"])
def test_moran_equals_the_dense_double_sum_also_over_gaps(rng, layout):
    x, y = grid(8)
    keep = (x < 100) | (x > 200)  # a gap that nothing may bridge
    keep &= rng.random(len(x)) < 0.9
    x, y = x[keep], y[keep]
    values = rng.normal(size=(len(x), 4)) + np.sin(x / 60)[:, None]
    weights = moran.neighbour_weights(x, y, 36.0, layout)
    if layout == "square":
        dense = dense_queen(x, y, 36.0)
    else:
        distance = np.hypot(x[:, None] - x, y[:, None] - y)
        np.fill_diagonal(distance, np.inf)
        dense = weights.toarray()
        rows = np.arange(len(x))[:, None]
        # ties of distance make several sets of 8 right: the distances are the claim
        chosen = np.sort(np.where(dense > 0, distance, np.inf), 1)[:, :8]
        nearest = np.sort(distance[rows, np.argsort(distance, 1)[:, :8]], 1)
        nearest[nearest > 2.5 * 36.0] = np.inf
        np.testing.assert_allclose(chosen, nearest)
    np.testing.assert_allclose(weights.toarray(), dense, atol=1e-12)
    got = moran.morans_i(values.astype(np.float32), weights)
    np.testing.assert_allclose(got, [dense_moran(values[:, g], dense) for g in range(4)], atol=1e-5)


@pytest.mark.parametrize("layout", ["square", "spots"])  # of spots, one may be near another that is not near it
@pytest.mark.parametrize("entries_at_once", [1, 60, 1 << 19])
def test_moran_of_sparse_counts_equals_that_of_dense_ones(rng, monkeypatch, entries_at_once, layout):
    monkeypatch.setattr(moran, "ENTRIES_AT_ONCE", entries_at_once)
    x, y = grid(9)
    kept = rng.random(81) > 0.2  # with gaps, and so with places of fewer neighbours
    counts = rng.poisson(0.5, (81, 12)).astype(float)
    counts[:, 3], counts[:, 4] = 0, 2
    weights = moran.neighbour_weights(x[kept], y[kept], 36.0, layout)
    assert layout == "square" or abs((weights > 0).astype(int) - (weights.T > 0).astype(int)).max() == 1
    found = moran.morans_i(scipy.sparse.csr_array(counts[kept]), weights)
    np.testing.assert_allclose(found, moran.morans_i(counts[kept], weights), atol=1e-12)
    assert np.isnan(found[3:5]).all() and np.isfinite(found[5:]).all()


def test_no_edge_crosses_a_gap():
    x, y = grid(6)
    keep = (x < 70) | (x > 150)
    weights = moran.neighbour_weights(x[keep], y[keep], 36.0, "square").toarray()
    left = x[keep] < 100
    assert weights[np.ix_(left, ~left)].sum() == 0
    inner = np.flatnonzero(left)[0]
    assert weights[inner].sum() == pytest.approx(1.0)


def test_moran_of_a_constant_gene_is_nan_and_of_a_gradient_is_high():
    x, y = grid(10)
    values = np.stack([np.full(100, 0.1), x, (-1.0) ** (x // 36)], 1)
    got = moran.morans_i(values, moran.neighbour_weights(x, y, 36.0, "square"))
    assert np.isnan(got[0]) and got[1] > 0.7 and got[2] < 0


def test_ceiling_is_the_best_r_and_equals_thinning(rng):
    rate = rng.gamma(2.0, 3.0, (4000, 8))
    counts = rng.poisson(rate).astype(float)
    ceiling = metrics.ceiling(metrics.reliability(counts)[None])
    np.testing.assert_allclose(ceiling, metrics.pearson_by_gene(counts, rate), atol=0.02)
    halves = [metrics.pearson_by_gene(*metrics.thin(counts, rng)) for _ in range(5)]
    np.testing.assert_allclose(np.sqrt(metrics.spearman_brown(np.mean(halves, 0))), ceiling, atol=0.02)


def test_ceiling_clips_after_the_mean_over_sections():
    rho = np.array([[-0.5], [0.6]])
    assert metrics.ceiling(rho)[0] == pytest.approx(np.sqrt(0.05))


@pytest.mark.parametrize("shape", ["full", "with gaps"])
def test_moran_equals_that_of_esda(rng, shape):
    esda, weights = pytest.importorskip("esda.moran"), pytest.importorskip("libpysal.weights")
    x, y = grid(11)
    kept = np.ones(len(x), bool)
    if shape == "with gaps":
        kept = rng.random(len(x)) > 0.15
    places, counts = np.stack([x[kept], y[kept]], 1), rng.poisson(rng.gamma(1.0, 1.0, (len(x), 6)))[kept].astype(float)
    queen = weights.DistanceBand(places, 1.5 * 36.0, binary=True, silence_warnings=True)
    assert not queen.islands
    queen.transform = "r"
    ours = moran.neighbour_weights(*places.T, 36.0, "square")
    expected = [esda.Moran(counts[:, g], queen, permutations=0).I for g in range(6)]
    for values in (counts, scipy.sparse.csr_array(counts)):
        np.testing.assert_allclose(moran.morans_i(values, ours), expected, atol=1e-10)


def test_spots_of_a_hexagonal_array_have_six_neighbours_and_those_of_a_square_one_eight(rng):
    row, column = (v.ravel() for v in np.meshgrid(np.arange(12), np.arange(12), indexing="ij"))
    hexagonal = (column + 0.5 * (row % 2)) * 100.0, row * 100.0 * np.sqrt(0.75)
    square = column * 200.0, row * 200.0
    inner = (row > 1) & (row < 10) & (column > 1) & (column < 10)
    for places, pitch, expected in ((hexagonal, 100.0, 6), (square, 200.0, 8)):
        jittered = [place + rng.normal(0, 0.03 * pitch, place.shape) for place in places]
        weights = moran.neighbour_weights(*jittered, pitch, "spots")
        assert (np.diff(weights.indptr)[inner] == expected).all()
        if expected == 6:
            far = [abs(jittered[0][i] - jittered[0][j]) for i, j in zip(*weights.nonzero(), strict=True) if inner[i]]
            assert max(far) < 1.2 * pitch


def test_thinning_equals_brute_force_on_the_same_draws(rng):
    counts = rng.poisson(rng.gamma(1.0, 2.0, (60, 7))).astype(float)
    counts[:, 5], counts[:, 6] = 0, 3
    rest = rng.poisson(40.0, 60)
    measured = moments.Measured(scipy.sparse.csr_array(counts), counts.sum(1) + rest, np.arange(60), np.ones(7, bool))
    found = noise.thinned(measured, np.random.default_rng(8), None)
    draws = np.random.default_rng(8)
    r = {form: [] for form in moments.FORMS}
    for _ in range(noise.SPLITS):
        half = np.zeros_like(counts)
        half[counts > 0] = draws.binomial(counts[counts > 0].astype(int), 0.5)  # row by row, as the entries are stored
        half_rest = draws.binomial(rest, 0.5)
        sides = [(half, half.sum(1) + half_rest), (counts - half, (counts - half).sum(1) + rest - half_rest)]
        forms = [(x, metrics.composition(x, t), metrics.pearson_residuals(x, t)) for x, t in sides]
        for k, form in enumerate(moments.FORMS):
            r[form].append(metrics.pearson_by_gene(forms[0][k], forms[1][k]))
    for form in moments.FORMS:
        np.testing.assert_allclose([sums.r() for sums in found[form]], r[form], atol=1e-6)
