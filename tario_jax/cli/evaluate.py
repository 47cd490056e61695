"""tario evaluate: a checkpoint against held-out sections."""

import argparse
from pathlib import Path

from tario_jax.cli.options import corpus_of, evaluation_of, finish, model_flags, say

SUMMARY = "correlations with controls on held-out sections, figures, report.html"
EXAMPLES = """
    tario evaluate --workdir=runs/quickstart --out=reports/quickstart --config.evaluate.top_genes=200
    tario evaluate --workdir=runs/quickstart --corpus=corpora/x --bin-um=18 --allow-virtual-model --out=reports/x
"""
GROUPS_READ = ("source", "evaluate")


def flags(parser: argparse.ArgumentParser) -> None:
    model_flags(parser)
    parser.add_argument("--corpus", metavar="PLACE", help="by default that of the run")
    parser.add_argument("--out", type=Path, help="folder of the report; WORKDIR by default")


def run(options: argparse.Namespace) -> int:
    from tario_jax.corpus.read import Corpus
    from tario_jax.evaluate.job import evaluate_checkpoint, headline_table
    from tario_jax.predict.predictor import load
    from tario_jax.train.compiled import compiled_kept

    predictor = load(options.workdir, allow_virtual_model=options.allow_virtual_model)
    corpus = Corpus.open(corpus_of(options))
    folder = options.out or options.workdir
    with compiled_kept(options.workdir):
        evaluation = evaluate_checkpoint(
            predictor, corpus, evaluation_of(options, predictor.provenance), folder, bin_um=options.bin_um, say=say,
            title=f"{predictor.provenance.config.name} on {corpus.root.name}",
        )  # fmt: skip
    page = (folder / "report.html").resolve()
    return finish(options, f"\n{headline_table(evaluation.report)}\n\nreport: {page}", evaluation.report)
