"""Ridge against scikit-learn, lines against polyfit, displacement and turning on known grids."""

import functools
import weakref

import numpy as np
import pytest

from tario_jax.evaluate import controls, ridge
from tario_jax.evaluate.metrics import pearson_by_gene
from tario_jax.evaluate.moments import measure


def grid(side, pitch_um=36.0):
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    return (x.ravel() + 0.5) * pitch_um, (y.ravel() + 0.5) * pitch_um


def test_ridge_equals_scikit_learn_at_its_alpha():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    features = [rng.normal(2.0, 3.0, (60, 12)) for _ in range(6)]
    features = [np.concatenate([f, np.full((60, 1), 4.0)], 1) for f in features]  # one constant feature
    truth = rng.normal(size=(13, 7))
    targets = [f @ truth + rng.normal(size=(60, 7)) for f in features]
    # Not centred: fits on a part of the bins meet features whose mean is not 0.
    scaler = ridge.Scaler(np.full(13, 1.0), np.full(13, 2.0))
    fitted = ridge.fit_ridge(features, targets, list("aabbcc"), np.arange(7), scaler)
    assert fitted.alpha in ridge.ALPHAS
    z = np.concatenate([scaler(f) for f in features])
    oracle = linear_model.Ridge(alpha=fitted.alpha).fit(z, np.concatenate(targets))
    np.testing.assert_allclose(fitted(features[0]), oracle.predict(scaler(features[0])), atol=1e-8)


def test_the_scaler_is_that_of_all_bins_together_and_a_constant_stays_nothing():
    rng = np.random.default_rng(0)
    features = [(1e5 + rng.normal(size=(n, 4)) * (0.1, 1, 7, 0)).astype(np.float32) for n in (300, 1, 41)]
    together = np.concatenate(features).astype(np.float64)
    scaler = ridge.fit_scaler([ridge.Spread.of(one) for one in features])
    np.testing.assert_allclose(scaler.mean_F, together.mean(0), rtol=1e-13)
    np.testing.assert_allclose(scaler.sd_F[:3], together.std(0)[:3], rtol=1e-9)
    assert scaler.sd_F[3] == 1.0


def test_alpha_is_chosen_across_groups_so_a_patient_is_not_memorised():
    rng = np.random.default_rng(1)
    features, targets, patients = [], [], []
    for patient in "abc":
        own = rng.normal(size=(10, 3))  # what ten features mean differs from patient to patient
        for _ in range(5):
            shared, private = rng.normal(size=(40, 1)), rng.normal(size=(40, 10))
            features.append(np.concatenate([shared + 0.3 * rng.normal(size=(40, 10)), private], 1))
            targets.append(shared + private @ own)
            patients.append(patient)
    scaler = ridge.fit_scaler([ridge.Spread.of(one) for one in features])
    sections = [str(s) for s in range(15)]
    across = ridge.fit_ridge(features, targets, patients, np.arange(3), scaler)
    within = ridge.fit_ridge(features, targets, sections, np.arange(3), scaler)
    assert across.alpha > 10 * within.alpha  # folds over sections would see each patient on both sides


def test_r_within_a_section_is_that_of_its_bins():
    """The sums that are kept of a section are of one size, whatever its bins, and tell r of any ridge."""
    rng = np.random.default_rng(7)
    scaler, sizes = ridge.Scaler(np.full(6, 1.0), np.full(6, 2.0)), set()
    for bins in (1, 2, 300, 600):
        features, targets = rng.normal(2.0, 3.0, (bins, 6)), rng.poisson(3.0, (bins, 5)).astype(float)
        targets[:, 1] = 4.0
        fit = ridge.RidgeFit(scaler, 5, np.arange(5))
        fit.add_tuning(features, targets, np.array([True, True, False, True, True]), 0)
        (kept,) = fit._tuning
        sizes.add(sum(of.nbytes for of in kept if isinstance(of, np.ndarray)))
        genes, at, mean = np.array([0, 1, 3, 4]), rng.normal(size=6), rng.normal(size=4)
        slope = rng.normal(size=(6, 4))
        slope[:, 2] = 0.0  # a constant prediction
        expected = pearson_by_gene(targets[:, genes], mean + (scaler(features) - at) @ slope)
        np.testing.assert_allclose(kept.r(slope, at, mean, genes), expected, atol=1e-9)
        assert np.isnan(expected[1]) and (bins == 1 or expected[2] == 0.0)
    assert len(sizes) == 1


def test_lines_equal_polyfit_and_leave_out_sections_that_did_not_measure():
    rng = np.random.default_rng(2)
    u = [rng.normal(size=n) for n in (40, 50)]
    y = [rng.normal(size=(len(v), 2)) + 2 * v[:, None] for v in u]
    y[1][:, 1] = np.nan
    fit = controls.LineFit(2)
    for u_N, y_NxG in zip(u, y, strict=True):
        seen_G = np.isfinite(y_NxG).all(0)
        y_NxG = np.where(seen_G, y_NxG, 0.0)
        fit.add(u_N, y_NxG.sum(0), u_N @ y_NxG, seen_G)
    lines = fit.solve()
    both = np.polyfit(np.concatenate(u), np.concatenate([y[0][:, 0], y[1][:, 0]]), 1)
    one = np.polyfit(u[0], y[0][:, 1], 1)
    np.testing.assert_allclose(lines.slope_G, [both[0], one[0]], atol=1e-10)
    np.testing.assert_allclose(lines.intercept_G, [both[1], one[1]], atol=1e-10)


@pytest.mark.parametrize("pitches", [1, 2])
def test_displacement_reads_the_bin_that_many_pitches_away(pitches):
    x, y = grid(6)
    right, left, down, up = controls.displaced(x, y, 36.0, "square", pitches)
    at = {(round(a), round(b)): k for k, (a, b) in enumerate(zip(x, y, strict=True))}
    for source, (dx, dy) in ((right, (1, 0)), (left, (-1, 0)), (down, (0, 1)), (up, (0, -1))):
        expected = [at.get((round(a + 36 * pitches * dx), round(b + 36 * pitches * dy)), -1)
                    for a, b in zip(x, y, strict=True)]  # fmt: skip
        assert source.tolist() == expected
    assert (right == -1).sum() == 6 * pitches


def test_displacement_never_reads_over_a_gap():
    x, y = grid(6)
    keep = np.abs(x - 90) > 1
    right = controls.displaced(x[keep], y[keep], 36.0, "square", 1)[0]
    assert (right[np.abs(x[keep] - 54) < 1] == -1).all()


def test_jittered_spots_find_their_neighbours():
    rng = np.random.default_rng(3)
    x, y = grid(8, 200.0)
    jx, jy = x + rng.uniform(-30, 30, 64), y + rng.uniform(-30, 30, 64)
    assert (
        controls.displaced(jx, jy, 200.0, "spots", 1)[0].tolist()
        == controls.displaced(x, y, 200.0, "square", 1)[0].tolist()
    )


def test_turned_targets_keep_smoothness_and_lose_the_place():
    rng = np.random.default_rng(4)
    x, y = grid(14)
    smooth = np.sin(x / 70) + np.cos(y / 90 + 1)
    r = []
    for _ in range(40):
        source = controls.turned(x, y, 36.0, rng)
        met = source >= 0
        assert met.mean() > 0.5 and len(set(source[met].tolist())) > 0.5 * met.sum()
        r.append(pearson_by_gene(smooth[met][:, None], smooth[source[met]][:, None])[0])
    assert np.mean(r) < 0.4 and np.std(r) > 0.1  # a permutation's would be 0.07


def test_genes_that_a_section_did_not_measure_do_not_spoil_the_ridge_of_the_others():
    rng = np.random.default_rng(5)
    features = [rng.normal(size=(50, 4)) for _ in range(4)]
    counts = [rng.poisson(np.exp(0.3 * f[:, :1] + np.ones((1, 3)) * 3)).astype(float) for f in features]
    seen = [np.array([True, True, s < 2]) for s in range(4)]
    alive: list[weakref.ref] = []

    def read(counts_NxG, measured_G, features_NxF):
        assert sum(of() is not None for of in alive) <= 1  # no more than the section that was read before
        features_NxF = features_NxF.copy()
        alive.append(weakref.ref(features_NxF))
        return measure(counts_NxG, measured_G, np.arange(3), 1), features_NxF

    sections = [
        controls.Fitting(functools.partial(read, c, m, f), ridge.Spread.of(f), c[:, m].sum(1), f[:, 0] + 5, group)
        for c, m, f, group in zip(counts, seen, features, "abcd", strict=True)
    ]
    fitted = controls.fit_controls(sections, np.arange(3))
    assert np.isfinite(fitted.ridge["counts"](features[0])).all()
    assert pearson_by_gene(counts[3], fitted.ridge["counts"](features[3])).min() > 0.3
    again = controls.controls_from_arrays(controls.controls_to_arrays(fitted))
    np.testing.assert_array_equal(again.ridge["counts"](features[0]), fitted.ridge["counts"](features[0]))
    rows = slice(0, 50)
    for form, values in fitted.ridge_direct(features[0]).items():
        np.testing.assert_array_equal(again.ridge_direct(features[0])[form](rows), values(rows))


def test_controls_of_every_form_are_those_that_are_fitted_to_its_values():
    rng = np.random.default_rng(8)
    features = [rng.normal(size=(60, 4)) for _ in range(5)]
    counts = [rng.poisson(np.exp(0.3 * f[:, :1] + rng.normal(size=(1, 6)))).astype(float) for f in features]
    measured = [measure(of, np.ones(6, bool), np.arange(6), 9) for of in counts]
    density = [np.exp(f[:, 1]) for f in features]
    assert all(0 < len(of.kept_N) < 60 for of in measured)
    spread = [ridge.Spread.of(of) for of in features]
    sections = [controls.Fitting(functools.partial(lambda *pair: pair, m, f), s, m.total_N, d, group)
                for m, f, s, d, group in zip(measured, features, spread, density, "aabbc", strict=True)]  # fmt: skip
    fitted = controls.fit_controls(sections, np.arange(6))
    log = {"nuclear_density": [np.log(of) for of in density],
           "true_total": [np.log(np.maximum(of.total_N, fitted.true_total.floor)) for of in measured]}  # fmt: skip
    for form, direct in fitted.ridge.items():
        bins = [of.bins(form) for of in measured]
        values = [of.dense(form, at) for of, at in zip(measured, bins, strict=True)]
        seen = [of[at] for of, at in zip(features, bins, strict=True)]
        own = ridge.fit_ridge(seen, values, list("aabbc"), np.arange(6), ridge.fit_scaler(spread))
        np.testing.assert_allclose(direct(features[0]), own(features[0]), atol=1e-9)
        for name, log_S in log.items() if form != "counts" else ():
            lines = getattr(fitted, name).lines[form]
            u = np.concatenate([of[at] for of, at in zip(log_S, bins, strict=True)])
            expected = np.polyfit(u, np.concatenate(values), 1)
            np.testing.assert_allclose([lines.slope_G, lines.intercept_G], expected, atol=1e-9)


def test_sections_without_a_bin_of_counts_enough_count_for_nothing_in_composition():
    rng = np.random.default_rng(9)
    features = [rng.normal(size=(60, 4)) for _ in range(3)]
    counts = [rng.poisson(np.exp(0.3 * f[:, :1] + np.full((1, 5), level))).astype(float)
              for f, level in zip(features, (2, 2, -3), strict=True)]  # fmt: skip

    def fitted(which, groups):
        measured = [measure(counts[k], np.ones(5, bool), np.arange(5), 9) for k in which]
        return controls.fit_controls([
            controls.Fitting(functools.partial(lambda *pair: pair, m, features[k]), ridge.Spread.of(features[k]),
                             m.total_N, features[k][:, 0] + 5, group)
            for k, m, group in zip(which, measured, groups, strict=True)
        ], np.arange(5))  # fmt: skip

    # two sections of one patient: nothing is held out, with or without a patient who has no bins in this form
    alone, beside = fitted([0, 1], "aa"), fitted([0, 1, 2], "aab")
    for form in ("composition", "residual"):
        assert beside.ridge[form].alpha == alone.ridge[form].alpha
        assert np.isfinite(beside.ridge[form](features[0])).all()
    nowhere = fitted([2, 2], "ab").ridge["composition"]
    assert np.isnan(nowhere.intercept_G).all()  # no prediction


def test_of_a_gene_that_no_training_section_saw_the_density_tells_what_it_can():
    rng = np.random.default_rng(6)
    density_N = rng.gamma(2.0, 3.0, 200).astype(np.float32)
    lines = {form: controls.Lines(np.zeros(2), np.zeros(2)) for form in ("composition", "residual")}
    told = controls.from_density(controls.Density(lines, 1e-6), density_N, np.array([0.01, 0.0]))
    told_NxG = told["counts"](slice(0, 200))
    np.testing.assert_allclose(told_NxG[:, 0], 0.01 * density_N)
    counts_NxG = rng.poisson(density_N[:, None], (200, 2)).astype(float)
    r = [np.corrcoef(counts_NxG[:, g], density_N)[0, 1] for g in range(2)]
    np.testing.assert_allclose(pearson_by_gene(counts_NxG, told_NxG), r)  # of both, whatever their share
