"""tario embed: patients as vectors, from their H&E alone and from what was measured."""

import argparse
from pathlib import Path

from tario_jax.cli.options import above_0, corpus_of, finish, model_flags, overlap_of, part_of, say
from tario_jax.config import InputError

SUMMARY = "patients as vectors: predicted expression and the decoder's state; new ones are added to old"
EXAMPLES = """
    tario embed --workdir=runs/quickstart --out=runs/quickstart.embeddings
    tario embed --workdir=runs/quickstart --out=runs/quickstart.embeddings --measured
    tario embed --workdir=runs/lung --corpus=corpora/new --region-um=500 --out=lung.embeddings --part=2/4
"""
GROUPS_READ = ("source", "evaluate.overlap")
SUFFIX = ".embeddings"


def flags(parser: argparse.ArgumentParser) -> None:
    model_flags(parser)
    parser.add_argument("--corpus", metavar="PLACE", help="by default that of the run")
    parser.add_argument("--out", type=Path, required=True, metavar=f"NAME{SUFFIX}",
                        help="a folder; sections that are in it already are not computed again")  # fmt: skip
    parser.add_argument("--sections", help="only these, with commas; all with an H&E by default")
    parser.add_argument("--measured", action="store_true", help="what was measured too, in the same space")
    parser.add_argument("--region-um", type=above_0, metavar="UM", help="side of squares that have rows of their own")
    parser.add_argument("--overlap", type=float, help="of neighbouring windows; evaluate.overlap by default")
    parser.add_argument("--part", type=part_of, default=(1, 1), metavar="K/N",
                        help="the K-th of N processes that share the work")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    if options.out.suffix != SUFFIX:
        raise InputError(f"--out={options.out}: expected a name that ends in {SUFFIX}")
    from tario_jax.corpus.read import Corpus
    from tario_jax.evaluate.job import refuse_side_of_spots
    from tario_jax.evaluate.patients.embed import embed_corpus
    from tario_jax.evaluate.patients.vectors import MEASURED, PREDICTED
    from tario_jax.predict.predictor import load
    from tario_jax.train.compiled import compiled_kept

    predictor = load(options.workdir, allow_virtual_model=options.allow_virtual_model)
    corpus = Corpus.open(corpus_of(options))
    overlap = overlap_of(options, predictor.provenance)
    refuse_side_of_spots(corpus, corpus.sections, options.bin_um)
    sections = tuple(filter(None, (options.sections or "").split(",")))
    with compiled_kept(options.workdir):
        store = embed_corpus(predictor, corpus, options.out, overlap=overlap, bin_um=options.bin_um,
                             region_um=options.region_um, sections=sections, measured=options.measured,
                             part=options.part, say=say)  # fmt: skip
    rows = {kind: store.rows(kind, vectors=()) for kind in (PREDICTED, MEASURED)}
    result = {
        "out": str(options.out), "model": store.about["model"], "trained_on": store.about["trained_on"],
        "genes": len(store.panel), "patients": len({row.patient for row in rows[PREDICTED]}),
        "sections": len(rows[PREDICTED]), "measured_sections": len(rows[MEASURED]),
        "regions": len(store.rows(PREDICTED, regions=True, vectors=())),
    }  # fmt: skip
    return finish(options, "\n".join(f"{name:<18} {value}" for name, value in result.items()), result)
