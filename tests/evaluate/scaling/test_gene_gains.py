"""Two configurations gene by gene, against plain loops; and the grid of sizes and contexts."""

import numpy as np
import pytest
from made_sweep import CLASSES, made_config, made_table, write_run

from tario_jax.evaluate.scaling.axes import CONTEXT, Plane, find_planes
from tario_jax.evaluate.scaling.gene_gains import compare_genes, fraction_better
from tario_jax.evaluate.scaling.grid import grid_cells, measure_grid
from tario_jax.evaluate.scaling.measures import Ranking, RunScores, measure
from tario_jax.evaluate.scaling.records import gather


def scores(**fields) -> RunScores:
    return RunScores.of(made_table(**fields))


def compared(before, after, samples: int = 100):
    return compare_genes(before, after, Ranking.of("a", after[0], 20), samples, 0)


def means(one: RunScores, form: str = "counts") -> np.ndarray:
    r = one.r_SxG[form].astype(np.float64)
    return np.array([column[np.isfinite(column)].mean() if np.isfinite(column).any() else np.nan for column in r.T])


def test_the_fraction_of_genes_is_counted_pair_by_pair_of_seeds():
    before = [scores(skill=0.30, noise_seed=seed) for seed in (0, 1)]
    after = [scores(skill=0.302, noise_seed=seed) for seed in (2, 3, 4)]
    found = compared(before, after)["counts"]["better"]
    fractions = []
    for a in before:
        for b in after:
            better = sum(y > x for x, y in zip(means(a), means(b), strict=True) if np.isfinite([x, y]).all())
            fractions.append(better / 59)
    assert found["fraction"] == pytest.approx(np.mean(fractions)) and 0.5 < found["fraction"] < 1
    assert found["range"] == pytest.approx([min(fractions), max(fractions)])
    assert (found["genes"], found["n"], found["pairs_of_seeds"]) == (59, round(np.mean(fractions) * 59), 6)


def test_the_same_checkpoints_read_in_two_ways_are_each_held_against_itself():
    """The seeds differ by more than the reading: crossed, as many genes would fall as rise."""
    coarse = [scores(skill=0.3, noise_seed=seed, checkpoint=f"9-{seed}") for seed in (0, 1)]
    fine = [scores(skill=0.3005, noise_seed=seed, checkpoint=f"9-{seed}", read_um=9.0) for seed in (1, 0)]
    found = compared(coarse, fine)["counts"]
    better = found["better"]
    assert better["fraction"] == 1 and better["pairs_of_seeds"] == 2 and better["same_checkpoints"]
    assert better["null"] == {"before": [], "after": []} and found["difference"]["null"] == []
    others = [scores(skill=0.3005, noise_seed=seed, checkpoint=f"8-{seed}") for seed in (1, 0)]
    crossed = compared(coarse, others)["counts"]["better"]
    assert crossed["fraction"] < 0.9 and crossed["pairs_of_seeds"] == 4 and not crossed["same_checkpoints"]


def test_one_patient_has_no_interval():
    before, after = (scores(skill=skill, noise_seed=seed, patients=1) for skill, seed in ((0.3, 0), (0.33, 1)))
    found = compared([before], [after])["counts"]
    for one in (found["better"], found["difference"]):
        assert np.isnan(one["low"]) and np.isnan(one["high"])


def test_the_null_is_the_same_fraction_between_seeds_whichever_comes_first():
    before = [scores(noise_seed=seed) for seed in (0, 1)]
    after = [scores(noise_seed=seed) for seed in (2, 3, 4)]
    null = compared(before, after)["counts"]["better"]["null"]
    x, y = (means(one)[:-1] for one in before)
    assert null["before"] == [pytest.approx(max((x > y).mean(), (y > x).mean()))]
    assert len(null["after"]) == 3 and min(null["after"]) >= 0.5
    assert compared([before[0]], [after[0]])["counts"]["better"]["null"] == {"before": [], "after": []}


def test_intervals_draw_patients_with_all_their_sections_and_never_genes():
    """The oracle draws the same patients and takes the sections of each, one by one."""
    before, after = scores(skill=0.3), scores(skill=0.33, noise_seed=1)
    found = compared([before], [after], samples=50)["counts"]
    rng = np.random.default_rng(0)
    names = sorted(set(after.patients))
    fractions, changes = [], []
    for drawn in rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=50):
        rows = [s for name, times in zip(names, drawn, strict=True) for s, own in enumerate(after.patients)
                if own == name for _ in range(times)]  # fmt: skip
        x, y = (one.r_SxG["counts"][rows, :-1].astype(np.float64).mean(0) for one in (before, after))
        fractions.append((y > x).mean())
        changes.append((y - x)[: len(x) - 1].mean())  # the one before the last is not ranked
    shift = found["better"]["fraction"] - np.mean(fractions)
    low, high = np.clip(np.percentile(fractions, (2.5, 97.5)) + shift, 0, 1)
    assert found["better"]["resampled_mean"] == pytest.approx(np.mean(fractions))
    assert (found["better"]["low"], found["better"]["high"]) == pytest.approx((low, high))
    low, high = np.percentile(changes, (2.5, 97.5))
    assert (found["difference"]["low"], found["difference"]["high"]) == pytest.approx((low, high))
    assert low < found["difference"]["mean"] < high


def test_samples_in_parts_are_the_same_as_at_once(monkeypatch):
    before, after = [scores(skill=0.3)], [scores(skill=0.31, noise_seed=1)]
    whole = compared(before, after)
    monkeypatch.setattr("tario_jax.evaluate.scaling.gene_gains.VALUES_AT_ONCE", 7 * 60)
    assert compared(before, after) == whole


def test_the_class_that_gains_is_told_apart():
    before = [scores(noise_seed=seed) for seed in (0, 1)]
    after = [scores(noise_seed=seed, class_gain=0.05) for seed in (2, 3)]
    found = compared(before, after)["composition"]
    assert list(found["by_class"]) == sorted(CLASSES)
    gains = {name: group["mean"] for name, group in found["by_class"].items()}
    assert gains["type_marker"] == pytest.approx(0.7 * 0.05, abs=0.005)
    for name in ("hidden_state", "null"):
        assert abs(gains[name]) < 0.005
        assert abs(gains[name]) < 3 * max(map(abs, found["by_class"][name]["null"])) + 0.003
    assert found["by_class"]["type_marker"]["genes"] == 20


def test_tenths_of_the_ranking_and_matched_top_k_follow_moran():
    before, after = [scores(skill=0.3)], [scores(skill=0.4)]
    found = compared(before, after)["counts"]
    deciles = [group["mean"] for group in found["by_decile"]]
    assert len(deciles) == 10 and deciles == sorted(deciles, reverse=True)  # skill goes with a gene's rank
    top = {one["k"]: one for one in found["top"]}
    assert sorted(top) == [10, 20, 50, 59]
    assert top[20]["after"] == [pytest.approx(means(after[0])[:20].mean())]


def test_fractions_leave_out_what_is_undefined_and_equal_is_not_better():
    assert fraction_better(np.array([0.1, 0.2, np.nan, 0.0]), np.array([0.2, 0.1, 0.5, 0.0])) == pytest.approx(1 / 3)
    assert np.isnan(fraction_better(np.array([np.nan]), np.array([0.1])))


# --- the grid


def grid_of(tmp_path, losses, seeds=(0, 1), skip=()):
    """losses: {(width, window_um): nats}."""
    for (width, window_um), nats in losses.items():
        for seed in seeds:
            if (width, window_um, seed) in skip:
                continue
            config = made_config(width=width, window_um=window_um, rows=round(8 * (144 / window_um) ** 2),
                                 seed=seed)  # fmt: skip
            table = made_table(nats=nats + 0.01 * seed, skill=1 - nats / 10, noise_seed=seed)
            write_run(tmp_path / f"{width}_{window_um:g}_{seed}", config, table)
    records, _ = gather([tmp_path])
    (plane,) = find_planes(records, (CONTEXT,))
    cells = grid_cells(plane)
    if cells is None:
        return None
    ranking = Ranking.of("a", records[0].scores, 20)
    measured = {one.name: measure(one.scores, ranking, None) for one in records}
    return measure_grid(*cells, measured, ranking, 50, 0)


def test_the_interaction_is_the_gain_at_the_largest_less_that_at_the_smallest(tmp_path):
    losses = {(16, 144.0): 5.0, (16, 288.0): 4.9, (32, 144.0): 4.8, (32, 288.0): 4.65, (64, 144.0): 4.6,
              (64, 288.0): 4.3}  # fmt: skip
    grid = grid_of(tmp_path, losses, skip=[(64, 288.0, 1)])
    found = grid["quantities"]["nats"]
    assert grid["contexts_um"] == [144.0, 288.0] and len(grid["sizes"]) == 3
    assert found["gains"] == pytest.approx([-0.1, -0.15, -0.3 - 0.005])
    assert found["interaction"] == pytest.approx(-0.205)
    assert found["seed_degrees"] == 5
    assert found["seed_sd"] == pytest.approx(0.01 / np.sqrt(2) * np.sqrt(1 / 2 + 1 / 2 + 1 / 2 + 1))
    assert found["low"] <= found["interaction"] + 1e-9 and found["high"] >= found["interaction"] - 1e-9
    part = grid["quantities"]["gene_nats"]  # nine tenths of the loss; what patients add is the same in every cell
    assert (part["interaction"], part["low"], part["high"]) == pytest.approx([0.9 * -0.205] * 3)
    r = grid["quantities"]["r/counts/top"]
    assert r["low"] < r["interaction"] < r["high"] and r["interaction"] > 0


def test_a_grid_takes_the_contexts_that_all_its_sizes_have(tmp_path):
    losses = {
        (16, 144.0): 5.0,
        (16, 288.0): 4.9,
        (32, 144.0): 4.8,
        (32, 288.0): 4.65,
        (32, 72.0): 5.0,
        (64, 144.0): 4.6,
    }
    assert grid_of(tmp_path, losses, seeds=(0,))["contexts_um"] == [144.0, 288.0]


def test_a_grid_without_seeds_has_no_seed_deviation_and_a_hole_is_no_grid(tmp_path):
    losses = {(16, 144.0): 5.0, (16, 288.0): 4.9, (32, 144.0): 4.8, (32, 288.0): 4.65}
    assert grid_of(tmp_path / "once", losses, seeds=(0,))["quantities"]["nats"]["seed_sd"] is None
    del losses[16, 288.0]
    assert grid_of(tmp_path / "hole", losses) is None


def test_a_cell_of_two_configurations_is_of_neither():
    run, other = ("run",), ("other",)
    whole = tuple((size, context, run) for size in (1.0, 2.0, 3.0) for context in (72.0, 144.0))
    assert grid_cells(Plane((), whole))[0] == [1.0, 2.0, 3.0]
    sizes, _, cells = grid_cells(Plane((), (*whole, (3.0, 144.0, other))))
    assert sizes == [1.0, 2.0] and set(cells.values()) == {run}


def test_of_a_form_that_nothing_is_defined_in_no_gene_is_better():
    """As composition, where no bin holds enough counts."""
    before, after = scores(noise_seed=0), scores(noise_seed=1)
    for one in (before, after):
        one.r_SxG["composition"] = np.full_like(one.r_SxG["counts"], np.nan)
    found = compared([before], [after])["composition"]["better"]
    assert found["genes"] == found["n"] == 0 and np.isnan(found["fraction"])
