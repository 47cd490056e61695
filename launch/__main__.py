"""python -m launch: the runs of a sweep."""

import argparse
import collections
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.estimate import PRICES, Estimates, Prices
from launch.gke import GkeBackend
from launch.held import Held, Unheard
from launch.jobs import CORPUS, KINDS, SCALING, jobs_of
from launch.local import Local, Stopped, run_here
from launch.progress import Progress, progress_of, progress_table
from launch.site import read_site
from launch.slurm import SlurmBackend
from launch.sweep_file import Sweep, read_sweep
from launch.table import Row, sweep_table
from launch.tpu_vm import TpuBackend
from launch.verdicts import Verdicts
from tario_jax.cli.options import refuse_buckets
from tario_jax.config import InputError
from tario_jax.whole_file import write_whole

BACKENDS = {"slurm": SlurmBackend, "gke": GkeBackend, "tpu": TpuBackend}
EXAMPLES = """examples:
  python -m launch configs/sweeps/study.py --dry-run
  python -m launch configs/sweeps/study.py
  python -m launch configs/sweeps/study.py --at-once=2 --processes=2 --only='p16_*'
  python -m launch configs/sweeps/study.py --status
  python -m launch configs/sweeps/article_pods.py --backend=gke --dry-run --no-verdicts
  python -m launch configs/sweeps/article_pods.py --backend=gke --site=my_site.toml --only='p93_*' --wait
  python -m launch configs/tario2_200m.py:v5e:16x16 --backend=tpu --site=my_site.toml --config.train.steps=1000
  python -m launch configs/sweeps/article.py --backend=slurm --topology=8xH100 --site.slurm.partition=gpu
"""
_WAIT_S = 60.0
_UNSEEN = 3  # looks in a row at which a run that was submitted is neither queued nor begun


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    try:
        rest, changed = _taken(given, "--config.")
        rest, of_site = _taken(rest, "--site.")
        return _run(_parser().parse_args(rest), changed, of_site, given)
    except InputError as error:
        print(f"launch: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough, as in `python -m launch … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # no permission, a full disk, a file where a folder is expected: the user's
        if error.filename is None:
            raise
        print(f"launch: {error.filename}: {error.strerror or type(error).__name__}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print("launch: stopped; the same command continues", file=sys.stderr)
        return stopped.args[0]
    except KeyboardInterrupt:
        print("launch: stopped; the same command continues", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line, in place of the usage."""
        print(f"launch: {message}; see 'python -m launch --help'", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m launch", allow_abbrev=False, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Makes the cohort of a sweep, trains and evaluates its runs, here or on a cluster, and ends in "
        "'tario scaling'. Started again, it does what is missing. To be called in a checkout, where configs/ and "
        "launch/ are.",
    )  # fmt: skip
    parser.add_argument("sweep", metavar="SWEEP.py", help="a file with get_sweep(), as in configs/sweeps/, or one "
                        "config, as in configs/, also as FILE.py:ARGUMENT")  # fmt: skip
    parser.add_argument("--backend", choices=("local", *BACKENDS), default="local", help="where runs are made (local)")
    parser.add_argument("--workdir", type=Path, help="corpus, runs, logs and the scaling report (sweeps/NAME)")
    parser.add_argument("--only", default="*", metavar="PATTERN,…", help="runs of such names")
    parser.add_argument("--jobs", type=_jobs, default=KINDS, metavar="JOB,JOB",
                        help=f"some of {','.join(KINDS)}: so an accelerator may train, and a CPU evaluate")  # fmt: skip
    parser.add_argument("--config.GROUP.FIELD", metavar="VALUE", dest="_config", help="changes a field of all runs")
    ask = parser.add_argument_group("to look")
    ask.add_argument("--dry-run", "--dry_run", action="store_true", help="starts nothing: prints the runs with what "
                     "they take, and writes the backend's files")  # fmt: skip
    ask.add_argument("--status", action="store_true", help="how each run stands, why it failed, what to retry")
    ask.add_argument(
        "--commands", action="store_true", help="prints what 'tario' would be called with, to start by hand"
    )
    ask.add_argument("--no-verdicts", action="store_true", help="without compiling ahead of time what is not known "
                     "yet, and without refusing what is")  # fmt: skip
    ask.add_argument("--prices", type=Path, default=PRICES, metavar="FILE", help="as launch/prices.toml, which it is")
    ask.add_argument("--genes", type=_whole, default=18963, help="of the panel, for the table (18963)")
    ask.add_argument("--json", type=Path, metavar="PATH", help="what --dry-run or --status tells, as JSON")
    how = parser.add_argument_group("how")
    how.add_argument("--topology", metavar="CHIPS", help="of every run, as v5e:16x16, 2xv5p:4x8x8 or 8xH100; by "
                     "default what get_topologies() of the sweep says")  # fmt: skip
    how.add_argument("--at-once", type=_whole, metavar="N", help="runs side by side (1; on Slurm all)")
    how.add_argument("--processes", type=_whole, default=1, metavar="N",
                     help="of a run's training, where it has no topology (1)")  # fmt: skip
    how.add_argument("--devices", type=_whole, metavar="N",
                     help="of a process: virtual ones on a CPU; GPUs are shared out evenly by default")  # fmt: skip
    how.add_argument("--retries", type=_whole_or_0, default=2, metavar="N",
                     help="of a job that failed, but for a mistake of its user (2)")  # fmt: skip
    how.add_argument("--back-off-s", type=_seconds, default=10.0, metavar="S",
                     help="pause before the first retry, then twice as long each, up to 600 (10)")  # fmt: skip
    cluster = parser.add_argument_group("on a cluster")
    cluster.add_argument("--site", type=Path, metavar="FILE", help="partition, image, zone …, as launch/site.toml")
    cluster.add_argument("--site.GROUP.FIELD", metavar="VALUE", dest="_site", help="one of them")
    cluster.add_argument("--rewrite", action="store_true", help="makes files anew that were edited")
    cluster.add_argument("--wait", action="store_true", help="stays, submits what becomes possible, until all is done")
    return parser


def _run(options: argparse.Namespace, changed: dict[str, str], of_site: dict[str, str], given: Sequence[str]) -> int:
    sweep = read_sweep(options.sweep, options.only, options.topology, changed)
    workdir = options.workdir or Path("sweeps") / sweep.name
    at_once = options.at_once or (None if options.backend == "slurm" else 1)
    how = Local(at_once, options.processes, options.devices, options.retries, options.back_off_s)
    backend = None
    _refuse_without_effect(options, sweep)
    _refuse_unencoded(options, sweep, workdir)
    refuse_buckets(options)
    if options.backend == "local" and (of_site or options.site):
        raise InputError("--site: says how a cluster is; add --backend=slurm, gke or tpu, or leave it out")
    if options.commands and options.json:
        raise InputError(f"--json={options.json}: goes with --dry-run or --status")
    if options.commands:
        for several in jobs_of(sweep, workdir).values():
            for job in several:
                if job.kind in options.jobs:
                    print("tario", shlex.join(job.words))
        return 0
    if options.backend != "local":
        backend = BACKENDS[options.backend](sweep, workdir, read_site(options.site, of_site), how,
                                            to_do=not options.status)  # fmt: skip
    if options.status:
        return _tell_status(options, sweep, workdir, backend, given)
    if options.json and not options.dry_run:
        raise InputError(f"--json={options.json}: goes with --dry-run or --status")
    rows = _rows(options, sweep, workdir)
    refused = [row for row in rows if row.refused]
    kept = set(sweep.configs) - {row.run for row in refused}
    fits = sweep.of(kept) if refused and kept else sweep
    if backend is not None and refused and kept:
        backend = BACKENDS[options.backend](fits, workdir, read_site(options.site, of_site), how)
    if options.dry_run:
        print(sweep_table(sweep, rows, Prices.read(options.prices)))
        if backend is not None and kept:
            started = backend.write(options.jobs, _held(backend), rewrite=options.rewrite, say=_say)
            print(f"\n{backend.folder}: files to read and edit; submit.sh would start {len(started)}: "
                  f"{', '.join(started[:5])}{' …' if len(started) > 5 else ''}")  # fmt: skip
        if options.json:
            write_whole(options.json, json.dumps([row.to_dict() for row in rows], indent=1))
        return 0
    for row in refused:
        _say(f"{row.run}: is not started: {row.refused}")
    if not kept:
        raise InputError(f"{sweep.file}: none of its runs fits its chips")
    if backend is None:
        return 1 if run_here(fits, workdir, how, options.jobs, _say) or refused else 0
    return _on(backend, options, fits, workdir) or int(bool(refused))


def _held(backend) -> Held:
    """What its scheduler holds; where it does not answer that is said, and nothing is known."""
    if backend is None:
        return Held()
    try:
        return backend.held()
    except Unheard as error:
        _say(f"what is queued is not known: {error}")
        return Held()


def _refuse_without_effect(options: argparse.Namespace, sweep: Sweep) -> None:
    """Raises `InputError` for a flag that would do nothing on this backend."""
    cluster = options.backend in ("gke", "tpu")
    on_nodes = options.backend == "slurm" and all(sweep.hardware.values())  # every run has a topology
    for flag, given, why in (
        ("--wait", options.wait and options.backend == "local", "this machine is waited for anyway"),
        ("--rewrite", options.rewrite and options.backend == "local", "it writes no files"),
        ("--processes", options.processes > 1 and cluster, "a run has one for each host of its topology"),
        ("--devices", options.devices and cluster, "a process has the chips of its host"),
        ("--processes", options.processes > 1 and on_nodes, "a run with a topology has one for each node"),
        ("--devices", options.devices and on_nodes, "a run with a topology has the GPUs of its nodes"),
        ("--at-once", options.at_once is not None and options.backend == "gke",
         "Kueue starts what there is quota for; say --site.gke.slices_at_once=N"),
    ):  # fmt: skip
        if given:
            raise InputError(f"{flag}: does nothing with --backend={options.backend}: {why}; leave it out")


def _refuse_unencoded(options: argparse.Namespace, sweep: Sweep, workdir: Path) -> None:
    """Raises `InputError` where runs would train on a cohort that has yet to be made, and read features of it that no
    job works out."""
    makes = sweep.source.kind != "corpus" and not (workdir / "corpus" / "corpus.json").exists()
    encoded = [name for name, config in sweep.configs.items() if config.data.frozen_encoder]
    if makes and encoded and "train" in options.jobs and not (options.status or options.commands):
        make = "simulate" if sweep.source.kind == "virtual" else "ingest"
        raise InputError(f"{encoded[0]}: reads features of a frozen encoder (data.frozen_encoder) of a cohort that "
                         f"this launch makes, and no job works them out; make it first (--jobs={make}), then 'tario "
                         f"encode --corpus={workdir / 'corpus'} --encoder=NAME', then launch again")  # fmt: skip


def _rows(options: argparse.Namespace, sweep: Sweep, workdir: Path) -> list[Row]:
    """With verdicts: those that are known, and, for TPUs, the others compiled where it is asked for."""
    verdicts = Verdicts(workdir / "verdicts", options.genes)
    on_chips = any(sweep.hardware.values())
    if not options.dry_run and not on_chips:
        return []
    estimates, rows = Estimates(Prices.read(options.prices), options.genes), []
    counted = {run: estimates.of(config, sweep.hardware[run]) for run, config in sweep.configs.items()}
    runs = {run: (config, sweep.hardware[run]) for run, config in sweep.configs.items() if not counted[run].refusal}
    if not options.no_verdicts and on_chips and (why := verdicts.find(runs, _say)):
        if not options.dry_run:
            raise InputError(f"no verdict on memory before it is started: {why}; --no-verdicts starts it without")
        _say(f"verdicts: not all are known: {why}")
    for run, config in sweep.configs.items():
        verdict = verdicts.known(config, sweep.hardware[run])
        rows.append(Row(run, config, sweep.hardware[run], counted[run], verdict, not options.no_verdicts))
    return rows


def _tell_status(options: argparse.Namespace, sweep: Sweep, workdir: Path, backend, given: Sequence[str]) -> int:
    found = progress_of(sweep, workdir, _held(backend), options.jobs)
    again, words = [], iter(given)
    for word in words:
        if word == "--json":
            next(words, None)
        elif word != "--status" and not word.startswith("--json="):
            again.append(word)
    print(progress_table(found, f"python -m launch {shlex.join(again)}"))
    if options.json:
        write_whole(options.json, json.dumps([one.to_dict() for one in found], indent=1))
    return 0


def _on(backend, options: argparse.Namespace, sweep: Sweep, workdir: Path) -> int:
    """Submits what is missing; with --wait again and again until nothing is, and nothing can be."""
    told: dict[str, str] = {}
    tried: set[str] = set()
    unseen: collections.Counter[str] = collections.Counter()
    held = backend.held()  # raises: what is under way must not be submitted again
    while True:
        started = backend.write(options.jobs, held, rewrite=options.rewrite, say=_say)
        fresh = [run for run in started if run not in tried]
        if fresh:
            backend.submit(_say)
            tried |= set(started)
            _say(f"started {len(started)}: {', '.join(started[:8])}{' …' if len(started) > 8 else ''}")
        elif not options.wait:
            _say("nothing to submit: all is done, or under way")
            return _report_here(options, sweep, workdir, progress_of(sweep, workdir, held))
        if not options.wait:
            return 0
        while True:
            time.sleep(_WAIT_S)
            try:
                held = backend.held()
                break
            except Unheard as error:
                _say(str(error))
        found = progress_of(sweep, workdir, held, options.jobs)
        for one in found:
            line = f"{one.state} {one.told}".split(",")[0].strip()
            if told.get(one.run) != line:
                told[one.run] = line
                _say(f"{one.run:<28} {line}{f': {one.error}' if one.error else ''}")
            gone = one.run in tried and one.state in ("not begun", "stopped", "trained") and one.run not in held.queued
            unseen[one.run] = unseen[one.run] + 1 if gone else 0
        runs = [one for one in found if one.run not in (CORPUS, SCALING)] or found
        if all(one.state == "done" for one in found):
            return 0
        if any(one.run == CORPUS and (one.state == "failed" or unseen[CORPUS] >= _UNSEEN) for one in found):
            return 1  # without it there is nothing to wait for
        lost = [one.run for one in runs if unseen[one.run] >= _UNSEEN]
        over = lost + [one.run for one in runs if one.state == "failed" and one.run in tried]
        report = next((one.state for one in found if one.run == SCALING), "done")
        if all(one.state == "done" or one.run in over for one in runs) and report not in ("waiting", "running"):
            if lost:
                names = ", ".join(lost[:5]) + (" …" if len(lost) > 5 else "")
                _say(f"{names}: no longer with the scheduler, and nothing new in {workdir}: were they cancelled, or is "
                     "that folder not mounted here?")  # fmt: skip
            if report == "failed" and SCALING in tried:
                return 1
            return _report_here(options, sweep, workdir, found) or int(bool(over))


def _report_here(options: argparse.Namespace, sweep: Sweep, workdir: Path, found: list[Progress]) -> int:
    """The report over runs that are done, where the backend makes none, or is done with failed ones."""
    states = {one.run: one.state for one in found}
    missing = states.pop(SCALING, "done") in ("not begun", "stopped", "failed") and "scaling" in options.jobs
    over = [state for run, state in states.items() if run != CORPUS]
    if missing and "done" in over and set(over) <= {"done", "failed"}:
        return run_here(sweep, workdir, Local(), ("scaling",), _say)
    return 0


def _taken(arguments: list[str], prefix: str) -> tuple[list[str], dict[str, str]]:
    """The arguments without those of a prefix, and these, by what follows it."""
    rest, found = [], {}
    pending = iter(arguments)
    for argument in pending:
        if not argument.startswith(prefix):
            rest.append(argument)
            continue
        name, equals, value = argument.removeprefix(prefix).partition("=")
        if not equals and ((value := next(pending, None)) is None or value.startswith("--")):
            raise InputError(f"{argument}: has no value; write {argument}=VALUE")
        found[name] = value
    return rest, found


def _jobs(text: str) -> tuple[str, ...]:
    found = tuple(filter(None, text.split(",")))
    if not found or not set(found) <= set(KINDS):
        raise argparse.ArgumentTypeError(f"{text!r}: expected some of {','.join(KINDS)}")
    return found


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def _whole_or_0(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, at least 0")
    return seconds


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
