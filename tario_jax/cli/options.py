"""What several jobs take and say: --config, --workdir, the corpus that is meant, the table and its JSON."""

import argparse
import importlib.util
import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tario_jax.config import Config, EvaluateConfig, InputError, SplitConfig
from tario_jax.config_files import expand, load_config, override


def add_command(commands, name: str, command, json: object = None) -> None:
    """The parser of a job, or of one of a job's commands: a module with SUMMARY, EXAMPLES and `flags(parser)`.

    json: what --json is where it is not given; a command within a job leaves the job's own (`argparse.SUPPRESS`).
    """
    added = commands.add_parser(
        name, help=command.SUMMARY, description=command.SUMMARY, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n" + textwrap.indent(textwrap.dedent(command.EXAMPLES).strip(), "  "),
    )  # fmt: skip
    added.add_argument("--json", type=Path, metavar="PATH", default=json, help="write the result as JSON too")
    command.flags(added)


def config_flags(parser: argparse.ArgumentParser, *, required: bool = True, workdir: bool = True) -> None:
    parser.add_argument("--config", required=required, metavar="FILE.py[:ARG]",
                        help="config file; --config.a.b=VALUE changes a field")  # fmt: skip
    if workdir:
        parser.add_argument("--workdir", required=required, type=Path,
                            help="folder of the run; run again, it continues")  # fmt: skip


def model_flags(parser: argparse.ArgumentParser, *, bins: bool = True) -> None:
    """For the jobs that read a trained model; bins: at any side of the bins."""
    parser.add_argument("--workdir", required=True, type=Path, help="of the run whose newest checkpoint is used")
    config_flags(parser, required=False, workdir=False)
    if bins:
        parser.add_argument("--bin-um", type=above_0, help="side of the bins; that of training by default")
    parser.add_argument("--allow-virtual-model", action="store_true",
                        help="let a model of virtual tissue, which knows no biology, see real tissue")  # fmt: skip


def config_of(options: argparse.Namespace) -> Config:
    """The config that was named, with --config.a.b=VALUE on top."""
    return override(load_config(options.config), options.assignments)


def evaluation_of(options: argparse.Namespace, provenance) -> EvaluateConfig:
    """How to evaluate: as the run's config says, or --config's, with --config.evaluate.* on top."""
    base = provenance.config if options.config is None else load_config(options.config)
    return override(base, options.assignments).evaluate


def overlap_of(options: argparse.Namespace, provenance) -> float:
    """Of neighbouring windows: --overlap, else that of evaluation."""
    return evaluation_of(options, provenance).overlap if options.overlap is None else options.overlap


def steps_of(options: argparse.Namespace, samples: int):
    """The `Steps` that `tario predict` was asked for, of `samples` where it was not said; None: it is one-shot."""
    from tario_jax.predict.writing import Steps

    if options.steps is None:
        return None
    return Steps(options.steps, options.samples or samples, options.order or "random", options.seed or 0)


def new_corpus(options: argparse.Namespace) -> str | Path:
    """Where a corpus is to be written: --out, else within --workdir."""
    if options.out is None and options.workdir is None:
        raise InputError(f"{options.job}: no place to write; give --out=CORPUS or --workdir=RUN (for RUN/corpus)")
    if options.out is not None and options.workdir is not None:
        raise InputError(f"{options.job}: --out and --workdir are two places; give one of them")
    return options.out or options.workdir / "corpus"


def corpus_of(options: argparse.Namespace) -> str | Path:
    """The corpus that was named, else that of --config's source, else the one within the workdir."""
    if options.corpus is not None:
        return options.corpus
    if options.config is not None and config_of(options).source.kind == "corpus":
        return expand(config_of(options).source.path)
    if options.workdir is None:
        raise InputError(f"{options.job}: no corpus is named; give its folder, or --workdir=RUN (for RUN/corpus)")
    place = options.workdir / "corpus"
    if not place.is_dir():
        raise InputError(f"{place}: no such folder; this run was trained on a corpus elsewhere: name it (--corpus)")
    return place


def need_eval() -> None:
    """Raises `InputError` where something of the extra `eval` is not installed."""
    for name, project in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib"), ("openTSNE", "openTSNE"),
                          ("threadpoolctl", "threadpoolctl")):  # fmt: skip
        if importlib.util.find_spec(name) is None:
            raise InputError(f"{project} is not installed; pip install 'tario-jax[eval]'")


def describe_corpus(corpus) -> tuple[str, dict[str, Any]]:
    """What a corpus holds, as a table and as JSON values."""
    result = {
        "corpus": str(corpus.root), "kind": corpus.kind, "seal": corpus.seal, "genes": len(corpus.panel),
        "panel_hash": corpus.panel.hash, "patients": len(corpus.patients), "sections": len(corpus.sections),
        "detections": sum(section.record["detections"] for section in corpus.sections),
        "spots": sum(section.record["spots"] for section in corpus.sections),
    }  # fmt: skip
    return "\n".join(f"{name:<12} {value:,}" if isinstance(value, int) else f"{name:<12} {value}"
                     for name, value in result.items()), result  # fmt: skip


def refuse_buckets(options: argparse.Namespace) -> None:
    """Raises `InputError` where a path is a URL, which would become a folder of that name in this one."""
    for name, value in vars(options).items():
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, Path) and (found := re.match(r"(gs|s3|https?):/", str(path))):
                url = f"{found[1]}://{str(path)[found.end() :]}"
                raise InputError(f"{name.replace('_', '-')}: {url} is no path on a disk; a corpus may lie in a bucket, "
                                 "runs and results may not: name a folder, or mount the bucket")  # fmt: skip


def at_least_one(text: str) -> int:
    """For flags that count something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def above_0(text: str) -> float:
    """For flags in µm, and other sizes."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


def part_of(text: str) -> tuple[int, int]:
    """K/N, for jobs whose work several processes share."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected K/N with K from 1 to N, such as 3/16")
    return int(part), int(parts)


def split_config_of(options: argparse.Namespace) -> SplitConfig:
    """That of --config where one is given."""
    return SplitConfig() if options.config is None else config_of(options).split


def limits_of(corpus, config: SplitConfig, sections: int):
    """The limits of a virtual corpus over sections of so many held-out patients, its smallest of each."""
    from tario_jax.corpus.split import split_corpus
    from tario_jax.evaluate.limits import measure_limits

    held_out = split_corpus(corpus, config, trains=False).held_out
    if not held_out:
        raise InputError(f"corpus {corpus.root}: no section is held out; limits are those of held-out patients")
    held_out = sorted(held_out, key=lambda section: section.width_um, reverse=True)
    smallest = {section.patient: section for section in held_out}
    return measure_limits(corpus, [smallest[name] for name in sorted(smallest)[:sections]], say)


def say(text: str) -> None:
    print(text, flush=True)


def say_nothing(text: str) -> None:
    """For the processes of a run that leave telling to the first."""


def say_about_ten_times(what: str, of: str) -> Callable[[int, int], None]:
    """progress(done, total) that says how far it is about ten times in all."""
    said = 0

    def progress(done: int, total: int) -> None:
        nonlocal said
        if done == total or done * 10 // total > said:
            said = done * 10 // total
            say(f"{what}: {done}/{total} {of}")

    return progress


def finish(options: argparse.Namespace, text: str, result: Any) -> int:
    """Prints the table and writes the same as JSON."""
    say(text)
    if options.json is not None:
        from tario_jax.evaluate.tables import plain

        write_json(options.json, plain(result))
    return 0


def write_json(path: Path, values: Any) -> None:
    """Replaces the file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    from tario_jax.whole_file import write_whole

    write_whole(path, json.dumps(values, indent=1) + "\n")
