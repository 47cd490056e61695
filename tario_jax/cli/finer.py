"""tario finer: a model read at 36, 18 and 9 µm and cell by cell, against virtual truth."""

import argparse
from pathlib import Path

from tario_jax.cli.options import at_least_one, corpus_of, evaluation_of, finish, model_flags, say

SUMMARY = "what finer bins and single cells add, scored on the truth of virtual tissue"
EXAMPLES = """
    tario finer --workdir=runs/quickstart --out=reports/finer
    tario finer --workdir=runs/quickstart --out=reports/finer --patients=8 --config.evaluate.top_genes=1000
    tario finer --workdir=runs/quickstart --corpus=corpora/other --out=reports/other --json=finer.json
"""
GROUPS_READ = ("source", "evaluate.overlap", "evaluate.min_total", "evaluate.top_genes",
               "evaluate.bootstraps", "evaluate.seed")  # fmt: skip


def flags(parser: argparse.ArgumentParser) -> None:
    scored_flags(parser)


def scored_flags(parser: argparse.ArgumentParser) -> None:
    """Of the jobs that score a model on sections that it has not seen, section by section."""
    model_flags(parser, bins=False)
    parser.add_argument("--corpus", metavar="PLACE", help="by default that of the run")
    parser.add_argument("--out", type=Path, help="folder of figure, table and a file a section; run again, it "
                                                 "continues; WORKDIR by default")  # fmt: skip
    parser.add_argument("--patients", type=at_least_one, metavar="N", help="only so many of those not seen")


def run(options: argparse.Namespace) -> int:
    from tario_jax.evaluate.finer.figures import draw_finer
    from tario_jax.evaluate.finer.measure import measure_finer

    return score(options, "finer", measure_finer, draw_finer)


def score(options: argparse.Namespace, name: str, measure, draw) -> int:
    """measure(predictor, corpus, sections, folder, config, ranked_on, say) → result; draw(path, result)."""
    from tario_jax.corpus.read import Corpus
    from tario_jax.evaluate.scope import refuse_own_folder, sections_of
    from tario_jax.predict.predictor import load
    from tario_jax.train.compiled import compiled_kept
    from tario_jax.whole_file import write_whole

    predictor = load(options.workdir, allow_virtual_model=options.allow_virtual_model)
    corpus, folder = Corpus.open(corpus_of(options)), options.out or options.workdir
    refuse_own_folder(folder, options.workdir, corpus, predictor.provenance)
    ranked_on, sections = sections_of(predictor.provenance, corpus)
    if options.patients is not None:
        patients = list(dict.fromkeys(section.patient for section in sections))[: options.patients]
        sections = [section for section in sections if section.patient in patients]
    config = evaluation_of(options, predictor.provenance)
    with compiled_kept(options.workdir):
        result = measure(predictor, corpus, sections, folder, config, ranked_on=ranked_on, say=say)
    draw(folder / f"{name}.png", result)
    write_whole(folder / f"{name}.txt", result["table"] + "\n")
    return finish(options, f"\n{result['table']}\n\nfigure: {(folder / f'{name}.png').resolve()}", result)
