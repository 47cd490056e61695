"""The runs of a sweep on this machine: several at once, each of several processes; started again, what is missing."""

import contextlib
import dataclasses
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from launch import attempts
from launch.attempt import pause_s
from launch.jobs import CORPUS, KINDS, SCALING, Job, is_done, jobs_of
from launch.statuses import MISTAKE
from launch.sweep_file import Sweep
from tario_jax.config import InputError
from tario_jax.train.run_files import read_run
from tario_jax.train.run_state import seconds_a_step, steps_done

_LOOK_S = 0.2
_TELL_S = 60.0
_ASK_AGAIN_S = 5.0  # whether another launch has let go
_LEFT_ALONE_S = 60.0
"""So long the processes of a job have to end by themselves when one of them failed."""
_OF_A_RUN = ("train", "evaluate")
_KINDS_OF = {CORPUS: ("simulate", "ingest"), SCALING: ("scaling",)}


@dataclasses.dataclass(frozen=True)
class Local:
    """How runs share this machine."""

    at_once: int | None = 1  # runs; None: as many as Slurm has room for
    processes: int = 1  # of a run's training
    devices: int | None = None  # of a process; None: what is there, or an equal share of the GPUs
    retries: int = 2  # of a job that failed, but for mistakes
    back_off_s: float = 10.0  # before the first retry; twice as long before each further one, up to ten minutes


class Stopped(Exception):
    """The launch was told to end, and its jobs with it. Holds the exit status."""


def run_here(sweep: Sweep, workdir: Path, how: Local, kinds: tuple[str, ...] = KINDS,
             say: Callable[[str], None] = print) -> int:  # fmt: skip
    """Makes the cohort, then the runs, then the scaling report; of the jobs only those of `kinds`.

    Returns the number of runs that failed; one that does leaves the others alone. Raises `Stopped`.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with _Launch(sweep, workdir, how, say) as launch:
        jobs = {name: [job for job in several if job.kind in kinds]
                for name, several in jobs_of(sweep, workdir).items()}  # fmt: skip
        if launch.do({CORPUS: jobs.pop(CORPUS, [])}):
            return 1
        launch.did_something = False  # a cohort that is there is only looked at
        scaling = jobs.pop(SCALING, [])
        failed = launch.do(jobs)
        if scaling and (launch.did_something or not is_done(scaling[0], sweep, workdir)):
            if failed:
                say(f"scaling: {len(failed)} of {len(jobs)} runs are missing; it is drawn from the others")
            failed += launch.do({SCALING: scaling})
        return len(failed)


@dataclasses.dataclass
class _Group:
    """The processes of one attempt at a job."""

    job: Job
    slot: int
    began: float
    attempt: str
    processes: list[subprocess.Popen]
    ends: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # (process, status), as they ended
    failed_at: float | None = None

    def look(self, now: float) -> int | None:
        """The job's status when all of its processes have ended: that of the first that failed."""
        for number, process in enumerate(self.processes):
            status = process.poll()
            if status is not None and number not in [at for at, _ in self.ends]:
                self.ends.append((number, status))
        bad = [status for _, status in self.ends if status]
        if bad and self.failed_at is None:
            self.failed_at = now
        if len(self.ends) == len(self.processes):
            return bad[0] if bad else 0
        if self.failed_at is not None and now - self.failed_at > _LEFT_ALONE_S:
            self.end(signal.SIGTERM if now - self.failed_at < 2 * _LEFT_ALONE_S else signal.SIGKILL)
        return None

    def end(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


class _Launch:
    """What of a sweep is under way here."""

    def __init__(self, sweep: Sweep, workdir: Path, how: Local, say: Callable[[str], None]):
        self._sweep, self._workdir, self._how, self._say = sweep, workdir, how, say
        self._began = time.monotonic()
        self._gpus = _gpus(how)
        self._signal: signal.Signals | None = None
        self._groups: dict[str, _Group] = {}
        self._before: dict[int, object] = {}
        self._locks: dict[str, IO] = {}
        self.did_something = False

    def __enter__(self) -> "_Launch":
        def hear(number: int, frame) -> None:
            if self._signal:  # a person's second Ctrl-C: without a save
                for group in self._groups.values():
                    group.end(signal.SIGINT)
                return
            self._signal = signal.Signals(number)
            # not by say: a signal may come in the middle of it
            os.write(2, b"launch: told to end: jobs save, and end; Ctrl-C again ends them without a save\n")

        self._before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for group in self._groups.values():
            group.end(signal.SIGTERM)
        for group in self._groups.values():
            for process in group.processes:
                process.wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for name in list(self._locks):
            self._let_go(name)

    def do(self, jobs: dict[str, list[Job]]) -> list[str]:
        """Does the jobs of each run in their order; returns the runs that failed."""
        left = {name: [job for job in several if job.run in (CORPUS, SCALING) or not self._is_done(job)]
                for name, several in jobs.items()}  # fmt: skip
        left = {name: several for name, several in left.items() if several}
        total, not_before, retried, failed = len(left), dict.fromkeys(left, 0.0), dict.fromkeys(left, 0), []
        waited_for: set[str] = set()
        told_at = time.monotonic()
        while left:
            now = time.monotonic()
            for name in list(left):
                if len(self._groups) == self._how.at_once:
                    break
                if name in self._groups or now < not_before[name]:
                    continue
                fresh = name not in self._locks
                if not self._take(name):
                    if name not in waited_for:
                        waited_for.add(name)
                        self._say(f"     {name:<28} another launch is at it; it is waited for")
                    not_before[name] = now + _ASK_AGAIN_S
                    continue
                if fresh:  # what is left of it: another launch may have been at it since, and let go
                    always = () if name in waited_for else (CORPUS, SCALING)
                    waited_for.discard(name)
                    left[name] = [job for job in left[name] if job.run in always or not self._is_done(job)]
                    if not left[name]:
                        del left[name]
                        self._let_go(name)
                        continue
                self._groups[name] = self._start(left[name][0])
            for name, group in list(self._groups.items()):
                status = group.look(now)
                if status is None:
                    continue
                del self._groups[name]
                self.did_something = True
                if self._signal:
                    continue
                again = status and self._retry(status, retried[name])
                self._tell(f"{total - len(left) + 1:>3}/{total}", group, status)
                if again is not None and status:
                    retried[name] += 1
                    not_before[name] = now + again
                    continue
                left[name].pop(0)
                if status:
                    failed.append(name)
                if status or not left[name]:
                    del left[name]
                    self._let_go(name)
                else:
                    retried[name] = 0
            if self._signal:
                raise self._stop()
            if self._groups and now - told_at > _TELL_S:
                told_at = now
                self._say(f"     {(now - self._began) / 60:.0f} min: "
                          + "; ".join(self._progress(group) for group in self._groups.values()))  # fmt: skip
            time.sleep(_LOOK_S)
        return failed

    def _is_done(self, job: Job) -> bool:
        return is_done(job, self._sweep, self._workdir)

    def _start(self, job: Job) -> _Group:
        slot = min(set(range(self._how.at_once)) - {group.slot for group in self._groups.values()})
        count = self._how.processes if job.kind == "train" else 1
        attempt = f"{time.time():.3f}"
        words = list(job.words)
        if count > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                words += [f"--coordinator=127.0.0.1:{free.getsockname()[1]}", f"--processes={count}"]
        processes = []
        for number in range(count):
            own = [*words, f"--process={number}"] if count > 1 else words
            command = [sys.executable, "-m", "launch.attempt", str(job.folder(self._workdir)), f"--attempt={attempt}",
                       f"--process={number}", "--", *own]  # fmt: skip
            processes.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL, start_new_session=True,
                                 env=os.environ | self._devices(slot, number, count))
            )  # fmt: skip
        return _Group(job, slot, time.monotonic(), attempt, processes)

    def _devices(self, slot: int, process: int, processes: int) -> dict[str, str]:
        """What of this machine's devices a process sees."""
        if not self._gpus:
            return {} if self._how.devices is None else {"JAX_NUM_CPU_DEVICES": str(self._how.devices)}
        of_run = len(self._gpus) // self._how.at_once
        of_process = self._how.devices or of_run // processes
        first = slot * of_run + process * of_process
        return {"CUDA_VISIBLE_DEVICES": ",".join(self._gpus[first : first + of_process])}

    def _retry(self, status: int, retried: int) -> float | None:
        """Seconds until the job is tried again; None where it is not."""
        if status == MISTAKE or retried >= self._how.retries:
            return None
        return pause_s(self._how.back_off_s, retried + 1)

    def _tell(self, number: str, group: _Group, status: int) -> None:
        seconds, minutes = time.monotonic() - group.began, (time.monotonic() - self._began) / 60
        ended = "done" if status == 0 else f"failed ({status})"
        self._say(
            f"{number}  {group.job.run:<28} {group.job.kind:<9} {ended}  {seconds:6.0f} s, {minutes:.0f} min in all"
        )
        if status:
            found = attempts.newest(group.job.folder(self._workdir), group.job.kind)
            self._say(f"         {found.error if found else 'it did not start'}; {found.log if found else ''}")

    def _progress(self, group: _Group) -> str:
        if group.job.kind == "train":
            with contextlib.suppress(InputError):
                files = read_run(self._workdir / group.job.run)
                (step, steps), pace = steps_done(files), seconds_a_step(files)
                if steps and pace:
                    return f"{group.job.run} step {step}/{steps}, {(steps - step) * pace / 60:.0f} min left"
        return f"{group.job.run} {group.job.kind}"

    def _stop(self) -> Stopped:
        for group in self._groups.values():
            group.end(signal.SIGTERM)
        return Stopped(128 + self._signal)

    def _take(self, name: str) -> bool:
        """Holds the run for this launch; False where another launch holds it, or what one began is still at it."""
        if name in self._locks:
            return True
        of_sweep = name in (CORPUS, SCALING)
        folder = self._workdir if of_sweep else self._workdir / name
        folder.mkdir(exist_ok=True)
        file = (folder / (f".launch_{name}" if of_sweep else ".launch")).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        except OSError:  # a disk that knows no locks
            pass
        if any((found := attempts.newest(folder, kind)) and found.lives for kind in _KINDS_OF.get(name, _OF_A_RUN)):
            file.close()
            return False
        self._locks[name] = file
        return True

    def _let_go(self, name: str) -> None:
        if name in self._locks:
            self._locks.pop(name).close()


def _gpus(how: Local) -> list[str]:
    """The GPUs that are shared out; empty where runs are to take what they find.

    Raises `InputError` where there are fewer than are asked for.
    """
    first_platform = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    if how.at_once * how.processes == 1 and how.devices is None or first_platform == "cpu":
        return []
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True,
                            text=True, check=False)  # fmt: skip
    found = listed.stdout.split() if listed.returncode == 0 else []
    if (lent := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:  # the others are somebody else's
        found = [one for one in lent.split(",") if one]
    if found and len(found) < how.at_once * how.processes * (how.devices or 1):
        raise InputError(
            f"--at-once={how.at_once} --processes={how.processes} --devices={how.devices or 1}: this machine has "
            f"{len(found)} GPUs; expected a product of at most that"
        )
    return found
