"""Runs gathered from their workdirs, what cannot be compared, and which runs may stand on one axis."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from made_run import made_run
from made_sweep import GENES, made_config, made_table, write_run, write_scores
from refusals import refused

from tario_jax.config_files import from_dict
from tario_jax.evaluate.scaling.axes import CONTEXT, CONTEXT_ROWS, PATIENTS_STEPS, find_apart, find_planes, find_sweeps
from tario_jax.evaluate.scaling.measures import Ranking, RunScores, measure
from tario_jax.evaluate.scaling.records import gather
from tario_jax.model.build import model_sizes
from tario_jax.model.flops import step_flops
from tario_jax.train.provenance import Provenance


def add(folder, name: str, table=None, **fields):
    own = {key: fields.pop(key) for key in ("done", "checkpoint", "validation_nats", "seal") if key in fields}
    return write_run(folder / name, made_config(**fields), table or made_table(), **own)


def sweeps_of(folder):
    records, _ = gather([folder])
    return {sweep.name: [(point.size, len(point.runs)) for point in sweep.points] for sweep in find_sweeps(records)}


# --- gathering


def test_a_record_holds_what_the_run_was_given_and_what_it_cost(tmp_path):
    workdir = add(tmp_path, "a", patients=93, seed=4, validation_nats=5.25)
    add(tmp_path, "b", patients=186)
    records, left_out = gather([tmp_path])
    record = records[0]
    provenance = Provenance.from_json(
        json.loads((workdir / "checkpoints/400/provenance.json").read_text()), str(workdir)
    )
    config = provenance.config
    assert not left_out and [one.name for one in records] == ["a", "b"]
    assert (record.patients, record.seeds, record.steps) == (93, (4, 4), 400)
    assert record.sizes == model_sizes(config, GENES) and record.sizes.gene_tables > 0
    assert record.flops == step_flops(config, provenance.layout).total * 400
    layout = provenance.layout
    assert record.tokens == 400 * 8 * layout.tiles * (layout.patches_per_tile + layout.bins_per_tile)
    assert (record.validation_nats, record.trained_on, record.read_um) == (5.25, "virtual", 36.0)


def test_without_a_checkpoint_the_config_tells_the_same(tmp_path):
    add(tmp_path, "a", patients=93)
    add(tmp_path, "b", patients=93, checkpoint=False)
    a, b = gather([tmp_path])[0]
    assert (a.patients, a.sizes, a.flops, a.tokens) == (b.patients, b.sizes, b.flops, b.tokens)


def test_without_checkpoints_the_evaluation_says_what_a_run_was_trained_on_or_its_config(tmp_path):
    told, silent, broken = (add(tmp_path, name, seed=seed, checkpoint=False) for seed, name in enumerate("abc"))
    (told / "report.json").write_text(json.dumps({"trained_on": "real", "corpus_kind": "virtual"}))
    (broken / "report.json").write_text('{"trained')
    records, _ = gather([tmp_path])
    assert [one.trained_on for one in records] == ["real", "virtual", "virtual"]
    assert from_dict(json.loads((silent / "config.json").read_text())).source.kind == "virtual"


def test_a_workdir_and_a_folder_of_workdirs_are_taken_alike(tmp_path):
    for seed, name in enumerate(("s/a", "s/b", "alone")):
        add(tmp_path, name, seed=seed)
    assert [one.name for one in gather([tmp_path / "s", tmp_path / "alone"])[0]] == ["a", "b", "alone"]


def test_what_is_unfinished_or_not_evaluated_is_listed_with_its_reason(tmp_path):
    for seed, name in enumerate(("a", "b")):
        add(tmp_path, name, seed=seed)
    add(tmp_path, "without", table=False)
    (tmp_path / "without/scores.npz").unlink(missing_ok=True)
    made_run(tmp_path / "going", "stopped")
    stale = add(tmp_path, "stale")
    write_scores(stale, 200, made_table())  # of an earlier checkpoint
    again = add(tmp_path, "again")
    (again / "checkpoints/400/tario_seal.json").write_text("another training up to the same step")
    deleted = add(tmp_path, "deleted", patients=93)
    shutil.copytree(tmp_path / "a", tmp_path / "copied")
    shutil.rmtree(deleted / "checkpoints")
    records, left_out = gather([tmp_path])
    assert [one.name for one in records] == ["a", "b", "deleted"]
    why = {one.name: one.why for one in left_out}
    assert why["going"] == "not finished: stopped, step 260 of 400"
    assert "holds no scores.npz" in why["without"] and "tario evaluate --workdir=" in why["without"]
    assert "of checkpoint 200-None, and the last is 400-" in why["stale"]
    assert "and the last is 400-" in why["again"]
    assert "the config, patients and seeds of a" in why["copied"]
    refused(lambda: gather([tmp_path / "a", tmp_path / "going"]), "fewer than two runs", "going: not finished")


@pytest.mark.parametrize(("fields", "words"), [
    ({"seal": "other"}, ("other corpora", "sealed, other")),
    ({"prefix": "q"}, ("other held-out sections (24 and 24, 0 of them the same)",)),
    ({"genes": 50}, ("other genes (60 and 50, 50 of them the same)",)),
    ({"bin_um": 18.0}, ("bins of 36 and of 18 µm",)),
    ({"ranked_on": "held-out sections"}, ("ranked on training sections and held-out sections",)),
    ({"settings": '{"min_total": 50}'}, ("evaluated with", "50")),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused_in_a_line(tmp_path, fields, words):
    add(tmp_path, "a")
    add(tmp_path, "b", table=made_table(**fields))
    refused(lambda: gather([tmp_path]), "a and b cannot be compared", *words)


def test_a_folder_without_runs_and_a_run_given_twice_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    add(tmp_path, "a")
    refused(lambda: gather([tmp_path / "empty"]), "empty", "config.json")
    refused(lambda: gather([tmp_path / "a", tmp_path]), "a", "given twice")


def test_a_config_of_another_version_is_told_with_its_file(tmp_path):
    for seed, name in enumerate(("a", "b")):
        add(tmp_path, name, seed=seed)
    path = tmp_path / "b/config.json"
    values = json.loads(path.read_text())
    values["model"]["new"] = 3
    path.write_text(json.dumps(values))
    refused(lambda: gather([tmp_path]), "b/config.json", "no field 'new'")


# --- measures


def test_measures_are_means_over_sections_and_then_ranked_genes():
    table = made_table(nats=5.0)
    scores = RunScores.of(table)
    ranking = Ranking.of("a", scores, 10)
    found = measure(scores, ranking, None)
    r = table.r["model", "counts"].astype(np.float64)
    assert ranking.order.tolist() == [*range(GENES - 2), GENES - 1]  # one is not ranked
    assert found["r/counts/top"] == pytest.approx(r[:, :10].mean(0).mean())
    assert found["r/counts/all"] == pytest.approx(r[:, : GENES - 2].mean(0).mean())  # the last one is undefined
    weights = table.detections_S / table.detections_S.sum()
    assert found["gene_nats"] == pytest.approx((table.gene_nats_S * weights).sum()) == pytest.approx(4.5)
    assert found["nats"] == pytest.approx(5.0)
    assert found["ceiling/top"] == pytest.approx(np.sqrt(np.linspace(0.9, 0.5, GENES)[:10]).mean())
    x, p = table.bulk_measured_PxG, table.bulk_predicted_PxG
    expected = np.mean([np.corrcoef(x[:, gene], p[:, gene])[0, 1] for gene in range(GENES)])
    assert found["bulk_r/counts"] == pytest.approx(expected)


def test_bulk_r_needs_ten_patients_of_a_cohort():
    assert (
        measure(RunScores.of(made_table(patients=9)), Ranking.of("a", RunScores.of(made_table()), 5), None)[
            "bulk_r/log_cpm"
        ]
        is None
    )


def test_resampled_losses_weigh_sections_by_detections():
    scores = RunScores.of(made_table())
    weights = np.random.default_rng(0).integers(0, 3, (4, len(scores.sections))).astype(float)
    for sample, weight_S in zip(scores.nats(weights).sum(1), weights, strict=True):
        drawn = np.repeat(np.arange(len(weight_S)), weight_S.astype(int))
        nats = scores.nats_SxK[drawn].sum(1)
        assert sample == pytest.approx(np.average(nats, weights=scores.detections_S[drawn]))


def test_a_section_without_detections_adds_nothing_to_the_loss():
    table = made_table()
    table.detections_S[0], table.gene_nats_S[0] = 0.0, np.nan
    ranking = Ranking.of("a", RunScores.of(table), 5)
    expected = np.average(table.gene_nats_S[1:], weights=table.detections_S[1:])
    assert measure(RunScores.of(table), ranking, None)["gene_nats"] == pytest.approx(expected)


# --- axes


def test_steps_alone_are_the_axis_of_compute(tmp_path):
    for steps in (100, 200, 400):
        add(tmp_path, f"s{steps}", steps=steps, warmup=steps // 20)
    ((name, points),) = sweeps_of(tmp_path).items()
    assert name == "compute by steps" and [size / points[0][0] for size, _ in points] == [1, 2, 4]


def test_replicates_differ_in_seeds_and_names_and_in_what_decides_no_number(tmp_path):
    for seed in range(3):
        add(tmp_path, f"small_{seed}", patients=93, seed=seed)
    add(tmp_path, "large", patients=186)
    path = tmp_path / "small_1/config.json"
    values = json.loads(path.read_text()) | {"name": "another"}
    values["train"]["log_every"] = 1
    path.write_text(json.dumps(values))
    assert sweeps_of(tmp_path) == {"patients at equal steps": [(93.0, 3), (186.0, 1)]}


def test_a_run_that_is_left_out_is_left_out_at_every_side(tmp_path):
    add(tmp_path, "first", patients=93)
    add(tmp_path, "large", patients=186)
    again = add(tmp_path, "first_again", patients=93)
    write_scores(again, 400, made_table(read_um=18.0), "read_18um")
    records, left_out = gather([tmp_path])
    assert sorted(record.name for record in records) == ["first", "large"]
    assert [one.name for one in left_out] == ["first_again"]


def test_equal_steps_and_equal_epochs_are_two_axes(tmp_path):
    for patients in (93, 186, 372):
        add(tmp_path, f"steps_{patients}", patients=patients)
        if patients < 372:  # 372 patients see 400 steps in both
            add(tmp_path, f"epochs_{patients}", patients=patients, steps=round(400 * patients / 372), warmup=5)
    found = sweeps_of(tmp_path)
    assert list(found) == ["patients at equal steps", "patients at equal epochs",
                           "compute along patients at equal epochs"]  # fmt: skip
    assert found["patients at equal steps"] == found["patients at equal epochs"]
    assert [size for size, _ in found["patients at equal steps"]] == [93, 186, 372]


def test_a_model_of_another_rate_stands_apart_and_the_field_is_named(tmp_path):
    add(tmp_path, "narrow", width=16)
    add(tmp_path, "wide", width=32)
    wider = add(tmp_path, "wider", width=64, rate=1e-3)
    write_scores(wider, 400, made_table(read_um=18.0), "read_18um")  # on an axis with itself alone
    records, _ = gather([tmp_path])
    (sweep, *others) = find_sweeps(records)
    assert [other.axis.name for other in others] == ["resolution"] and sweep.axis.name == "parameters"
    assert [run.name for _, run in sweep.runs] == ["narrow", "wide"]
    (apart,) = find_apart(records, [sweep, *others])
    assert apart.name == "wider" and apart.differs["optim.learning_rate"] == (1e-3, 2e-3)


def test_sweeps_of_one_axis_are_told_apart_by_what_they_hold(tmp_path):
    for rate in (1e-3, 2e-3):
        for width in (16, 32):
            add(tmp_path, f"{width}_{rate}", width=width, rate=rate)
    assert list(sweeps_of(tmp_path)) == [f"parameters, optim.learning_rate {rate}" for rate in (0.001, 0.002)]


def test_context_is_at_equal_tissue_or_at_equal_windows_and_never_at_neither(tmp_path):
    for window_um, rows in ((144.0, 8), (288.0, 2), (576.0, 2), (432.0, 3)):
        add(tmp_path, f"{window_um:g}_{rows}", window_um=window_um, rows=rows)
    found = sweeps_of(tmp_path)
    assert {name: sizes for name, sizes in found.items() if name.startswith("context")} == {
        "context at equal tissue seen": [(144.0, 1), (288.0, 1)],
        "context at equal windows seen": [(288.0, 1), (576.0, 1)],
    }
    records, _ = gather([tmp_path])
    assert [one.name for one in find_apart(records, find_sweeps(records))] == ["432_3"]


def test_one_checkpoint_read_at_other_bins_is_the_axis_of_resolution(tmp_path):
    for seed in (0, 1):
        workdir = add(tmp_path, f"a{seed}", seed=seed)
        for side in (36.0, 18.0, 9.0):  # what is there twice counts once
            write_scores(workdir, 400, made_table(read_um=side), f"read_{side:g}um")
    assert sweeps_of(tmp_path) == {"resolution": [(1000 / 36, 2), (1000 / 18, 2), (1000 / 9, 2)]}


def test_sizes_of_a_virtual_cohort_are_one_axis_and_other_corpora_are_not(tmp_path):
    def add_cohort(name: str, train_patients: int, seal: str, section_um: float = 512.0) -> None:
        config = made_config(patients=train_patients)
        source = dataclasses.replace(config.source, train_patients=train_patients, section_um=section_um)
        write_run(tmp_path / name, dataclasses.replace(config, source=source), made_table(), seal=seal)

    add_cohort("a", 93, "one")
    add_cohort("b", 186, "two")
    assert sweeps_of(tmp_path) == {"patients at equal steps": [(93.0, 1), (186.0, 1)]}
    add_cohort("c", 372, "three", section_um=256.0)
    assert sweeps_of(tmp_path) == {"patients at equal steps": [(93.0, 1), (186.0, 1)]}  # c stands alone
    add_cohort("d", 186, "four")  # of the size of b, and not its corpus: one of the two is another cohort
    assert sweeps_of(tmp_path) == {}


def test_planes_are_crossed_axes_and_nothing_else(tmp_path):
    for width, patients in ((16, 93), (32, 93), (32, 186)):
        add(tmp_path, f"{width}_{patients}", width=width, patients=patients)
    add(tmp_path, "long", width=32, patients=93, window_um=288.0, rows=2)
    records, _ = gather([tmp_path])
    (plane,) = find_planes(records, (PATIENTS_STEPS,))
    assert [runs[0].name for _, _, runs in plane.points] == ["16_93", "32_93", "32_186"]
    (plane,) = find_planes(records, (CONTEXT, CONTEXT_ROWS))
    assert [runs[0].name for _, _, runs in plane.points] == ["16_93", "32_93", "long"]


def test_the_provenance_of_a_checkpoint_tells_its_training_patients(tiny_run):
    (step,) = (path for path in sorted((tiny_run / "checkpoints").iterdir())[-1:])
    found = Provenance.from_json(json.loads((step / "provenance.json").read_text()), str(step))
    assert found.train_patients == ("A", "B", "C", "D") and found.seen_patients == ("A", "B", "C", "D", "E")
    assert from_dict(json.loads((tiny_run / "config.json").read_text())) == found.config
