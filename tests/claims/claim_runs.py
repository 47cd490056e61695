"""Runs the command of a claim and reads its result; knows this machine and this commit."""

import dataclasses
import datetime
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from claim_format import PLACEHOLDER, WALL_SECONDS, Claim, ClaimError, figure_of

LINE_EVERY_S = 20.0  # between two lines of progress
SPARE = 3.0  # a command is ended after this many times its expected minutes, and five minutes more


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run of a command."""

    places: dict[str, str]  # what {workdir}, {json} … stood for
    seconds: float
    failure: str  # "" if the command exited with 0

    def figure(self, claim: Claim) -> float:
        """The claim's figure in this run. Raises `ClaimError` where the run failed or its result does not hold it."""
        if self.failure:
            raise ClaimError(self.failure)
        return figure_of(claim.figure, self._result(claim) | {WALL_SECONDS: self.seconds}, claim.key)

    def table(self, claim: Claim) -> str:
        """The text that the result holds as "table". Raises `ClaimError` as `figure` does."""
        table = self._result(claim).get("table")
        if not isinstance(table, str):
            raise ClaimError(f'{claim.result} holds no text "table", which docs/tables/{claim.table}.txt would keep')
        return table

    def _result(self, claim: Claim) -> dict[str, Any]:
        if not claim.result:
            return {}
        path = Path(_filled(claim.result, self.places))
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ClaimError(f"the command left no {claim.result}") from None
        except ValueError as error:
            raise ClaimError(f"{claim.result} is not JSON: {error}") from None
        if not isinstance(result, dict):
            raise ClaimError(f"{claim.result} holds {type(result).__name__}; expected an object")
        return result


def _filled(text: str, places: dict[str, str]) -> str:
    return PLACEHOLDER.sub(lambda match: places[match[1]], text)


def kept_runs(claim: Claim) -> list[str]:
    """The variables that name folders of finished runs, which the command reads in place of making them anew."""
    command = claim.command if isinstance(claim.command, str) else " ".join(claim.command)
    named = dict.fromkeys(re.findall(r"\$\{(TARIO_\w+):-", command))
    return [name for name in named if _holds_something(os.environ.get(name))]


def _holds_something(folder: str | None) -> bool:
    return bool(folder) and Path(folder).is_dir() and any(Path(folder).iterdir())


def run_command(claim: Claim, root: Path, say: Callable[[str], None]) -> Run:
    """Runs `claim.command` in `root`, with a line of progress now and then.

    The working directory, with the log in it, is the caller's to remove: `Run.places["workdir"]`.
    """
    workdir = Path(tempfile.mkdtemp(prefix=f"claim-{claim.key.replace('/', '-')}-"))
    places = {
        "workdir": str(workdir),
        "json": str(workdir / "result.json"),
        "python": sys.executable,
        "tario": str(Path(sys.executable).parent / "tario"),
    }
    if isinstance(claim.command, str):
        quoted = {name: shlex.quote(place) for name, place in places.items()}
        words = ("bash", "-euo", "pipefail", "-c", _filled(claim.command, quoted))
    else:
        words = tuple(_filled(word, places) for word in claim.command)
    log = workdir / "claim.log"
    limit = (claim.minutes * SPARE + 5) * 60
    start = time.monotonic()
    process, told = None, []

    def end(*_: Any) -> None:
        told.append(True)
        if process is not None:  # else it is about to be known
            sys.exit(128 + signal.SIGTERM)

    # whoever ends the runner ends what it runs: else two measurements would share the machine
    before = signal.signal(signal.SIGTERM, end)
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                words, cwd=root, env=_environment(root), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        if told:
            sys.exit(128 + signal.SIGTERM)
        failure = _await(process, claim, log, start, limit, say)
    except BaseException as error:
        if process is not None:
            _end(process)
        elif isinstance(error, OSError):
            return Run(places, 0.0, f"{Path(words[0]).name}: {error.strerror}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    # Stored in the docs: no path of this machine.
    failure = failure.replace(str(workdir), "{workdir}").replace(f"{root}{os.sep}", "")
    return Run(places, time.monotonic() - start, failure)


def _await(process: subprocess.Popen, claim: Claim, log: Path, start: float, limit: float, say: Callable) -> str:
    spoken = start
    while True:
        try:
            code = process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            if now - start > limit:
                _end(process)
                return f"ended after {limit / 60:.0f} minutes, {claim.minutes:g} were expected"
            if now - spoken >= LINE_EVERY_S:
                spoken = now
                say(f"  {now - start:.0f} s of about {claim.minutes * 60:.0f} s: {_last_line(log)}")
            continue
        return "" if code == 0 else _last_line(log) or f"exit status {code} without a word"


def _end(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)  # the command's own session, children included
    except ProcessLookupError:
        pass
    process.wait()


def _last_line(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 4096))
        text = stream.read().decode(errors="replace")
    # Progress lines end in a carriage return; the last one is what stands on the screen.
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
    said = [line for line in lines if line and not re.match(r"make(\[\d+\])?: ", line)]
    return said[-1][:300] if said else ""


def _environment(root: Path) -> dict[str, str]:
    """This environment, without what would speed a command up or steer the make that it calls."""
    dropped = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ONLY", "LONG", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment["PYTHONUNBUFFERED"] = "1"  # so that the last line of the log is the last line
    if (data := real_data(root)) is not None:
        environment["TARIO_REAL_DATA"] = str(data)
    return environment


def real_data(root: Path) -> Path | None:
    """The excerpts of real tissue: TARIO_REAL_DATA, else ../shared/data beside the repository."""
    place = Path(os.environ.get("TARIO_REAL_DATA") or root.parent / "shared" / "data")
    return place if place.is_dir() else None


def absent(need: str, root: Path) -> bool:
    """Whether this machine lacks what a claim needs."""
    match need:
        case "gpu":
            return not _gpu_names()
        case "libtpu" | "torch":
            return importlib.util.find_spec(need) is None
        case "real-data":
            return real_data(root) is None
        case "chromium":
            return not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
        case "slurm":  # or what the claim's own script installs it with, as root
            return os.geteuid() != 0 or not any(map(shutil.which, ("slurmctld", "apt-get")))
        case "crds":
            return not Path(os.environ.get("TARIO_CRDS", "/nowhere")).is_dir()
    raise ValueError(need)


def machine() -> str:
    """Processor, cores, memory and GPUs in a few words."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = models[0] if models else processor
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    gpus = ", ".join(_gpu_names()) or "no GPU"
    return f"{processor}, {os.cpu_count()} cores, {memory_gb:.0f} GB, {gpus}"


def _gpu_names() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return asked.stdout.splitlines() if asked.returncode == 0 else []


def commit(root: Path) -> str:
    """The commit of the working tree; "+" behind it where code, configs or claims differ from it.

    Of a copy without git, what CLAIMS_COMMIT says: a machine lent for a measurement may have nothing else.
    """

    def git(*words: str) -> str:
        asked = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
        return asked.stdout.strip() if asked.returncode == 0 else ""

    head = git("rev-parse", "--short=10", "HEAD")
    if not head:
        return os.environ.get("CLAIMS_COMMIT", "uncommitted")
    # The pages hold the figures themselves: they change with every measurement.
    pages = (":!docs", ":!README.md", ":!launch/README.md")
    return head + ("+" if git("status", "--porcelain", "--", ".", *pages) else "")


def today() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
