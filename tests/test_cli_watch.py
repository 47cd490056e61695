"""`tario status`, `tario compare` and `tario trace`: what they say of made runs, at the widths of terminals."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from made_run import STATES, add_event, made_checkpoint, made_run

from tario_jax.cli import main as cli
from tario_jax.cli import trace
from tario_jax.cli.braille import plot


@pytest.fixture
def tario(capsys, monkeypatch):
    """`tario(*arguments, columns=80)`: (status, stdout, stderr) of the command, as in a pipe."""

    def run(*arguments: object, columns: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(trace, "_EVERY_S", 0.05)
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as left:
            status = left.code
        return status, *capsys.readouterr()

    return run


def live_run(folder: Path, state: str = "training", **fields) -> Path:
    return made_run(folder, state, now=time.time(), **fields)


def row(text: str, name: str) -> list[str]:
    """The cells of the table's row that begins with `name`."""
    line = next(line for line in text.splitlines() if line.strip().startswith(name))
    return re.split(r" {2,}", line.strip())


# --- status


@pytest.mark.parametrize("columns", [80, 140])
@pytest.mark.parametrize("state", STATES)
def test_status_shows_each_state_in_plain_text_that_fits(tario, tmp_path, state, columns):
    status, out, err = tario("status", live_run(tmp_path / "run", state, processes=4), columns=columns)
    assert status == 0 and not err
    assert f"made   {state.upper()}" in out
    assert "\x1b" not in out and max(map(len, out.splitlines())) <= columns
    assert ("ETA" in out) == (state in ("training", "saving"))
    done = {"finished": 400, "starting": 0, "compiling": 0}.get(state, 260)
    assert f"step {done}/400  {100 * done // 400} %" in out


def test_status_tells_the_numbers_of_the_last_lines(tario, tmp_path):
    run = live_run(tmp_path / "run", processes=4)
    status, out, _ = tario("status", run, "--json", tmp_path / "status.json")
    found = json.loads((tmp_path / "status.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "seconds" in line)
    for field in ("gradient_norm", "learning_rate", "tokens_per_second", "mfu", "first_group_nats", "memory_gib"):
        assert found[field] == last[field]
    best = min(line["loss_nats_per_detection"] for line in lines if "seconds" in line)
    assert found["loss"]["best"] == best and found["loss"]["last"] == last["loss_nats_per_detection"]
    assert f"{last['loss_nats_per_detection']:.4f} nats a detection at step 260; best {best:.4f}" in out
    for words in ("first group", "last group", f"{last['tokens_per_second']:,.0f}", "41.2 %", "4 ms (0.5 %)",
                  "3.20 GiB", "1.40 GiB", "goodput", "compile", "between starts", "in 2 starts", "step 200",
                  "14 MB sealed", "hosts 4 processes; slowest node2 (process 2)", "13.0 % of a step more",
                  "all heard within 30 s", "resumed"):  # fmt: skip
        assert words in " ".join(out.split()), words
    assert found["hosts"]["slowest"] == "node2" and found["state"]["name"] == "training"


def test_status_highlights_what_should_not_have_happened(tario, tmp_path):
    run = live_run(tmp_path / "run", processes=8, skipped=3, rollbacks=1)
    for process in (1, 2, 3, 4, 5):
        path = run / "hosts" / f"{process}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"unix": time.time() - 40 - process}))
    made_checkpoint(run, 260, sealed=False, unix=time.time())
    add_event(run, "damaged", "checkpoints/200 does not open", step=200, unix=time.time())
    _, out, _ = tario("status", run, columns=140)
    assert "! skipped steps: 3" in out and "! rollbacks: 1" in out
    assert "! silent: node5 (process 5) for 45 s, node4" in out and "and 1 more" in out
    assert "not sealed" in out and "damaged" in out and "all heard" not in out


def test_status_of_a_run_that_has_only_begun(tario, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"name": "early", "train": {"steps": 7}}')
    status, out, _ = tario("status", tmp_path / "run")
    assert status == 0 and "early   STARTING  no process of it has written yet" in out and "step 0/7  0 %" in out
    assert "loss" not in out and "goodput" not in out


def test_status_of_no_workdir_is_one_line(tario, tmp_path):
    live_run(tmp_path / "run")
    assert tario("status", tmp_path / "rnu") == (2, "", f"tario: {tmp_path}/rnu: no such workdir; did you mean "
                                                        f"{tmp_path}/run?\n")  # fmt: skip


def test_status_is_quick_and_starts_neither_jax_nor_numpy(tmp_path, repository):
    run = live_run(tmp_path / "run")
    program = "import sys, time; began = time.perf_counter(); from tario_jax.cli.main import main; " \
              f"main(['status', {str(run)!r}, '--json', {str(tmp_path / 's.json')!r}]); " \
              "print(time.perf_counter() - began, 'jax' in sys.modules or 'numpy' in sys.modules)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.splitlines()[-1].split()
    assert heavy == "False" and float(seconds) < 2.0  # 0.15 on an idle machine


# where the tests run in the background, a shell has told all of their processes not to hear SIGINT
HEARS_CTRL_C = [sys.executable, "-c", "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
                "from tario_jax.cli.main import main; sys.exit(main())"]  # fmt: skip


def in_terminal(command: list[str], rows: int, columns: int, until, timeout_s: float = 60) -> tuple[int, str]:
    """(exit status, all that was drawn) of a command in a terminal; Ctrl-C is pressed once `until(drawn)` holds."""
    screen, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "LINES": str(rows), "COLUMNS": str(columns)}
    child = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment,
                             start_new_session=True)  # fmt: skip
    os.close(terminal)
    drawn, pressed, end = b"", False, time.monotonic() + timeout_s
    while time.monotonic() < end:
        if select.select([screen], [], [], 0.1)[0]:
            try:
                drawn += os.read(screen, 65536)
            except OSError:  # it has ended
                break
        if not pressed and until(drawn.decode(errors="ignore")):
            child.send_signal(signal.SIGINT)
            pressed = True
    else:
        child.kill()
    os.close(screen)
    return child.wait(), drawn.decode(errors="ignore")


def test_status_in_a_terminal_follows_the_run_until_ctrl_c(tmp_path):
    run = live_run(tmp_path / "run", processes=4)

    def seen_growing(drawn: str) -> bool:
        if "step 260/400" in drawn and "275" not in drawn:
            line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line | {"step": 275, "seconds": 400.0}) + "\n")
        return "step 275/400" in drawn

    command = [*HEARS_CTRL_C, "status", str(run)]
    status, drawn = in_terminal(command, 24, 80, seen_growing)
    assert status == 0 and "step 275/400" in drawn and "Traceback" not in drawn
    live, _, after = drawn.partition("\x1b[?1049l")  # back from the terminal's other screen
    frame = live.split("\x1b[H")[-1]
    assert len(frame.splitlines()) <= 24 and "Ctrl-C leaves" in frame and "events" in frame
    assert "TRAINING" in after and "checkpoints" in after


def test_status_in_a_terminal_ends_by_itself_once_the_run_is_finished(tmp_path):
    command = [sys.executable, "-m", "tario_jax.cli", "status", str(live_run(tmp_path / "run", "finished"))]
    status, drawn = in_terminal(command, 40, 140, lambda drawn: False)
    assert status == 0 and "FINISHED" in drawn


# --- the curve


def dots(rows: list[str]) -> list[tuple[int, int]]:
    """(column, row from the top) of each dot."""
    place = {1: (0, 0), 2: (0, 1), 4: (0, 2), 64: (0, 3), 8: (1, 0), 16: (1, 1), 32: (1, 2), 128: (1, 3)}
    return sorted((2 * x + dx, 4 * y + dy) for y, row in enumerate(rows) for x, one in enumerate(row) if one != " "
                  for bit, (dx, dy) in place.items() if (ord(one) - 0x2800) & bit)  # fmt: skip


def test_a_curve_is_where_its_points_are():
    assert dots(plot([(x, 7 - x) for x in range(8)], 0, 7, columns=4, rows=2))[::2] == [(x, x) for x in range(8)]
    falling = dots(plot([(0, 3), (9, 0)], 0, 3, columns=5, rows=1))
    assert {x for x, _ in falling} == set(range(10)) and falling[0] == (0, 0) and falling[-1] == (9, 3)


def test_a_curve_has_a_gap_where_the_loss_was_not_finite_and_stays_within_its_edges():
    nan, inf = float("nan"), float("inf")
    points = [(0, 2), (1, 2), (2, nan), (3, nan), (4, 0), (5, 99), (6, -99), (7, inf)]
    drawn = dots(plot(points, 0, 2, columns=4, rows=1))
    assert [y for x, y in drawn if x in (0, 1, 4)] == [0, 0, 3]
    assert {x for x, _ in drawn} == {0, 1, 4, 5, 6} and {y for _, y in drawn} <= {0, 1, 2, 3}
    assert plot([(5, nan)], 0, 1, columns=2, rows=1) == ["  "]
    assert len(dots(plot([(5, 1.0)], 1.0, 1.0, columns=2, rows=1))) == 1


# --- compare


@pytest.fixture
def three_runs(tmp_path) -> list[Path]:
    """400 steps, 260 of 400 with half the learning rate and every tenth step logged, 260 of 400 in three starts."""
    return [
        live_run(tmp_path / "x" / "run", "finished", floor_nats=5.2),
        live_run(
            tmp_path / "y" / "run", floor_nats=5.1, learning_rate=1e-3, log_every=10, step_seconds=1.6, rollbacks=1
        ),
        live_run(tmp_path / "z", "stopped", floor_nats=5.3, starts=3, mfu=None),
    ]


def test_compare_sets_two_runs_side_by_side_at_equal_steps(tario, three_runs, tmp_path):
    a, b, _ = three_runs
    status, out, err = tario("compare", a, b, "--json", tmp_path / "c.json")
    assert status == 0 and not err and max(map(len, out.splitlines())) <= 80
    assert row(out, "config") == ["config", "x/run", "y/run"]
    assert row(out, "optim.learning_rate") == ["optim.learning_rate", "0.002", "0.001"]
    assert row(out, "train.log_every") == ["train.log_every", "5", "10"]
    assert "model.width" not in out
    found = json.loads((tmp_path / "c.json").read_text())
    assert (found["step"], found["validation_step"], found["tail_steps"]) == (260, 250, 3)  # 240, 250 and 260

    def losses(run: Path) -> dict[int, float]:
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: line["loss_nats_per_detection"] for line in lines if "seconds" in line}

    one, two = losses(a), losses(b)
    assert row(out, "loss at step 260")[1:] == [f"{one[260]:.4f}", f"{two[260]:.4f}", f"−{one[260] - two[260]:.4f}"]
    mean = sum(two[step] - one[step] for step in (240, 250, 260)) / 3
    first, second = (run["tail_difference"] for run in found["runs"])
    assert first is None and second == pytest.approx(mean, abs=1e-6)
    assert f"−{-mean:.4f}" in row(out, "… − x/run's, mean of last 3")
    assert row(out, "validation at step 250")[-1] == "−0.1000"
    assert row(out, "rollbacks") == ["rollbacks", "0", "1", "+1"]
    assert row(out, "steps")[1:] == ["400 of 400", "260 of 400"]


def test_compare_by_time_takes_what_each_had_by_then(tario, three_runs, tmp_path):
    a, b, _ = three_runs  # a trained 2 × (40 + 210) s, b 2 × (40 + 218.4) s
    tario("compare", a, b, "--json", tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["hours"] == pytest.approx(2 * (40 + 200 * 0.8 * 1.05) / 3600, abs=1e-6)
    slow = found["runs"][1]
    assert slow["training_hours"] == pytest.approx(2 * (40 + 130 * 1.6 * 1.05) / 3600, abs=1e-6)
    lines = [json.loads(line) for line in (b / "metrics.jsonl").read_text().splitlines()]
    # its second start began after 40 + 218.4 s; 416 s are 117.6 s of steps into it: 70 steps
    by_then = {line["step"]: line for line in lines if "seconds" in line}[200]
    assert slow["loss_at_hours"] == pytest.approx(by_then["loss_nats_per_detection"], abs=1e-6)


def test_a_validation_that_was_not_finite_is_not_compared_and_is_no_json_of_its_own(tario, three_runs, tmp_path):
    a, b, _ = three_runs
    lines = [json.loads(line) for line in (b / "metrics.jsonl").read_text().splitlines()]
    last = max(line["step"] for line in lines if "validation_nats_per_detection" in line)
    for line in lines:
        if line["step"] == last and "validation_nats_per_detection" in line:
            line["validation_nats_per_detection"] = None  # as training writes what is not finite
    (b / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert tario("compare", a, b, "--json", tmp_path / "c.json")[0] == 0

    def no_such_json(name):
        pytest.fail(f"holds {name}")

    found = json.loads((tmp_path / "c.json").read_text(), parse_constant=no_such_json)
    assert found["validation_step"] == 200 < last
    assert all(run["validation_at_step"] > 5 for run in found["runs"])


def test_compare_three_runs_and_draw_them(tario, three_runs, tmp_path):
    figure = tmp_path / "figures" / "compare.png"
    status, out, _ = tario("compare", *three_runs, "--figure", figure)
    assert status == 0 and "difference" not in out and figure.read_bytes().startswith(b"\x89PNG")
    assert len(row(out, "MFU, median")) == 4 and row(out, "MFU, median")[-1] == "–"
    assert row(out, "figure")[1:] == ["x/run", "y/run", "z"]
    assert not list(figure.parent.glob("*.partial"))


def test_compare_of_runs_without_common_steps_says_what_each_is(tario, tmp_path):
    a = live_run(tmp_path / "a", log_every=7, done=20, validate_every=9)
    b = live_run(tmp_path / "b", log_every=11, done=20, validate_every=8)
    (b / "config.json").unlink()
    status, out, _ = tario("compare", a, b)
    assert status == 0 and "at step" not in out and "no field differs (no config.json: b)" in out
    assert "loss after" in out and "loss, last" in out
    status, out, _ = tario("compare", b, a)
    assert status == 0 and "no field differs (no config.json: b)" in out and "different kinds" not in out


@pytest.mark.parametrize(("words", "answer"), [
    (("compare", "{}/a"), "give two or more"),
    (("compare", "{}/a", "{}/b"), "{}/b: no such workdir"),
    (("compare", "{}/a", "{}/../{}/a"), "is given twice"),
    (("compare", "{}/a", "{}/a", "--figure=x.pdf"), "--figure=x.pdf: ends in '.pdf'; expected .png"),
    (("trace", "{}/a", "--steps=0"), "expected a whole number of at least 1"),
    (("trace", "{}/b"), "{}/b: no such workdir"),
    (("status", "{}/a", "--config.train.steps=3"), "'tario status' reads no config"),
])  # fmt: skip
def test_wrong_flags_are_one_line(tario, tmp_path, words, answer):
    live_run(tmp_path / "a", "stopped")
    place = str(tmp_path)
    words = [word.replace("{}/../{}", f"{place}/../{tmp_path.name}").replace("{}", place) for word in words]
    status, out, err = tario(*words)
    assert status == 2 and not out and err.count("\n") == 1 and answer.replace("{}", place) in err


# --- trace


def answer_requests(run: Path, stop: threading.Event, folder: str, *, after_s: float = 0.2) -> list[dict]:
    """Stands in for a run that takes a request and writes a trace; returns what it was asked for."""
    taken = []

    def loop():
        while not stop.wait(0.05):
            if (run / "trace.request").exists():
                taken.append(json.loads((run / "trace.request").read_text()))
                (run / "trace.request").unlink()
                time.sleep(after_s)
                (run / folder / "plugins").mkdir(parents=True)
                (run / folder / "plugins" / "host.trace.json.gz").touch()
                # as the run calls its folder, wherever it was started
                add_event(run, "traced", f"runs/{run.name}/{folder}", step=265, unix=time.time())

    threading.Thread(target=loop, daemon=True).start()
    return taken


def test_trace_asks_waits_and_says_how_to_open_it(tario, tmp_path):
    run, stop = live_run(tmp_path / "run"), threading.Event()
    add_event(run, "traced", "traces/an_older_one", unix=time.time() - 60)
    taken = answer_requests(run, stop, "traces/step_261")
    status, out, err = tario("trace", run, "--steps=3", "--json", tmp_path / "t.json")
    stop.set()
    assert status == 0 and not err and taken == [{"steps": 3}]
    assert f"trace: {run}/traces/step_261" in out and "xprof" in out and "host.trace.json.gz" in out
    assert json.loads((tmp_path / "t.json").read_text())["folder"] == f"{run}/traces/step_261"


@pytest.mark.parametrize("state", ["stopped", "finished", "hung", "failed"])
def test_trace_of_a_run_that_is_not_going_is_refused_and_leaves_no_request(tario, tmp_path, state):
    run = live_run(tmp_path / "run", state)
    status, out, err = tario("trace", run)
    assert status == 2 and not out and f"no run is going there ({state}" in err and "--wait" in err
    assert not list(run.glob("trace.request*"))


def test_trace_waits_for_a_workdir_that_is_not_there_yet(tario, tmp_path):
    status, out, err = tario("trace", tmp_path / "queued", "--wait", "--timeout-s=1")
    assert status == 2 and "no such workdir); waiting" in out and "no run began there in 1 s" in err


def test_trace_that_nobody_takes_is_withdrawn(tario, tmp_path):
    run = live_run(tmp_path / "run")
    status, _, err = tario("trace", run, "--timeout-s=1")
    assert status == 2 and "has not taken the request in 1 s; it is withdrawn" in err
    assert not list(run.glob("trace.request*"))


def test_trace_is_withdrawn_at_ctrl_c(tmp_path):
    run = live_run(tmp_path / "run")
    command = [*HEARS_CTRL_C, "trace", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
        assert "asked for 5 steps of made" in asking.stdout.readline()
        assert json.loads((run / "trace.request").read_text()) == {"steps": 5}
        asking.send_signal(signal.SIGINT)
        assert asking.wait(60) == 130
    assert not list(run.glob("trace.request*"))


def test_trace_of_a_run_that_ends_meanwhile_says_so(tario, tmp_path):
    run = live_run(tmp_path / "run")
    threading.Timer(0.2, add_event, (run, "failed", "a planted fault"), {"unix": time.time() + 1}).start()
    status, _, err = tario("trace", run)
    assert status == 2 and "the run is failed before it had written the trace (a planted fault)" in err


def test_trace_waits_for_a_run_to_begin(tario, tmp_path):
    run, stop = live_run(tmp_path / "run", "stopped"), threading.Event()
    answer_requests(run, stop, "traces/step_1", after_s=0.05)

    def begin():
        add_event(run, "resumed", unix=time.time())
        path = run / "hosts" / "0.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {
            "doing": "step", "unix": time.time(), "since_unix": time.time()}))  # fmt: skip

    threading.Timer(0.2, begin).start()
    status, out, _ = tario("trace", run, "--wait", "--timeout-s=20")
    stop.set()
    assert status == 0 and "no run is going there yet (stopped" in out and "traces/step_1" in out


def test_a_second_trace_at_the_same_time_is_refused(tario, tmp_path):
    run = live_run(tmp_path / "run")
    (run / "trace.request").write_text('{"steps": 9}')
    status, _, err = tario("trace", run)
    assert status == 2 and "another trace is asked for already" in err
    assert (run / "trace.request").exists()
