"""The command: finds the job, reads its flags, answers a mistake in one line.

A job is a module of this package with SUMMARY, EXAMPLES, GROUPS_READ, `flags(parser)` and `run(options) -> status`.
It imports what it needs within `run`: `tario --help` starts neither jax nor numpy.
"""

import argparse
import os
import sys
import traceback

from tario_jax.cli import (
    atlas,
    bench,
    check,
    compare,
    compile,
    corpus,
    decode,
    embed,
    encode,
    evaluate,
    export,
    finer,
    gallery,
    ingest,
    maps,
    neighbours,
    predict,
    probe,
    run,
    scaling,
    serve,
    shift,
    simulate,
    status,
    trace,
    train,
    view,
)
from tario_jax.cli.options import add_command, refuse_buckets
from tario_jax.config import InputError

JOBS = {
    "run": run, "simulate": simulate, "ingest": ingest, "check": check, "corpus": corpus, "encode": encode,
    "train": train, "predict": predict, "maps": maps, "view": view, "export": export, "serve": serve, "decode": decode,
    "embed": embed, "atlas": atlas, "probe": probe, "neighbours": neighbours, "evaluate": evaluate, "finer": finer,
    "shift": shift, "gallery": gallery, "scaling": scaling, "bench": bench, "compile": compile, "status": status,
    "compare": compare, "trace": trace,
}  # fmt: skip
_CONFIG_PREFIX = "--config."
_OF_A_RUN = ("predict", "decode", "embed", "evaluate", "finer", "shift", "gallery")  # the run has a config already


def main(argv: list[str] | None = None) -> int:
    """Runs a job. Exit status: 0 done, 1 a check found a fault, 2 a mistake in what was given (one line says which),
    3 a run hung, 75 another process did not come, 130 and 143 it was told to end (Ctrl-C, SIGTERM), and continues when
    it is started again."""
    try:
        status = _run(argv)
    except BaseException as error:
        if (stopped := _stopped(error)) is not None:  # all processes alike: they end as those that are done
            print(f"tario: {error}", file=sys.stderr)
            return stopped
        if not isinstance(error, Exception) or not _has_others():
            raise
        traceback.print_exc()
        print(
            "tario: this process ends, and the run with it; where a connection broke, another process ended first: its "
            "log says why; the same command on all continues from the newest checkpoint", file=sys.stderr,
        )  # fmt: skip
        status = 1
    # refused, it has nothing left to do, and threads of native libraries that still run may abort it at its end
    refused = argv is None and status == 2 and "jax" in sys.modules
    if refused or (status and _has_others()):
        from tario_jax.parallel.hosts import end

        end(status)
    return status


def _has_others() -> bool:
    """Whether this is one of several processes of a run: then the module that starts them is there."""
    hosts = sys.modules.get("tario_jax.parallel.hosts")
    return hosts is not None and hosts.has_others()


def _stopped(error: BaseException) -> int | None:
    """The exit status of a run that was told to end, and did."""
    stop = sys.modules.get("tario_jax.train.stop")
    return error.status if stop is not None and isinstance(error, stop.Stopped) else None


def _run(argv: list[str] | None) -> int:
    assignments, arguments = split_assignments(sys.argv[1:] if argv is None else argv)
    try:
        options = parser().parse_args(arguments)
        refuse_buckets(options)
        _refuse_unread(options, assignments)
        options.assignments = assignments
        return JOBS[options.job].run(options)
    except InputError as error:
        print(f"tario: {' '.join(str(error).split())}", file=sys.stderr)
        return error.status
    except BrokenPipeError:  # whoever read the output has seen enough, as in `tario check … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # no such folder, no permission, a full disk: the user's, if it names a place
        if error.filename is None:
            raise
        print(f"tario: {error.filename}: {error.strerror or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tario: stopped; the same command continues", file=sys.stderr)
        return 130


def split_assignments(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Takes `--config.a.b=value` and `--config.a.b value` out of the arguments."""
    assignments, rest = {}, []
    pending = iter(arguments)
    for argument in pending:
        if not argument.startswith(_CONFIG_PREFIX):
            rest.append(argument)
            continue
        name, equals, value = argument[len(_CONFIG_PREFIX) :].partition("=")
        if not equals:
            value = next(pending, None)
            if value is None:
                print(f"tario: {argument}: has no value; write {argument}=VALUE", file=sys.stderr)
                raise SystemExit(2)
        assignments[name] = value
    return assignments, rest


def _refuse_unread(options: argparse.Namespace, assignments: dict[str, str]) -> None:
    """A field that the job does not read would do nothing, silently."""
    groups = JOBS[options.job].GROUPS_READ  # some of them of one field: "evaluate.overlap"
    for name in assignments:
        if groups is not None and not {name, name.partition(".")[0]} & set(groups):
            raise InputError(
                f"--config.{name}: 'tario {options.job}' "
                + (f"reads {_listed(groups)} of a config only; the rest is that of the run" if groups else
                   "reads no config; leave it out")
            )  # fmt: skip
    if not assignments or options.config is not None:
        return
    for name in assignments:
        if getattr(options, "reads_no_config", False):
            raise InputError(f"--config.{name}: this bench reads no config; leave it out")
        if options.job not in _OF_A_RUN:
            raise InputError(f"--config.{name}: changes a field of a config; name it with --config")
        if name.partition(".")[0] == "source":
            raise InputError(f"--config.{name}: changes where --config's corpus is, and none is given; name the corpus "
                             "itself (--corpus)")  # fmt: skip


def _listed(words: tuple[str, ...]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line, in place of the usage."""
        print(f"{self.prog}: {message}; see '{self.prog} --help'", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    """The parser of all jobs. Each takes --json=PATH: the table for people, and the same as JSON."""
    whole = _Parser(prog="tario", description="H&E in, the expression of every gene out.", allow_abbrev=False)
    jobs = whole.add_subparsers(dest="job", required=True, metavar="JOB", parser_class=_Parser)
    for name, job in JOBS.items():
        add_command(jobs, name, job)
    return whole
