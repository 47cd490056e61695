"""tario trace."""

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tario_jax.cli.options import at_least_one, finish, say
from tario_jax.config import InputError

if TYPE_CHECKING:
    from tario_jax.train.run_files import RunFiles

SUMMARY = "asks a run that is going for a profiler trace of its next steps, and says where it lies"
EXAMPLES = """
    tario trace runs/quickstart
    tario trace runs/quickstart --steps=3 --timeout-s=120
    tario trace runs/queued --wait --timeout-s=86400
"""
GROUPS_READ = ()
_EVERY_S = 0.5


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", type=Path, metavar="WORKDIR", help="of the run")
    parser.add_argument("--steps", type=at_least_one, default=5, metavar="N", help="steps of the trace (5)")
    parser.add_argument("--wait", action="store_true", help="where no run is going there, wait until one is")
    parser.add_argument("--timeout-s", type=at_least_one, default=600, metavar="S",
                        help="give up, and withdraw the request, after so long (600)")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    from tario_jax.train.run_files import REQUEST

    until = time.monotonic() + options.timeout_s
    before = _wait_for_a_run(options, until)
    request = options.workdir / REQUEST
    _ask(request, options.steps)
    try:
        say(f"asked for {options.steps} steps of {before.name}")
        folder = _traced(options, before, request, until)
    finally:
        request.unlink(missing_ok=True)  # taken it is gone already; else nobody waits for the trace any more
    perfetto = sorted(folder.rglob("*.trace.json.gz"))
    lines = [
        f"trace: {folder}",
        f"open it: pip install xprof && xprof --port=8791 {folder}, or TensorBoard with its profile plugin "
        f"(tensorboard --logdir={folder})",
        *(f"or in Perfetto (https://ui.perfetto.dev): {path}" for path in perfetto[:1]),
    ]
    result = {"folder": str(folder), "perfetto": str(perfetto[0]) if perfetto else None}
    return finish(options, "\n".join(lines), result)


def _wait_for_a_run(options: argparse.Namespace, until: float) -> "RunFiles":
    """The files of the workdir once a process of the run beats, or at once without --wait; else `InputError`."""
    from tario_jax.train.run_files import read_run
    from tario_jax.train.run_state import run_state

    said = False
    while True:
        try:
            files = read_run(options.workdir)
        except InputError as error:
            if not options.wait:
                raise
            how = str(error)
        else:
            state = run_state(files, time.time())
            if files.hosts and state.live:
                return files
            how = state.name + (f": {state.why}" if state.why else "")
        if not options.wait:
            raise InputError(f"{options.workdir}: no run is going there ({how}); start it, or wait for it with --wait")
        if not said:
            say(f"no run is going there yet ({how}); waiting")
            said = True
        if time.monotonic() > until:
            raise InputError(f"{options.workdir}: no run began there in {options.timeout_s} s ({how}); give a longer "
                             "--timeout-s")  # fmt: skip
        time.sleep(_EVERY_S)


def _ask(request: Path, steps: int) -> None:
    """Puts the request there as a whole, unless there is one."""
    if request.exists():
        raise InputError(f"{request}: another trace is asked for already; wait for it, or delete the file")
    from tario_jax.whole_file import write_whole

    write_whole(request, json.dumps({"steps": steps}))


def _traced(options: argparse.Namespace, files: "RunFiles", request: Path, until: float) -> Path:
    """The folder of the trace, once the run has written it. files: from before it was asked. Raises `InputError`."""
    from tario_jax.train.run_files import read_run
    from tario_jax.train.run_state import run_state

    seen = len(files.events)
    while True:
        files = read_run(options.workdir, files)
        if request.exists():
            seen = len(files.events)  # a trace that ended before ours was taken is another one's
        traced = [event for event in files.events[seen:] if event.event == "traced"]
        if traced:
            return options.workdir / "traces" / Path(traced[0].text).name  # as the workdir is called here
        state = run_state(files, time.time())
        taken = not request.exists()
        if not state.live:
            raise InputError(f"{options.workdir}: the run is {state.name} before it had written the trace"
                             + (f" ({state.why})" if state.why else ""))  # fmt: skip
        if time.monotonic() > until:
            where = "has taken the request but not written the trace" if taken else "has not taken the request"
            raise InputError(f"{options.workdir}: the run ({state.name}) {where} in {options.timeout_s} s; it is "
                             f"{'not withdrawn' if taken else 'withdrawn'}: give a longer --timeout-s")  # fmt: skip
        time.sleep(_EVERY_S)
