"""tario atlas: the map of all patients."""

import argparse
from pathlib import Path

from tario_jax.cli.options import at_least_one, finish, need_eval, say
from tario_jax.config import InputError

SUMMARY = "all patients on one map: t-SNE, principal components, clusters, in the colours of their table"
EXAMPLES = """
    tario atlas runs/quickstart.embeddings --corpus=runs/quickstart/corpus --out=runs/quickstart.atlas
    tario atlas lung.embeddings --corpus=corpora/lung --corpus=corpora/new --columns=EGFR,KRAS,site --out=lung.atlas
    tario atlas lung.embeddings --table=clinical.tsv --out=lung.atlas
"""
GROUPS_READ = ()


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("embeddings", type=Path, metavar="NAME.embeddings", help="that 'tario embed' wrote")
    parser.add_argument("--corpus", action="append", default=[], metavar="PLACE",
                        help="whose table of patients has the columns; may be given several times")  # fmt: skip
    table_flag(parser)
    parser.add_argument("--columns", type=names, default=(), metavar="NAME,…",
                        help="the usual ones by default, and all of --table")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a page, figures and tables")
    parser.add_argument("--components", type=at_least_two, default=50, metavar="N", help="of a new space, at most (50)")
    parser.add_argument("--fit-again", action="store_true",
                        help="a new space and map; else patients that came since are placed on the old")  # fmt: skip


def table_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", type=Path, metavar="FILE.tsv|csv",
                        help="further columns: a header, its first column 'patient', a row a patient, UTF-8; empty, "
                             "NA, none, unknown: not known")  # fmt: skip


def at_least_two(text: str) -> int:
    """Components: a map has two directions."""
    if at_least_one(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: expected at least 2")
    return int(text)


def names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def run(options: argparse.Namespace) -> int:
    need_eval()
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out={options.out}: is a file; give a folder")
    from tario_jax.corpus.read import Corpus
    from tario_jax.evaluate.patients.atlas_job import atlas_job, summary, unlike_text
    from tario_jax.evaluate.patients.store import EmbeddingStore
    from tario_jax.evaluate.patients.tables import table_of_file

    store = EmbeddingStore(options.embeddings)
    tables = [*(Corpus.open(place) for place in options.corpus), *table_of_file(options.table, store, say)]
    result = atlas_job(store, tables, options.columns, options.out,
                       fit_again=options.fit_again, components=options.components, say=say)  # fmt: skip
    told = [summary(result), *(f"{name:<16} {value:+.3f} (adjusted Rand index of clusters with it)"
                               for name, value in result["agreement"].items()),
            *([unlike_text(result)] if "unlike" in result else []), str(options.out / "atlas.html")]  # fmt: skip
    return finish(options, "\n".join(told), result)
