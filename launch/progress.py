"""How a sweep stands, read from the folders of its runs: done, running, failed with the reason, and what to retry."""

import dataclasses
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from launch.attempts import newest
from launch.held import NOTHING, Held
from launch.jobs import CORPUS, KINDS, SCALING, Job, is_done, jobs_of
from launch.sweep_file import Sweep
from tario_jax.config import InputError
from tario_jax.train.run_files import RunFiles, read_run
from tario_jax.train.run_state import GONE_S, duration, run_state, seconds_a_step, steps_done


@dataclasses.dataclass(frozen=True)
class Progress:
    """One run, or what is made before them or after them."""

    run: str
    state: str  # done, running, waiting (queued by a backend), failed, stopped, trained, not begun
    told: str  # for people; may be empty
    step: int
    steps: int | None
    retries: int
    error: str
    log: str

    @property
    def to_retry(self) -> bool:
        return self.state in ("failed", "stopped")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def progress_of(sweep: Sweep, workdir: Path, held: Held = NOTHING, kinds: Collection[str] = KINDS) -> list[Progress]:
    """Of the cohort, every run, and the report, as far as these kinds of jobs go. held: what a scheduler says."""
    now = time.time()
    of_kinds = {name: [job for job in jobs if job.kind in kinds]
                for name, jobs in jobs_of(sweep, workdir, to_do=False).items()}  # fmt: skip
    return [_of(name, jobs, sweep, workdir, held, now) for name, jobs in of_kinds.items() if jobs]


def _of(name: str, jobs: list[Job], sweep: Sweep, workdir: Path, held: Held, now: float) -> Progress:
    folder = jobs[0].folder(workdir)
    job = next((job for job in jobs if not is_done(job, sweep, workdir)), None)
    files = _files(folder) if name not in (CORPUS, SCALING) else None
    step, steps = (0, None) if files is None else steps_done(files)
    # of a cohort each launch looks whether it is there: that is no retry
    retries = 0 if name == CORPUS and job is None else sum(
        found.number - 1 for one in jobs if (found := newest(folder, one.kind, now)))  # fmt: skip

    def progress(state: str, words: str = "", error: str = "", log: str = "") -> Progress:
        return Progress(name, state, words, step, steps, retries, error, log)

    if job is None:
        return progress("done")
    attempt = newest(folder, job.kind, now)
    if attempt is not None and attempt.lives:
        return progress("running", _doing(job, files, now, attempt.began))
    if files is not None and job.kind == "train" and run_state(files, now).live:
        return progress("running", _doing(job, files, now))
    if name in held.queued:
        return progress("waiting", held.queued[name])
    if attempt is None and name in held.ended:
        return progress("failed", error=f"{held.ended[name]}; it left nothing in {folder}", log="the scheduler has it")
    if attempt is None:
        return progress("trained", "not evaluated yet") if job.kind == "evaluate" else progress("not begun")
    if attempt.told_to_end:
        return progress(
            "stopped", f"{job.kind} was told to end, and goes on from where it was", attempt.error, str(attempt.log)
        )
    if attempt.failed:
        return progress("failed", f"{job.kind}, {_ago(now - attempt.unix)}", attempt.error, str(attempt.log))
    since = "runs were evaluated since" if name == SCALING else "not by the config that the sweep has now"
    return progress("stopped", f"{job.kind} ended well, but {since}")


def _files(folder: Path) -> RunFiles | None:
    try:
        return read_run(folder)
    except InputError:
        return None


def _doing(job: Job, files: RunFiles | None, now: float, began: float = 0.0) -> str:
    """began: of the attempt that lives; what a process beat before is of an earlier one."""
    if job.kind != "train" or files is None:
        return job.kind
    state, (step, steps), pace = run_state(files, now), steps_done(files), seconds_a_step(files)
    left = f", {duration((steps - step) * pace)} left" if steps and pace and state.live else ""
    if state.name == "hung" and any(beat.unix > began and now - beat.unix <= GONE_S for beat in files.hosts):
        return f"hung: {state.why}"
    return f"{state.name if state.live else 'starting'}{left}"


def _ago(seconds: float) -> str:
    return f"{duration(seconds)} ago"


def progress_table(progress: list[Progress], command: str) -> str:
    """command: what starts what is missing."""
    width = max(len(one.run) for one in progress)
    lines = []
    for one in progress:
        steps = f"{one.step}/{one.steps}" if one.steps else ""
        tries = f"{one.retries} retr{'y' if one.retries == 1 else 'ies'}" if one.retries else ""
        lines.append(f"{one.run:<{width}}  {one.state:<9}  {steps:>13}  {tries:<11}  {one.told}".rstrip())
        if one.to_retry and one.error:
            lines.append(f"{'':<{width}}  {one.error}")
            lines.append(f"{'':<{width}}  log: {one.log}")
    runs = [one for one in progress if one.run not in (CORPUS, SCALING)]
    counts = {state: sum(one.state == state for one in runs) for state in
              ("done", "running", "waiting", "trained", "stopped", "failed", "not begun")}  # fmt: skip
    lines += ["", f"{len(runs)} runs: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count)]
    again = [one.run for one in progress if one.to_retry]
    if again:
        lines.append(
            f"to retry {', '.join(again[:5])}{' …' if len(again) > 5 else ''}, and begin what is missing: {command}"
        )
    return "\n".join(lines)
