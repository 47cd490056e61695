"""A workdir read back: whole, torn, half missing, growing, and how its run stands at a moment."""

import json
import os
import subprocess
import sys

import pytest
from made_run import NOW, STATES, add_event, made_checkpoint, made_run
from refusals import refused

from tario_jax.train.run_files import read_run
from tario_jax.train.run_state import duration, hosts_of, run_state, seconds_a_step, steps_done, training_seconds
from tario_jax.train.run_status import status_of


def beat(workdir, process: int = 0, **fields) -> None:
    """Changes fields of a heartbeat."""
    path = workdir / "hosts" / f"{process}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# --- reading


def test_every_line_and_file_is_read_with_its_type(tmp_path):
    files = read_run(made_run(tmp_path / "run", processes=3, skipped=2))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if "seconds" in line]
    assert [line.step for line in files.training] == [line["step"] for line in training] == list(range(5, 261, 5))
    for name, value in training[-1].items():
        assert getattr(files.training[-1], name) == value
    assert [tuple(line) for line in files.validation] == [
        (line["step"], line["validation_nats_per_detection"]) for line in lines if "seconds" not in line
    ]
    assert [one.process for one in files.hosts] == [0, 1, 2] and files.hosts[2].host == "node2"
    assert [(one.step, one.sealed) for one in files.checkpoints] == [(100, True), (200, True)]
    assert 14_000_000 <= files.checkpoints[0].size_bytes < 14_000_100
    assert files.goodput.lost["compile"] == 62.0 and files.name == "made" and files.done is None


def test_a_torn_last_line_waits_until_it_is_whole(tmp_path):
    run = made_run(tmp_path / "run")
    path = run / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 265, "loss_nats_per_det')
    files = read_run(run)
    assert files.training[-1].step == 260 and files.metrics.unread == 0
    with path.open("a") as file:
        file.write('ection": 5.5}\n')
    again = read_run(run, files)
    assert (again.training[-1].step, again.training[-1].loss_nats_per_detection) == (265, 5.5)
    assert len(again.training) == len(files.training) + 1


def test_only_what_has_grown_is_read_again(tmp_path):
    run = made_run(tmp_path / "run")
    files = read_run(run)
    path = run / "metrics.jsonl"
    with path.open("r+b") as file:  # what was read is spoilt in place: were it read again, lines would be missing
        file.write(b"#" * 1000)
    with path.open("a") as file:
        file.write('{"step": 270, "loss_nats_per_detection": 5.0}\n')
    again = read_run(run, files)
    assert again.metrics.values[:-1] == files.metrics.values and again.metrics.unread == 0
    assert read_run(run).metrics.unread > 0


def test_a_resumed_run_replaces_its_lines_and_they_are_read_anew(tmp_path):
    run = made_run(tmp_path / "run")
    files = read_run(run)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    for kept in (lines[:30], lines[:30] + 50 * ['{"step": 300, "loss_nats_per_detection": 5.0}\n']):  # fewer, and more
        (run / "new").write_text("".join(kept))
        os.replace(run / "new", run / "metrics.jsonl")
        again = read_run(run, files)
        assert len(again.metrics.values) == len(kept) and again.metrics == read_run(run).metrics


def test_damaged_lines_are_counted_and_the_others_read(tmp_path):
    run = made_run(tmp_path / "run")
    path = run / "metrics.jsonl"
    path.write_text(
        '{"step": 1}\nno json\n[]\n' + path.read_text() + '{"step": 270, "loss_nats_per_detection": null}\n'
    )
    files = read_run(run)
    status = status_of(files, NOW)
    assert status.unread_lines == 3 and files.training[0].step == 5
    assert files.training[-1].step == 270  # its loss was not finite: it is no best and no last one
    assert (status.loss.last_step, status.loss.best_step) == (260, status.loss.best_step)


def test_an_older_run_has_metrics_and_a_config_only(tmp_path):
    run = made_run(tmp_path / "run", "finished")
    older = tmp_path / "older"
    older.mkdir()
    (older / "config.json").write_bytes((run / "config.json").read_bytes())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    old = ("step", "loss_nats_per_detection", "seconds", "validation_nats_per_detection", "tokens_per_second")
    (older / "metrics.jsonl").write_text(
        "".join(json.dumps({name: line[name] for name in old if name in line}) + "\n" for line in lines)
    )
    status = status_of(read_run(older), NOW)
    assert (status.state.name, status.step, status.steps) == ("finished", 400, 400)
    assert status.mfu is None and status.goodput is None and status.checkpoints == () and status.hosts.processes == 1
    (older / "config.json").unlink()
    assert status_of(read_run(older), os.path.getmtime(older / "metrics.jsonl") + 3).state.name == "training"
    assert status_of(read_run(older), os.path.getmtime(older / "metrics.jsonl") + 3e5).state.name == "stopped"


@pytest.mark.parametrize(
    "name", ["config.json", "metrics.jsonl", "events.jsonl", "goodput.json", "hosts", "checkpoints"]
)
@pytest.mark.parametrize("damage", ["absent", "empty", "torn"])
def test_no_file_is_needed_and_none_need_be_whole(tmp_path, name, damage):
    run = made_run(tmp_path / "run", processes=2)
    path = run / name
    if path.is_dir():
        for one in path.rglob("*.json"):
            one.write_text("" if damage == "empty" else '{"step": 2')
            if damage == "absent":
                one.unlink()
    elif damage == "absent":
        path.unlink()
    else:
        path.write_text("" if damage == "empty" else path.read_text()[:-40])
    status = status_of(read_run(run), NOW)
    assert status.step in (0, 250, 260), status
    assert json.dumps(status.to_dict(), allow_nan=False)


def test_a_file_that_cannot_be_read_now_is_as_if_it_were_not_there(tmp_path):
    """On a shared disk one that is replaced while it is read is an error of its own."""
    run = made_run(tmp_path / "run")
    for name in ("goodput.json", "events.jsonl", "hosts/0.json"):
        (run / name).unlink()
        (run / name).mkdir()
    files = read_run(run)
    assert files.goodput is None and not files.events and not files.hosts and files.training


def test_processes_of_an_earlier_start_are_not_of_this_one(tmp_path):
    run = made_run(tmp_path / "run", processes=4)
    for process in (0, 1):
        beat(run, process, processes=2, unix=NOW)
    assert [one.process for one in read_run(run).hosts] == [0, 1]


def test_a_sealed_checkpoint_is_measured_once_and_one_without_seal_each_time(tmp_path):
    run = made_run(tmp_path / "run")
    made_checkpoint(run, 260, sealed=False, size_bytes=10)
    (run / "checkpoints" / "300.orbax-checkpoint-tmp").mkdir()
    files = read_run(run)
    assert [(one.step, one.sealed) for one in files.checkpoints] == [(100, True), (200, True), (260, False)]
    for step in (200, 260):
        (run / "checkpoints" / str(step) / "more").write_bytes(b"1234")
    grown = {one.step: one.size_bytes for one in read_run(run, files).checkpoints}
    assert grown[260] == 14 and grown[200] == files.checkpoints[1].size_bytes


def test_a_folder_that_is_no_workdir_is_refused_with_what_was_meant(tmp_path):
    made_run(tmp_path / "runs" / "quick")
    refused(lambda: read_run(tmp_path / "runs" / "quik"), "quik: no such workdir", "did you mean", "runs/quick?")
    refused(lambda: read_run(tmp_path / "runs"), "holds no config.json", "it holds workdirs, name one: quick")
    refused(lambda: read_run(tmp_path / "runs" / "quick" / "config.json"), "is a file; expected a workdir")
    refused(lambda: read_run(tmp_path / "no" / "no"), "no such workdir")


def test_reading_starts_neither_jax_nor_numpy(repository):
    program = "import sys, tario_jax.train.run_status, tario_jax.cli.status_page; print('jax' in sys.modules, " \
              "'numpy' in sys.modules)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# --- how a run stands


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("state", STATES)
def test_each_state_is_told_from_the_files(tmp_path, state, processes):
    files = read_run(made_run(tmp_path / "run", state, processes=processes))
    found = run_state(files, NOW)
    assert found.name == state
    assert found.live == (state in ("starting", "compiling", "training", "saving"))


@pytest.mark.parametrize(("doing", "for_s", "step_s", "hung"), [
    ("step", 200, 0.8, False), ("step", 400, 0.8, True), ("wait", 400, 0.8, True), ("data", 400, 0.8, True),
    ("step", 400, 60, False), ("step", 1300, 60, True), ("compile", 2000, None, False), ("compile", 4000, None, True),
    ("save", 400, 0.8, False), ("validate", 1000, 0.8, True), ("end", 4000, 0.8, False),
])  # fmt: skip
def test_a_run_hangs_when_one_thing_takes_too_long(tmp_path, doing, for_s, step_s, hung):
    run = made_run(tmp_path / "run", processes=2)
    beat(run, 1, doing=doing, since_unix=NOW - for_s, step_seconds=step_s)
    found = run_state(read_run(run), NOW)
    assert (found.name == "hung") == hung
    if hung:
        assert f"process 1 (node1) is in '{'step' if doing == 'wait' else doing}' for {duration(for_s)}" in found.why


def test_no_heartbeat_for_a_minute_is_a_run_that_was_killed(tmp_path):
    run = made_run(tmp_path / "run", beat_ago_s=50)
    assert run_state(read_run(run), NOW).name == "training"
    found = run_state(read_run(run), NOW + 20)
    assert found.name == "hung" and "no heartbeat for 1 min 10 s" in found.why


def test_a_run_that_stopped_and_goes_again_is_live(tmp_path):
    run = made_run(tmp_path / "run", "stopped")
    beat(run, doing="start", unix=NOW, since_unix=NOW - 2)  # before it has said so
    assert run_state(read_run(run), NOW).name == "starting"
    add_event(run, "resumed", unix=NOW)
    beat(run, doing="step", unix=NOW, since_unix=NOW)
    assert run_state(read_run(run), NOW).name == "training"


def test_a_finished_run_that_is_given_more_steps_is_live(tmp_path):
    run = made_run(tmp_path / "run", "finished")
    add_event(run, "resumed", unix=NOW + 100)
    beat(run, doing="step", unix=NOW + 101, since_unix=NOW + 101, steps=800)
    files = read_run(run)
    assert run_state(files, NOW + 101).name == "training" and steps_done(files) == (400, 800)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("done.json", "{}"), ("done.json", '{"step": 9, "unix": null, "seconds": 1}'),
        ("config.json", '{"train": null, "name": 7}'), ("goodput.json", '{"starts": null}'),
        ("goodput.json", '{"starts": [{}], "lost": {"start": null}}'), ("hosts/0.json", "[1]"),
        ("hosts/0.json", '{"process": 0, "processes": 1, "host": "x", "unix": null, "step": 1, "steps": 2}'),
        ("events.jsonl", '5\n{"unix": null, "step": 1, "event": "failed"}\n'),
        ("metrics.jsonl", '7\n{"step": null, "loss_nats_per_detection": 1}\n{"step": 3}\n'),
    ],
)  # fmt: skip
def test_files_that_hold_something_else_are_as_if_they_were_not_there(tmp_path, name, text):
    run = made_run(tmp_path / "run", "training", now=NOW)
    (run / name).write_text(text)
    odd = status_of(read_run(run), NOW)
    (run / name).unlink()
    absent = status_of(read_run(run), NOW)
    assert (odd.state, odd.step, odd.goodput, odd.name) == (absent.state, absent.step, absent.goodput, absent.name)


def test_a_stopping_run_says_so(tmp_path):
    run = made_run(tmp_path / "run", "saving")
    add_event(run, "stopping", "SIGTERM", unix=NOW)
    found = run_state(read_run(run), NOW)
    assert (found.name, found.why) == ("saving", "stopping: SIGTERM")


# --- how far, how fast, who is slow


def test_the_estimate_is_of_the_last_lines_of_this_start(tmp_path):
    run = made_run(tmp_path / "run", step_seconds=2.0)
    files = read_run(run)
    assert seconds_a_step(files) == pytest.approx(2.1)  # made runs spend 5 % between steps
    assert status_of(files, NOW).eta_seconds == pytest.approx(140 * 2.1)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    with (run / "metrics.jsonl").open("a") as file:  # from here on it is slower
        for step in range(265, 321, 5):
            file.write(json.dumps(last | {"step": step, "seconds": last["seconds"] + 9 * (step - 260)}) + "\n")
    assert seconds_a_step(read_run(run)) == pytest.approx(9.0)
    assert status_of(read_run(made_run(tmp_path / "over", "stopped")), NOW).eta_seconds is None


def test_time_of_training_adds_up_starts_without_breaks(tmp_path):
    lines = read_run(made_run(tmp_path / "run", starts=2, step_seconds=1.0)).training
    seconds = training_seconds(lines)
    assert seconds[-1] == pytest.approx(2 * (40 + 130 * 1.05))
    assert all(later > earlier for earlier, later in zip(seconds, seconds[1:], strict=False))


def test_a_start_that_compiled_longer_than_the_one_before_trained_is_a_start(tmp_path):
    run = made_run(tmp_path / "run", step_seconds=1.0)
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    of_starts = ((10, 1, 30.0), (20, 2, 43.0), (30, 2, 53.0))
    made = [line | dict(zip(("step", "start", "seconds"), one, strict=True)) for one in of_starts]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))
    files = read_run(run)
    assert training_seconds(files.training) == [30, 73, 83] and seconds_a_step(files) == 1.0


def test_the_slowest_host_is_the_one_that_makes_the_others_wait(tmp_path):
    run = made_run(tmp_path / "run", processes=4)
    hosts = hosts_of(read_run(run), NOW, live=True)
    assert (hosts.slowest, hosts.measure) == ("node2", "own")
    assert hosts.seconds == pytest.approx(0.1251) and hosts.median_seconds == pytest.approx(0.0051)
    assert hosts.excess == pytest.approx(0.12 / (0.8 + 0.124))
    beat(run, 1, probe_seconds=0.0062)  # a device at half its clock
    hosts = hosts_of(read_run(run), NOW, live=True)
    assert (hosts.slowest, hosts.measure) == ("node1", "probe") and hosts.excess == pytest.approx(1.0, abs=0.01)


def test_hosts_that_have_been_silent_are_named_longest_first(tmp_path):
    run = made_run(tmp_path / "run", processes=4)
    beat(run, 1, unix=NOW - 35)
    beat(run, 3, unix=NOW - 90)
    files = read_run(run)
    assert hosts_of(files, NOW, live=True).silent == (("node3", 3, 90.0), ("node1", 1, 35.0))
    assert hosts_of(files, NOW, live=False).silent == ()


@pytest.mark.parametrize(("seconds", "words"), [
    (0, "0.0 s"), (0.84, "0.8 s"), (9.97, "10 s"), (59.6, "1 min"), (200, "3 min 20 s"), (3599.7, "1 h"),
    (8040, "2 h 14 min"), (273_600, "3 d 4 h"), (-3, "0.0 s"),
])  # fmt: skip
def test_durations_are_said_as_people_do(seconds, words):
    assert duration(seconds) == words
