"""tario evaluate: a checkpoint against held-out sections."""

import argparse
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from tario_jax.cli.options import above_0, at_least_one, corpus_of, evaluation_of, finish, model_flags, part_of, say
from tario_jax.config import InputError

SUMMARY = "correlations with controls on held-out sections, figures, report.html"
EXAMPLES = """
    tario evaluate --workdir=runs/quickstart --out=reports/quickstart --config.evaluate.top_genes=200
    tario evaluate --workdir=runs/quickstart --corpus=corpora/x --bin-um=18 --allow-virtual-model --out=reports/x
    tario evaluate --workdir=runs/quickstart --bin-um=36 --read-um=18 --out=runs/quickstart/read_18um
    tario evaluate --workdir=runs/quickstart --part=2/3
    tario evaluate --workdir=runs/quickstart --follow --give-up-minutes=60
"""
GROUPS_READ = ("source", "evaluate")


def flags(parser: argparse.ArgumentParser) -> None:
    model_flags(parser)
    parser.add_argument("--corpus", metavar="PLACE", help="by default that of the run")
    parser.add_argument("--out", type=Path, help="folder of the report; WORKDIR by default, on the run's own corpus")
    parser.add_argument("--read-um", type=above_0, metavar="UM",
                        help="side of the bins that are predicted, summed up to --bin-um (default: those)")  # fmt: skip
    work = parser.add_argument_group(
        "the work", "Sections are kept in OUT/kept as they are done: interrupted, the same command goes on."
    )
    work.add_argument("--shared", type=Path, metavar="FOLDER", help="keeps what does not depend on the model there, "
                      "for other evaluations on the same corpus; OUT/kept by default")  # fmt: skip
    work.add_argument("--part", type=part_of, default=(1, 1), metavar="K/N",
                      help="the K-th of N processes that share the work; each writes the report")  # fmt: skip
    beside = parser.add_argument_group(
        "beside training", "Each checkpoint as it appears into OUT/evaluations/STEP, a line each in "
        "OUT/evaluations.jsonl, all in OUT/evaluations.png, until the run is done. Run again, it continues.",
    )  # fmt: skip
    beside.add_argument("--follow", action="store_true", help="waits for checkpoints, also of a run yet to begin")
    beside.add_argument("--every", type=at_least_one, metavar="N",
                        help="only multiples of N steps, in order; by default the newest first")  # fmt: skip
    beside.add_argument("--give-up-minutes", type=at_least_one, metavar="N",
                        help="without a sign of life of the run: ends with status 1; by default it waits")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    if options.follow:
        return _follow(options)
    for name in ("every", "give_up_minutes"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')}: goes with --follow only; add it, or leave this out")
    from tario_jax.corpus.read import Corpus
    from tario_jax.evaluate.job import evaluate_checkpoint, headline_table, refuse_readings
    from tario_jax.evaluate.scope import refuse_own_folder
    from tario_jax.predict.predictor import load
    from tario_jax.train.compiled import compiled_kept

    predictor = load(options.workdir, allow_virtual_model=options.allow_virtual_model)
    corpus = Corpus.open(corpus_of(options))
    folder, config = options.out or options.workdir, evaluation_of(options, predictor.provenance)
    refuse_own_folder(folder, options.workdir, corpus, predictor.provenance)
    readings = config.read_um if options.read_um is None else ()
    refuse_readings(predictor, corpus, dataclasses.replace(config, read_um=readings), options.bin_um)
    title = f"{predictor.provenance.config.name} on {corpus.root.name}"
    shared = options.shared or folder / "kept"

    def evaluated(out: Path, read_um: float | None, title: str) -> dict[str, Any]:
        return evaluate_checkpoint(predictor, corpus, config, out, bin_um=options.bin_um, read_um=read_um,
                                   shared=shared, part=options.part, say=say, title=title).report  # fmt: skip

    with compiled_kept(options.workdir):
        report = evaluated(folder, options.read_um, title)
        result = report
        for read_um in readings:
            say(f"\nread at {read_um:g} µm:")
            result |= {"read": result.get("read", {}) | {f"{read_um:g}": evaluated(
                folder / f"read_{read_um:g}um", read_um, f"{title}, read at {read_um:g} µm")["headline"]}}  # fmt: skip
    page = (folder / "report.html").resolve()
    return finish(options, f"\n{headline_table(report)}\n\nreport: {page}", result)


def _follow(options: argparse.Namespace) -> int:
    for name in ("read_um", "part"):
        if getattr(options, name) not in (None, (1, 1)):
            raise InputError(f"--{name.replace('_', '-')}: goes without --follow only; leave one of them out")
    if "evaluate.read_um" in options.assignments:
        raise InputError("--config.evaluate.read_um: no readings are made with --follow; leave one of them out")
    from tario_jax.corpus.read import Corpus
    from tario_jax.evaluate.evaluations import Evaluations
    from tario_jax.evaluate.follow import Evaluator, follow

    named = Corpus.open(options.corpus) if options.corpus is not None else None  # the run's may be yet to come
    folder = options.out or options.workdir
    evaluator = Evaluator(
        options.workdir, folder, lambda: named or Corpus.open(corpus_of(options)),
        functools.partial(evaluation_of, options), options.bin_um, options.allow_virtual_model,
        options.shared, json.dumps([str(options.config), options.assignments]),
    )  # fmt: skip
    status = follow(evaluator, every=options.every or 0, give_up_minutes=options.give_up_minutes or 0, say=say)
    lines = Evaluations(folder).lines
    done = f"{len(lines)} checkpoints are evaluated: {folder / 'evaluations.jsonl'}, evaluations.png, evaluations/"
    return finish(options, done, lines) or status
