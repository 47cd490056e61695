"""Laws: constants that are known are found, the optimum is the one that brute force finds, and the rule refuses."""

import numpy as np
import pytest

from tario_jax.evaluate.scaling.laws import Law, bootstrap, fit, huber
from tario_jax.evaluate.scaling.trial import seed_deviation, try_law

PATIENTS = np.repeat([93.0, 186, 372, 744, 1488, 2545], 2)
SD = 0.004


def trial(losses_R, sizes_R=PATIENTS, samples: int = 5):
    return try_law({"patients": sizes_R}, losses_R, list(sizes_R), samples, np.random.default_rng(0))


def noise(seed: int, sd: float = SD) -> np.ndarray:
    return sd * np.random.default_rng(seed).standard_normal(len(PATIENTS))


def test_known_constants_of_one_axis_are_found():
    law = fit(PATIENTS, 5.0 + 3.0 * PATIENTS**-0.35)
    assert (law.floor, *law.scales, *law.exponents) == pytest.approx((5.0, 3.0, 0.35), rel=1e-5)
    assert law(np.array([100.0, 1e9])) == pytest.approx([5.0 + 3.0 * 100**-0.35, 5.0 + 3.0 * 1e9**-0.35], rel=1e-6)


def test_known_constants_of_two_axes_are_found_from_a_cross_of_sweeps():
    parameters = np.array([1e5] * 5 + [3e4, 3e5, 1e6, 3e6])
    patients = np.array([93.0, 186, 372, 744, 1488] + [744] * 4)
    sizes = np.stack([parameters, patients], 1)
    law = fit(sizes, 4.0 + 30.0 * parameters**-0.4 + 3.0 * patients**-0.3)
    found = (law.floor, *law.scales, *law.exponents)
    assert found == pytest.approx((4.0, 30.0, 3.0, 0.4, 0.3), rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_no_constants_of_a_fine_grid_fit_better(seed):
    """The oracle: every (E, a) of a grid, with the A that a fine line search finds; once more around the best."""
    x, y = PATIENTS, 5.0 + 3.0 * PATIENTS**-0.35 + noise(seed, 0.02)
    law = fit(x, y)
    best = np.inf
    floors, exponents, tops = np.linspace(3.5, 5.2, 35), np.linspace(0.05, 1.5, 35), np.linspace(0.05, 1.0, 60)
    for _ in range(4):
        E, a, top = np.meshgrid(floors, exponents, tops, indexing="ij")
        curve = E[..., None] + top[..., None] * (x / x.min()) ** -a[..., None]  # top: what the term is at the smallest
        objective = huber(np.log(curve) - np.log(y)).sum(-1)
        i, j, k = np.unravel_index(objective.argmin(), objective.shape)
        best = objective[i, j, k]
        floors, exponents, tops = (
            np.linspace(values[max(n - 2, 0)], values[min(n + 2, len(values) - 1)], 25)
            for values, n in ((floors, i), (exponents, j), (tops, k))
        )
    assert huber(np.log(law(x)) - np.log(y)).sum() == pytest.approx(law.huber, rel=1e-9)
    assert law.huber <= best * (1 + 1e-9)
    assert law.huber == pytest.approx(best, rel=0.02)


def test_the_huber_loss_is_a_square_and_then_a_line():
    assert huber(np.array([0.0, 5e-4, -5e-4, 3e-3])) == pytest.approx([0, 1.25e-7, 1.25e-7, 1e-3 * (3e-3 - 5e-4)])


def test_a_stray_run_moves_the_law_little():
    y = 5.0 + 3.0 * PATIENTS**-0.35
    y[3] += 0.5
    assert fit(PATIENTS, y)(PATIENTS[4:]) == pytest.approx(5.0 + 3.0 * PATIENTS[4:] ** -0.35, abs=0.01)


def test_intervals_of_the_bootstrap_hold_the_constants():
    y = (5.0 + 3.0 * PATIENTS**-0.35) * (1 + noise(1, 5e-4))
    ends = bootstrap(PATIENTS, y, fit(PATIENTS, y), 60, np.random.default_rng(0))
    assert ends["samples"] == 60
    for name, value in (("E", 5.0), ("A", 3.0), ("a", 0.35)):
        low, high = ends[name]
        assert low < value < high and high - low < value


def test_a_bootstrap_that_can_draw_no_three_sizes_ends():
    x = np.array([1.0, 1, 2, 2])
    assert bootstrap(x, x, Law(1.0, (1.0,), (1.0,), 0.0), 3, np.random.default_rng(0))["samples"] == 0


def test_a_law_that_predicts_the_largest_run_is_accepted():
    accepted = [trial(5.0 + 3.0 * PATIENTS**-0.35 + noise(seed)).accepted for seed in range(6)]
    assert sum(accepted) >= 4  # the rule is one of two standard deviations
    found = trial(5.0 + 3.0 * PATIENTS**-0.35 + noise(0))
    assert found.why == "" and found.intervals["samples"] == 5
    assert found.seed_degrees == 6 and found.seed_sd == pytest.approx(SD, rel=0.8)
    assert found.residuals == pytest.approx(5.0 + 3.0 * PATIENTS**-0.35 + noise(0) - found.law(PATIENTS))
    (held,) = found.held_back
    y = 5.0 + 3.0 * PATIENTS**-0.35 + noise(0)
    assert held.predicted == pytest.approx(float(fit(PATIENTS[:-2], y[:-2])(np.array([2545.0]))[0]))
    assert held.found == pytest.approx(y[-2:].mean())
    assert held.without_axis == pytest.approx(y[2:-2].mean())
    assert (held.size, held.runs) == (2545, 2) and held.error(found.seed_sd) <= 2 < held.flatness(found.seed_sd)


def test_a_curve_that_saturates_is_refused_with_the_numbers():
    y = 5.0 + 3.0 * np.minimum(PATIENTS, 800) ** -0.35
    found = trial(y + noise(0))
    assert found.verdict == "refused" and found.law is not None and found.intervals is None
    (held,) = found.held_back
    assert held.predicted < held.found - 2 * found.seed_sd
    assert f"predicts {held.predicted:.4f}" in found.why and f"found {held.found:.4f}" in found.why


def test_a_curve_that_is_flat_beyond_its_smallest_size_is_refused():
    y = np.where(PATIENTS == 93, 5.6, 5.0)
    found = trial(y + noise(0))
    assert found.verdict == "refused" and "no trend beyond the smallest" in found.why


def test_an_exponent_that_is_a_step_is_refused():
    sizes = np.repeat([1.0, 1.05, 1.1, 1.15, 1.2], 2)
    y = 5.0 + 3.0 * sizes**-5.0 + np.array([0.1, -0.1, *[0.0] * 8])
    found = try_law({"patients": sizes}, y, list(sizes), 5, np.random.default_rng(0))
    (held,) = found.held_back
    assert held.error(found.seed_sd) <= 2 < held.flatness(found.seed_sd)
    assert found.verdict == "refused" and found.why == "an exponent of 4 or more is a step, not a law"


def test_pure_noise_is_refused():
    verdicts = [trial(5.0 + noise(seed)).verdict for seed in range(8)]
    assert verdicts == ["refused"] * 8


def test_with_few_sizes_or_without_replicates_nothing_is_fitted():
    few = PATIENTS[:6]
    found = trial(5.0 + few**-0.3, few)
    assert found.verdict == "not fitted" and "3 sizes (patients)" in found.why and found.law is None
    once = np.unique(PATIENTS)
    assert "differ in their seeds only" in trial(5.0 + once**-0.3, once).why
    assert "above 0" in trial(np.where(PATIENTS == 93, np.nan, 1.0) + noise(0)).why


def test_a_joint_law_must_predict_the_largest_of_both_axes():
    parameters = np.repeat([1e5] * 5 + [3e4, 3e5, 1e6, 3e6], 2)
    patients = np.repeat([93.0, 186, 372, 744, 1488] + [744] * 4, 2)
    groups = list(np.repeat(np.arange(9), 2))
    y = 4.0 + 30.0 * parameters**-0.4 + 3.0 * patients**-0.3
    y = y + 0.002 * np.random.default_rng(2).standard_normal(len(y))

    def tried(losses):
        sizes = {"parameters": parameters, "patients": patients}
        return try_law(sizes, losses, groups, 5, np.random.default_rng(0))

    assert tried(y).accepted
    late = tried(y + 0.1 * (parameters == 3e6))
    assert late.verdict == "refused" and "largest (parameters 3,000,000)" in late.why
    flat = tried(y - 3.0 * patients**-0.3)
    assert flat.verdict == "refused" and "knows nothing of patients" in flat.why


def test_a_joint_law_must_predict_every_configuration_of_the_largest_size():
    """One that is far off at the largest of both axes is not hidden by the others of the row."""
    grid = np.meshgrid([3e4, 1e5, 3e5, 1e6], [93, 372, 1488, 2545])
    parameters, patients = (np.repeat(size.ravel(), 2) for size in grid)
    sd, corner = 0.003, (parameters == 1e6) & (patients == 2545)
    y = 4.0 + 30.0 * parameters**-0.4 + 3.0 * patients**-0.3 + np.tile([sd, -sd], 16) / np.sqrt(2)

    def tried(losses):
        sizes, groups = {"parameters": parameters, "patients": patients}, np.repeat(np.arange(16), 2)
        return try_law(sizes, losses, groups, 5, np.random.default_rng(0))

    assert tried(y).accepted
    off = tried(y + 6 * sd * corner)
    assert off.verdict == "refused" and "it predicts" in off.why
    assert (6 * sd * corner)[patients == 2545].mean() < 2 * sd  # in the mean of the row it hides


def test_the_seed_deviation_is_pooled_over_groups():
    sd, degrees = seed_deviation(np.array([1.0, 3.0, 10.0, 10.0, 13.0, 5.0]), ["a", "a", "b", "b", "b", "c"])
    assert degrees == 3 and sd == pytest.approx(np.sqrt((2.0 + 6.0) / 3))
    assert seed_deviation(np.array([1.0, 2.0]), [0, 1]) == (None, 0)
