"""What the files of a run say at one moment: how it stands, how far it is, and which host keeps it waiting."""

import dataclasses
import math
import statistics

from tario_jax.train.run_files import Heartbeat, RunFiles, TrainingLine

SILENT_S = 30.0  # a process that has not written its heartbeat for so long is named
GONE_S = 60.0  # and where none has, the run hangs or was killed
NO_STEP_S = 300.0  # one thing within a step takes that long: the run hangs, unless its steps are that long
NO_STEP_STEPS = 20.0  # the same, in steps
BETWEEN_S = 900.0  # for a validation, a save or a trace
PREPARING_S = 3600.0  # for a start or a compilation
_DOING = {"start": "starting", "compile": "compiling", "save": "saving"}
_ENDS = {"stopped": "stopped", "failed": "failed", "hung": "hung", "finished": "finished"}
_LIVE = ("starting", "compiling", "training", "saving")


@dataclasses.dataclass(frozen=True)
class RunState:
    """How a run stands."""

    name: str  # starting, compiling, training, saving, stopped, finished, hung or failed
    why: str  # a clause for people; may be empty

    @property
    def live(self) -> bool:
        """Whether steps are being done, or will be without anyone's help."""
        return self.name in _LIVE


def run_state(files: RunFiles, now: float) -> RunState:
    """How the run stands at `now` (seconds since 1970, by the clock of this machine)."""
    started = max((event.unix for event in files.events if event.event in ("started", "resumed")), default=-math.inf)
    ends = [event for event in files.events if event.event in _ENDS and event.unix >= started]
    freshest = max(files.hosts, key=lambda beat: beat.unix, default=None)
    beat_s = math.inf if freshest is None else now - freshest.unix
    if files.done is not None and files.done["unix"] >= started:
        if beat_s > GONE_S or not _began_again(freshest, files.done["unix"]):
            return RunState("finished", "")
    elif ends and (beat_s > GONE_S or not _began_again(freshest, ends[-1].unix)):
        return RunState(_ENDS[ends[-1].event], ends[-1].text)
    if freshest is None:
        return _without_heartbeat(files, now)
    if beat_s > GONE_S:
        return RunState("hung", f"no heartbeat for {duration(beat_s)}: it was killed, or its machine is gone")
    return _live(files, freshest, now)


def _began_again(beat: Heartbeat, ended_unix: float) -> bool:
    """Whether a new start beats that has not written its event yet."""
    if beat.doing == "start" and beat.since_unix is not None:
        return beat.since_unix > ended_unix
    return beat.doing != "end" and beat.unix > ended_unix + SILENT_S


def _live(files: RunFiles, freshest: Heartbeat, now: float) -> RunState:
    first = next((beat for beat in files.hosts if beat.process == 0), freshest)
    name = _DOING.get(first.doing, "training")
    stuck = max(files.hosts, key=lambda beat: _busy_s(beat, now) - _patience_s(beat))
    if _busy_s(stuck, now) > _patience_s(stuck):
        whose = f"process {stuck.process} ({stuck.host}) is" if len(files.hosts) > 1 else "it is"
        busy = duration(_busy_s(stuck, now))
        return RunState("hung", f"{whose} in '{_step_or(stuck.doing)}' for {busy}, after step {stuck.step:,}")
    if files.events and files.events[-1].event == "stopping":
        return RunState("saving", f"stopping: {files.events[-1].text}".rstrip(": "))
    busy = {"validate": "validating", "trace": "tracing"}.get(first.doing, "")
    if name != "training":
        busy = f"for {duration(_busy_s(first, now))}"
    return RunState(name, busy)


def _step_or(doing: str) -> str:
    return "step" if doing in ("place", "dispatch", "wait") else doing


def _without_heartbeat(files: RunFiles, now: float) -> RunState:
    """A run that has just begun, or one of an older tario."""
    training, steps = files.training, files.config.get("train", {}).get("steps")
    if not training:
        return RunState("starting", "no process of it has written yet")
    if steps is not None and training[-1].step >= steps:
        return RunState("finished", "")
    age_s = now - files.metrics_unix
    why = f"it writes no heartbeats; its last line is {duration(age_s)} old"
    return RunState("training" if age_s < NO_STEP_S else "stopped", why)


def _busy_s(beat: Heartbeat, now: float) -> float:
    """How long the process has been at one thing."""
    return 0.0 if beat.since_unix is None or beat.doing == "end" else max(0.0, now - beat.since_unix)


def _patience_s(beat: Heartbeat) -> float:
    if beat.doing in ("start", "compile"):
        return PREPARING_S
    if beat.doing in ("validate", "save", "trace"):
        return BETWEEN_S
    return max(NO_STEP_S, NO_STEP_STEPS * (beat.step_seconds or 0.0))


# --- how far


def steps_done(files: RunFiles) -> tuple[int, int | None]:
    """(steps done, steps in all); the second is None where neither the config nor a heartbeat tells."""
    done = max([line.step for line in files.metrics.values[-1:]] + [beat.step for beat in files.hosts], default=0)
    if files.done is not None and files.done["step"] >= done:
        done = files.done["step"]
    steps = files.config.get("train", {}).get("steps")
    return done, next((beat.steps for beat in files.hosts), steps)


def of_this_start(training: list[TrainingLine]) -> list[TrainingLine]:
    """The lines since the newest start."""
    first = len(training) - 1
    while first > 0 and _of_one_start(training[first - 1], training[first]):
        first -= 1
    return training[max(first, 0) :]


def seconds_a_step(files: RunFiles) -> float | None:
    """Wall time of a step over the last lines, with what comes between steps; None before there are two lines."""
    lines = of_this_start(files.training)[-11:]
    if len(lines) > 1 and lines[-1].step > lines[0].step:
        return (_seconds(lines[-1]) - _seconds(lines[0])) / (lines[-1].step - lines[0].step)
    return next((beat.step_seconds for beat in files.hosts), None)


def training_seconds(training: list[TrainingLine]) -> list[float]:
    """For each line, the seconds that the run had trained: all starts, without the breaks between them and the steps
    that a later start did again."""
    total, before, result = 0.0, None, []
    for line in training:
        goes_on = before is not None and _of_one_start(before, line)
        total += _seconds(line) - (_seconds(before) if goes_on else 0.0)
        before = line
        result.append(total)
    return result


def _of_one_start(before: TrainingLine, line: TrainingLine) -> bool:
    """By their numbers; an older run has none, but `seconds` begin again."""
    if before.start is not None and line.start is not None:
        return before.start == line.start
    return _seconds(before) < _seconds(line)


def last_known(training: list[TrainingLine], field: str) -> float | None:
    """The newest finite value of a field that not every line has."""
    values = (getattr(line, field) for line in reversed(training))
    return next((value for value in values if value is not None and math.isfinite(value)), None)


def _seconds(line: TrainingLine) -> float:
    return line.seconds or 0.0


# --- hosts


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes of a run. `excess` is what the slowest costs: its own seconds above the median, as a share of a
    step, or its device's probe above the median, as a share of that."""

    processes: int
    heard: int  # of them wrote a heartbeat at all
    slowest: str | None  # None with one process, or before they measure
    process: int | None
    excess: float | None
    measure: str | None  # "own" (data wait and Python of the loop) or "probe" (a small product on its slowest device)
    seconds: float | None  # of that measure
    median_seconds: float | None
    silent: tuple[tuple[str, int, float], ...]  # (host, process, seconds since its heartbeat), longest first


def hosts_of(files: RunFiles, now: float, *, live: bool) -> Hosts:
    """live: a run that has ended is silent by right."""
    beats = files.hosts
    silent = sorted(((beat.host, beat.process, now - beat.unix) for beat in beats
                     if live and now - beat.unix > SILENT_S), key=lambda one: -one[2])  # fmt: skip
    found = [_slowest(beats, measure) for measure in ("own", "probe")] if len(beats) > 1 else []
    worst = max((one for one in found if one is not None), key=lambda one: one[1], default=None)
    processes = beats[0].processes if beats else 1
    if worst is None:
        return Hosts(processes, len(beats), None, None, None, None, None, None, tuple(silent))
    beat, excess, measure, seconds, median = worst
    return Hosts(processes, len(beats), beat.host, beat.process, excess, measure, seconds, median, tuple(silent))


def _slowest(beats: tuple[Heartbeat, ...], measure: str) -> tuple[Heartbeat, float, str, float, float] | None:
    """All wait for the slowest, so their steps take equally long: only what each does alone tells them apart."""
    known = [(value, beat) for beat in beats if (value := _alone_s(beat, measure)) is not None]
    if len(known) < 2:
        return None
    seconds, beat = max(known, key=lambda one: one[0])
    median = statistics.median(value for value, _ in known)
    whole = _cycle_s(beat) if measure == "own" else median
    return (beat, (seconds - median) / whole, measure, seconds, median) if whole else None


def _cycle_s(beat: Heartbeat) -> float | None:
    """From one step to the next; `step_seconds` are without the wait for the batch."""
    return None if beat.step_seconds is None else beat.step_seconds + (beat.data_wait_seconds or 0.0)


def _alone_s(beat: Heartbeat, measure: str) -> float | None:
    if measure == "probe":
        return beat.probe_seconds
    parts = (beat.data_wait_seconds, beat.host_seconds)
    return None if None in parts else sum(parts)


# --- words


def duration(seconds: float) -> str:
    """As people say it: 0.8 s, 45 s, 3 min 20 s, 2 h 14 min, 3 d 4 h."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _two(whole, 60, "min", 1, "s")
    return _two(whole, 3600, "h", 60, "min") if whole < 86400 else _two(whole, 86400, "d", 3600, "h")


def _two(whole: int, big: int, big_unit: str, small: int, small_unit: str) -> str:
    rest = whole % big // small
    return f"{whole // big} {big_unit}" + (f" {rest} {small_unit}" if rest else "")
