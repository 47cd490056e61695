"""Before a cent is spent: what runs take, whether they fit, and what is compiled once."""

import argparse
import dataclasses
import json

import pytest
from refusals import refused

from launch import __main__ as launch_main
from launch import verdicts
from launch.estimate import PRICES, Estimates, Prices
from launch.hardware import Hardware
from launch.sweep_file import Sweep, read_sweep
from launch.table import Row, sweep_table
from launch.verdicts import Verdict, Verdicts
from tario_jax.config import MeshConfig
from tario_jax.config_files import load_config
from tario_jax.model.flops import step_flops
from tario_jax.sweeps import changed
from tario_jax.train import aot
from tario_jax.train.aot import Plan, Pod, pod_layout
from tario_jax.train.roofline import estimate, written_links


@pytest.fixture(scope="module")
def small(repository):
    config = load_config(f"{repository / 'configs/tario2_10m.py'}:v5e:16x16")
    return changed(config, {"mesh": MeshConfig(fsdp=4), "data.rows": 8, "train.steps": 100})


V5E = Hardware.of("v5e:2x2")


def test_what_a_run_takes_is_counted(small):
    prices = Prices(0.5, {"v5e": 2.0})
    found = Estimates(prices, 18963).of(small, V5E)
    layout = pod_layout(small, 18963)
    bins = layout.tiles * layout.bins_per_tile
    assert found.tokens == 100 * 8 * (layout.tiles * layout.patches_per_tile + 2 * bins)
    assert found.flops == 100 * step_flops(small, layout).total and found.chips == 4
    assert found.hours == found.shortest_hours / 0.5 and found.dollars == pytest.approx(2.0 * found.hours * 4)
    at_least = found.flops / (4 * V5E.chip.rates.matmul_flops) / 3600
    assert at_least <= found.shortest_hours < 4 * at_least
    alone = Estimates(prices, 18963).of(small, None)
    assert alone.hours is None and alone.flops == found.flops


@pytest.mark.skipif(verdicts.why_not() is not None, reason=str(verdicts.why_not()))
def test_without_the_compiler_the_estimate_is_the_same(small):
    """The mesh of chips that are not here, against libtpu's own devices."""
    pod = Pod.of("v5e:2x2")
    plan = Plan.of(small, 18963, pod.devices)
    links = written_links(small, plan.layout, 18963, plan.mesh, pod.chip, 1)
    line = estimate(small, plan.layout, 18963, plan.mesh, pod.chip.rates, links)
    found = Estimates(Prices(1.0, {}), 18963).of(small, V5E)
    assert found.shortest_hours == pytest.approx(100 * line.seconds / 3600) and found.dollars is None


def test_what_cannot_run_is_told(small):
    estimates = Estimates(Prices(1.0, {}), 18963)
    for changes, words in (({"data.rows": 6}, "expected a multiple of replica × fsdp = 4"),
                           ({"mesh": MeshConfig(fsdp=3)}, "does not multiply to 4 devices")):  # fmt: skip
        found = estimates.of(changed(small, changes), V5E)
        assert words in found.refusal and found.hours is None and found.chips == 4
    wide = changed(small, {"mesh": MeshConfig(fsdp=256), "data.rows": 256})
    assert "does not divide over fsdp=256" in estimates.of(wide, Hardware.of("v5e:16x16")).refusal


def test_verdicts_are_shared_by_runs_of_the_same_program(small, tmp_path, monkeypatch):
    compiled = []

    def compile_apart(config, topology, slices, *, genes, say):
        compiled.append((config.data.bin_um, topology, slices))
        return {
            "fits": config.data.bin_um > 9,
            "memory_bytes": {"total": 12 << 30},
            "chip_memory_bytes": 16 << 30,
            "table": "",
        }

    monkeypatch.setattr("tario_jax.train.aot.compile_apart", compile_apart)
    monkeypatch.setattr(verdicts, "why_not", lambda: None)
    runs = {f"p{patients}_{bin_um:g}um_seed{seed}": (changed(small, {
        "split.train_patients": patients, "data.bin_um": bin_um, "data.seed": seed, "train.seed": seed,
        "train.steps": 10 * patients, "optim.learning_rate": patients / 1e5, "name": f"run{patients}"}), V5E)
        for patients in (93, 2545) for bin_um in (36.0, 9.0) for seed in (0, 1)}  # fmt: skip
    said = []
    found = Verdicts(tmp_path / "verdicts", 18963)
    assert found.known(*runs["p93_9um_seed0"]) is None
    assert found.find(runs, said.append) == ""
    assert sorted(compiled) == [(9.0, "v5e:2x2", 1), (36.0, "v5e:2x2", 1)] and "2 programs" in said[0]
    assert str(found.known(*runs["p2545_36um_seed1"])) == "fits, 12.0 GiB (75%)"
    assert not found.known(*runs["p93_9um_seed0"]).fits
    found.find(runs, said.append)
    assert len(compiled) == 2  # what was found is kept
    for other in ({"model.remat": "full"}, {"data.rows": 16}, {"mesh": MeshConfig(fsdp=2, context=2)},
                  {"train.accumulate": 2}, {"optim.optimiser": "muon"}, {"data.window_um": 576.0}):  # fmt: skip
        assert found.known(changed(small, other), V5E) is None
    assert (
        found.known(small, Hardware.of("v5e:2x4")) is None
        and Verdicts(tmp_path / "verdicts", 12).known(small, V5E) is None
    )
    with monkeypatch.context() as patched:  # other code may make another program
        patched.setattr(verdicts, "_code", lambda: "other")
        assert found.known(*runs["p2545_36um_seed1"]) is None
    he = {"he": (changed(small, {"train.learns": "he"}), V5E)}  # which nothing compiles ahead: no run is kept from it
    assert found.find(he, said.append) == "" and found.known(*he["he"]) is None
    assert len(compiled) == 2 and "learns from H&E alone" in said[-1]
    (path, _) = sorted((tmp_path / "verdicts").iterdir())
    path.write_text("{")  # damaged: as if it were not there
    found.find(runs, said.append)
    assert len(compiled) == 3


def test_what_the_compiler_refuses_is_kept_with_its_reason(small, tmp_path, monkeypatch):
    from tario_jax.config import InputError
    from tario_jax.train.aot import CompilerKilled, NoPod

    errors = [InputError("odd mesh")]

    def compile_apart(*_, **__):
        raise errors.pop(0)

    monkeypatch.setattr("tario_jax.train.aot.compile_apart", compile_apart)
    monkeypatch.setattr(verdicts, "why_not", lambda: None)
    found = Verdicts(tmp_path / "verdicts", 18963)
    assert found.find({"a": (small, V5E)}, print) == "" and found.known(small, V5E).why == "odd mesh"
    other = changed(small, {"data.rows": 32})
    for error in (CompilerKilled("killed"), NoPod("is held by another process")):
        errors.append(error)  # of this machine, or of the compiler: it says nothing of memory, and is asked again
        assert found.find({"c": (other, V5E)}, print) == f"c: {error}"
        assert found.known(other, V5E) is None and not errors


def test_a_pod_that_is_none_is_told_from_a_mesh_that_does_not_fit(small):
    with pytest.raises(aot.NoPod, match="no slice of"):
        aot._compile_here(small, "v5e:64x64", 1, 100, print)


def test_without_verdicts_none_refuses(repository, tmp_path, monkeypatch):
    sweep = read_sweep(str(repository / "configs/sweeps/article_pods.py"), "p93_10m_36um")
    monkeypatch.setattr(Verdicts, "known", lambda *_: Verdict(False, 20 << 30, 16 << 30))
    for flag, refused_ in ((True, ""), (False, "does not fit, 20.0 GiB (125%)")):
        options = argparse.Namespace(genes=18963, prices=PRICES, dry_run=True, no_verdicts=flag)
        (row,) = launch_main._rows(options, sweep, tmp_path)
        assert row.refused == refused_ and row.verdict_text == "does not fit, 20.0 GiB (125%)"


def test_the_table_names_what_does_not_fit(repository, small):
    sweep = read_sweep(str(repository / "configs/sweeps/article_pods.py"), "p93_10m_*")
    estimates = Estimates(Prices.read(PRICES), 18963)
    rows = [Row(run, config, sweep.hardware[run], estimates.of(config, sweep.hardware[run]), verdict)
            for (run, config), verdict in zip(sweep.configs.items(), (
                Verdict(True, 8 << 30, 16 << 30), Verdict(False, 20 << 30, 16 << 30), None), strict=True)]  # fmt: skip
    text = sweep_table(sweep, rows, Prices.read(PRICES))
    assert "1 runs would not fit, and are not started:\n  p93_10m_18um: does not fit, 20.0 GiB (125%)" in text
    assert "fits, 8.0 GiB (50%)" in text and "not compiled" in text and "chip-hours" in text and "US$" in text
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["run", "patients", "bin"] and len({len(lines[0])}) == 1
    assert json.loads(json.dumps([row.to_dict() for row in rows]))[1]["refused"].startswith("does not fit")
    here = [
        dataclasses.replace(row, hardware=None, estimate=estimates.of(row.config, None), verdict=None) for row in rows
    ]
    assert "US$" not in sweep_table(Sweep(sweep.file, sweep.configs, {}, {}), here, Prices.read(PRICES))


def test_patients_are_told_where_the_config_knows_them(small):
    found = Estimates(Prices(1.0, {}), 18963).of(small, None)
    virtual = {"source.kind": "virtual", "source.path": "", "source.train_patients": 12}
    made = {"source.kind": "corpus", "source.path": "/corpus"}  # its patients stand in its split.tsv
    for changes, patients in ((virtual, 12), (virtual | {"split.train_patients": 5}, 5), (made, None),
                              (made | {"split.train_patients": 5}, 5), (made | {"split.train": ("a", "b")}, 2),
                              (made | {"split.by": "section", "split.train": ("a1", "a2")}, None)):  # fmt: skip
        row = Row("run", changed(small, changes), None, found, None)
        assert row.to_dict()["patients"] == patients
        lines = sweep_table(Sweep("a.py", {}, {}, {}), [row], Prices(1.0, {})).splitlines()
        told = lines[2].split()[1] if "patients" in lines[0] else None
        assert told == (None if patients is None else str(patients))


@pytest.mark.parametrize(("text", "words"), [
    ("share_of_bound = 0.6\n", "lacks 'dollars_per_chip_hour'"),
    ("share_of_bound = 0\n[dollars_per_chip_hour]\n", "share_of_bound is 0"),
    ("share_of_bound = 0.6\nspot = 1\n[dollars_per_chip_hour]\n", "has 'spot'"),
    ("share_of_bound = 0.6\n[dollars_per_chip_hour]\nv5e = -1\n", "v5e is -1"),
    ("share_of_bound = \n", "expected TOML"),
])  # fmt: skip
def test_a_price_file_that_says_something_else_is_refused(tmp_path, text, words):
    file = tmp_path / "prices.toml"
    file.write_text(text)
    refused(lambda: Prices.read(file), str(file), words)
    refused(lambda: Prices.read(tmp_path / "none.toml"), "none.toml", "launch/prices.toml")
