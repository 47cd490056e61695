"""A run learns, is repeated bit for bit, and goes on after a break as if there had been none."""

import dataclasses
import errno
import json
import shutil
import zlib

import jax
import numpy as np
import pytest
from tiny_tissue import PANEL, tiny_config, tiny_section, write_corpus

from tario_jax.config import InputError, OptimConfig, TrainConfig
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.split import write_split
from tario_jax.model.build import build
from tario_jax.panel import Panel
from tario_jax.parallel.mesh import make_mesh
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.pipeline import BatchSource
from tario_jax.train import seal as seals
from tario_jax.train.checkpoint import Checkpoints, CheckpointWriter, find_checkpoint
from tario_jax.train.loop import train
from tario_jax.train.optimiser import make_optimiser
from tario_jax.train.seal import SEAL, damage, seal
from tario_jax.train.state import abstract_state


class Killed(BaseException):
    """Stands for the end of the process: no handler of errors sees it."""


def silent(line: str) -> None:
    pass


def metrics(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir) -> list[tuple]:
    """What does not depend on the clock."""
    kept = ("step", "loss_nats_per_detection", "gradient_norm", "validation_nats_per_detection")
    return [tuple(line.get(name) for name in kept) for line in metrics(workdir)]


def stored_state(workdir):
    _, step = find_checkpoint(workdir)
    config = tiny_config()
    built = build(config.model, len(PANEL), config.data.patch_px, content=not config.data.one_shot)
    mesh = make_mesh(config.mesh)
    with Checkpoints(workdir) as checkpoints:
        state = checkpoints.restore(
            step, abstract_state(built, make_optimiser(config.optim, config.train.steps, built), mesh)
        )
    return jax.device_get(state)


def mean_composition_nats(sections, batches, genes: int) -> float:
    """Nats per detection of a model that says everywhere the mean density and composition of training; float64."""
    totals_G = sum(section.gene_totals_G for section in sections).astype(np.float64)
    per_um2 = totals_G.sum() / sum(section.width_um * section.height_um for section in sections)
    nats = detections = 0.0
    for batch in batches:
        area = batch.bin_size_um_BxTxN.astype(np.float64) ** 2 * batch.bin_measured_BxTxN
        area = area.reshape(len(area), -1)
        counts = np.zeros((*area.shape, genes))
        row, entry = np.nonzero(batch.count_bin_BxC >= 0)
        np.add.at(counts, (row, batch.count_bin_BxC[row, entry], batch.count_gene_BxC[row, entry]),
                  batch.count_BxC[row, entry])  # fmt: skip
        n, mu = counts.sum(-1)[area > 0], per_um2 * area[area > 0]
        log_factorial = np.array([np.log(np.arange(1, int(k) + 1)).sum() for k in n])
        nats += (mu - n * np.log(mu) + log_factorial).sum() - (counts * np.log(totals_G / totals_G.sum())).sum()
        detections += counts.sum()
    return nats / detections


def test_training_learns_from_the_image(tiny_corpus, tiny_run):
    """Thirty steps on four patients: on the fifth, better than the mean density and composition of the four."""
    config, lines = tiny_config(), metrics(tiny_run)
    loss = [line["loss_nats_per_detection"] for line in lines if "loss_nats_per_detection" in line]
    assert len(loss) == 30 and np.isfinite(loss).all()
    train_sections, validation = list(tiny_corpus.sections[:4]), [tiny_corpus.section("E1")]
    layout = corpus_layout(tiny_corpus.sections[:5], config.data, len(PANEL))
    fixed = BatchSource(validation, config.data, layout, steps=4, stream=1, augment=False)
    start = mean_composition_nats(train_sections, [fixed[t] for t in range(4)], len(PANEL))
    *_, reached = (line for line in lines if "validation_nats_per_detection" in line)
    assert reached["step"] == 30 and reached["validation_nats_per_detection"] < start - 0.05
    assert np.mean(loss[-5:]) < np.mean(loss[:3]) - 0.05


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param("never", marks=pytest.mark.slow),
        "in step 21",
        pytest.param("after the checkpoint of step 15", marks=pytest.mark.slow),
    ],
)
def test_the_same_command_gives_the_same_bits_however_often_it_is_killed(
    tiny_corpus, tiny_run, tmp_path, monkeypatch, killed
):
    workdir = tmp_path / "run"

    def say(line: str) -> None:
        if killed == "in step 21" and line.startswith("step     20/30"):
            raise Killed

    if killed != "never":
        with monkeypatch.context() as patched, pytest.raises(Killed):
            if killed.startswith("after"):
                save = CheckpointWriter.save

                def saved_then_killed(self, state, provenance):
                    save(self, state, provenance)
                    self._writer.wait_until_finished()
                    raise Killed

                patched.setattr(CheckpointWriter, "save", saved_then_killed)
            train(tiny_config(), tiny_corpus, workdir, say)
        assert find_checkpoint(workdir)[1] == 15
    said = []
    train(tiny_config(), tiny_corpus, workdir, said.append)
    assert ("resumed at step 15 of 30" in said) == (killed != "never")
    unbroken, resumed = stored_state(tiny_run), stored_state(workdir)
    assert int(resumed.step) == 30
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(resumed), jax.tree.leaves(unbroken), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=str(path))
    steps = [line["step"] for line in metrics(workdir) if "loss_nats_per_detection" in line]
    assert steps == list(range(1, 31))
    assert sorted(losses(workdir), key=str) == sorted(losses(tiny_run), key=str)


def test_a_resumed_run_remembers_who_validated_before(tiny_corpus, tiny_run, tmp_path):
    """Patient E validated up to step 15, and is on no side from there on: the run has been looked at on it before."""
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    shutil.rmtree(workdir / "checkpoints/30")
    shutil.copytree(tiny_corpus.root.local, tmp_path / "corpus")
    corpus = Corpus.open(tmp_path / "corpus")
    write_split(corpus.root, dict.fromkeys("ABCD", "train") | {"F": "held_out"})
    train(tiny_config(), corpus, workdir, silent)
    with Checkpoints(workdir) as checkpoints:
        found = checkpoints.provenance(30)
    assert found.seen_patients == tuple("ABCDE") and found.train_patients == tuple("ABCD")
    assert found.validation == ("E1",) and found.held_out == ("F1",)


def test_a_finished_run_stays_as_it_is(tiny_corpus, tiny_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    state = train(tiny_config(), tiny_corpus, workdir, silent)
    assert int(state.step) == 30
    assert losses(workdir) == losses(tiny_run)


def test_a_trace_that_is_asked_for_is_of_the_next_steps_and_changes_no_number(tiny_corpus, tiny_run, tmp_path):
    workdir, said = tmp_path / "run", []
    workdir.mkdir()
    (workdir / "trace.request").write_text('{"steps": 3}')
    train(tiny_config(), tiny_corpus, workdir, said.append)
    assert f"profiler trace up to step 3: {workdir}/traces/step_000001" in said
    assert list((workdir / "traces" / "step_000001").rglob("*.xplane.pb")) and not (workdir / "trace.request").exists()
    assert losses(workdir) == losses(tiny_run)


def test_what_a_run_tells_of_itself(tiny_run):
    """metrics.jsonl, the heartbeat, the account and the marker of a whole run."""
    lines = [line for line in metrics(tiny_run) if "loss_nats_per_detection" in line]
    for line in lines:
        assert line["loss_nats_per_detection"] == pytest.approx(line["gene_nats"] + line["total_nats"])
        assert line["first_group_nats"] == pytest.approx(line["loss_nats_per_detection"])  # all bins are of group 1
        assert line["last_group_nats"] is None and "z_nats" not in line
        assert 0 < line["mfu"] < 1 and 0 <= line["goodput"] <= 1 and line["skipped_steps"] == line["rollbacks"] == 0
        cycle_s = line["step_seconds"] + line["data_wait_seconds"]
        assert line["tokens_per_second"] == pytest.approx(4 * (16 * 4 + 4 * 4) / cycle_s)
        assert 0 < line["host_seconds"] < line["step_seconds"] and line["host_memory_gib"] > 0.05
    rates = [line["learning_rate"] for line in lines]
    assert rates[:4] == pytest.approx([0, 5e-3 / 3, 2 * 5e-3 / 3, 5e-3]) and 0 < rates[-1] < 1e-4
    beat = json.loads((tiny_run / "hosts" / "0.json").read_text())
    assert beat["step"] == beat["steps"] == 30 and beat["process"] == 0 and beat["probe_seconds"] > 0
    account = json.loads((tiny_run / "goodput.json").read_text())
    (start,) = account["starts"]
    assert start["last_step"] == 30 and account["lost"].keys() >= {"start", "compile", "data", "save", "validate"}
    useful = sum(start["seconds"][name] for name in ("place", "dispatch", "wait"))
    assert useful + sum(account["lost"].values()) == pytest.approx(account["wall_seconds"], rel=0.01)
    assert account["goodput"] == pytest.approx(useful / account["wall_seconds"])
    assert json.loads((tiny_run / "done.json").read_text())["step"] == 30


def refused(workdir, corpus, config, *words):
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as caught:
        train(config, corpus, workdir, silent)
    message = str(caught.value)
    assert "\n" not in message and "another --workdir" in message
    for word in words:
        assert word in message, message
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"optim": {"learning_rate": 1e-3}}, "optim.learning_rate = 0.005, now 0.001"),
        ({"data": {"bin_um": 36.0}}, "data.bin_um = 18.0, now 36.0"),
        ({"model": {"width": 64}}, "model.width = 32, now 64"),
        ({"train": {"steps": 31}}, "train.steps = 30, now 31"),
    ],
)
def test_a_workdir_of_another_config_is_refused_with_what_differs(tiny_corpus, tiny_run, change, named):
    refused(tiny_run, tiny_corpus, tiny_config(**change), "checkpoints/30", named)


def test_a_workdir_of_another_corpus_is_refused(tiny_run, tmp_path):
    sides = dict(zip("ABCDEF", ["train"] * 4 + ["validation", "held_out"], strict=True))
    sections = [tiny_section(f"{patient}1", patient, seed + 50) for seed, patient in enumerate(sides)]
    other_tissue = write_corpus(tmp_path / "other", sections, split=sides)
    refused(tiny_run, other_tissue, tiny_config(), "another corpus_seal")
    symbols = (*PANEL.symbols[:-1], "ERBB2")
    other_panel = write_corpus(tmp_path / "panel", sections, split=sides, panel=Panel(symbols))
    refused(tiny_run, other_panel, tiny_config(), PANEL.hash, "11 in common", "GENE11")


def test_rows_that_the_mesh_cannot_split_are_refused(tiny_corpus, tmp_path, monkeypatch):
    devices = np.array(jax.devices() * 8)
    monkeypatch.setattr(jax, "devices", lambda: list(devices))
    with pytest.raises(InputError, match=r"--config.data.rows=4: expected a multiple of replica × fsdp = 8"):
        train(tiny_config(), tiny_corpus, tmp_path / "run", silent)


def test_tiles_that_context_does_not_divide_are_refused(tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("tario_jax.train.run.make_mesh", lambda config: _ContextOfEight)
    with pytest.raises(InputError, match=r"--config.mesh.context=8: a row holds \d+ tiles; expected a multiple"):
        train(tiny_config(), tiny_corpus, tmp_path / "run", silent)


class _ContextOfEight:
    """As much of a mesh as the checks read."""

    shape = {"replica": 1, "fsdp": 1, "context": 8, "tensor": 1}


def test_vectors_and_gene_biases_do_not_decay():
    config = tiny_config()
    built = build(config.model, len(PANEL), config.data.patch_px, content=False)
    optimiser = make_optimiser(dataclasses.replace(OptimConfig(), warmup_steps=0, weight_decay=0.5), 10, built)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), built.abstract()[0])
    zeros = jax.tree.map(np.zeros_like, ones)
    updates, _ = jax.jit(lambda: optimiser.update(zeros, optimiser.init(ones), ones))()
    assert (np.asarray(updates["gene_table"]) < 0).all() and (np.asarray(updates["decoder"]["q"]) < 0).all()
    for name in ("gene_bias", "total_bias", "head_norm", "total_weight"):
        assert (np.asarray(updates[name]) == 0).all(), name


def test_a_run_that_would_keep_no_checkpoint_of_before_a_spike_is_refused():
    spikes = {"spike_deviations": 6.0, "keep_checkpoints": 1, "checkpoint_every": 10}
    TrainConfig(**spikes, spike_steps=10)  # of 20 and 10 steps both stand until the next is saved
    with pytest.raises(InputError, match=r"train.keep_checkpoints is 1, and none of before a spike"):
        TrainConfig(**spikes, spike_steps=11)


@pytest.mark.parametrize(("keep", "reach", "kept"), ((2, 0, ["100", "101"]), (2, 3, ["90", "100", "101"]),
                                                     (1, 3, ["90", "101"])))  # fmt: skip
def test_a_save_out_of_turn_does_not_push_out_what_a_spike_goes_back_to(tmp_path, keep, reach, kept):
    for step in (80, 90, 100, 101):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    with CheckpointWriter(tmp_path, keep=keep, keep_every=0, reach=reach, say=print) as writer:
        writer._saving = 101, None
        writer.finish()
    assert sorted((path.name for path in (tmp_path / "checkpoints").iterdir()), key=int) == kept


def test_a_seal_holds_the_size_and_crc_of_every_file_and_tells_the_first_that_differs(tmp_path):
    contents = {f"arrays/{number}": bytes([number]) * (1000 * number) for number in range(40)}
    contents["large"] = b"weights" * (seals._PIECE // 3)  # read in pieces
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    seal(tmp_path)
    files = json.loads((tmp_path / SEAL).read_text())["files"]
    assert files == {name: [len(content), zlib.crc32(content)] for name, content in contents.items()}
    assert damage(tmp_path) is None
    (tmp_path / "arrays/7").write_bytes(b"\1" * 7000)
    (tmp_path / "large").unlink()
    assert damage(tmp_path) == "arrays/7 has other bytes than were written"
    assert [damage(tmp_path, part, 2) for part in (0, 1)] == [
        "large is absent",
        "arrays/7 has other bytes than were written",
    ]


@pytest.mark.parametrize("failures", [1, 9])
def test_a_checkpoint_that_cannot_be_read_is_not_set_aside(tiny_corpus, tiny_run, tmp_path, monkeypatch, failures):
    workdir, crc32, left = tmp_path / "run", seals._crc32, [failures]
    shutil.copytree(tiny_run, workdir)

    def failing(path):
        if path.name == "provenance.json" and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error", str(path))
        return crc32(path)

    monkeypatch.setattr(seals, "_crc32", failing)
    monkeypatch.setattr(seals, "_AGAIN_AFTER_S", 0.0)
    if failures == 1:
        assert find_checkpoint(workdir) == (workdir, 30)
        return
    with pytest.raises(InputError, match=r"checkpoints/30/provenance.json: cannot be read \(Input/output error\)"):
        train(tiny_config(), tiny_corpus, workdir, silent)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["15", "30"]
