"""tario neighbours: the patients that a patient, or a slide, is most like."""

import argparse
from pathlib import Path

from tario_jax.cli.atlas import at_least_two, names, table_flag
from tario_jax.cli.options import at_least_one, finish, need_eval, say
from tario_jax.config import InputError

SUMMARY = "the patients that a patient or a slide is most like, with what is known of them; no advice on a treatment"
EXAMPLES = """
    tario neighbours runs/quickstart.embeddings --patient=vh00000
    tario neighbours runs/quickstart.embeddings --patient=vh00000 --measured --number=10
    tario neighbours lung.embeddings --slide=slide.maps --corpus=corpora/lung --columns=diagnosis,response
    tario neighbours lung.embeddings --slide=slide.maps --table=clinical.csv --columns=EGFR
    tario neighbours lung.embeddings --slide=slide.maps --genes=EGFR,CD274 --signatures=cell-types
    tario neighbours lung.embeddings --patient=L17 --corpus=corpora/lung --differ=response --why --report=L17.html
"""
GROUPS_READ = ()
CELL_TYPES = "cell-types"


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("embeddings", type=Path, metavar="NAME.embeddings", help="that 'tario embed' wrote")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--patient", help="one of them")
    who.add_argument("--slide", type=Path, metavar="NAME.maps", help="a slide that the same model predicted")
    parser.add_argument("--measured", action="store_true", help="by what was measured of --patient")
    parser.add_argument("--among", choices=("predicted", "measured", "both"), default="predicted",
                        help="kind of the neighbours (predicted)")  # fmt: skip
    parser.add_argument("--number", type=at_least_one, default=5, metavar="N", help="of neighbours (5)")
    parser.add_argument("--genes", type=names, default=(), metavar="SYMBOL,…", help="where they stand in the cohort")
    parser.add_argument("--signatures", metavar="FILE.gmt", help=f"gene sets, where they stand; or {CELL_TYPES}")
    parser.add_argument("--corpus", action="append", default=[], metavar="PLACE",
                        help="whose table of patients has the columns; may be given several times")  # fmt: skip
    table_flag(parser)
    parser.add_argument("--columns", type=names, default=(), metavar="NAME,…",
                        help="of that table, beside the neighbours, and counted among the nearest")  # fmt: skip
    parser.add_argument("--differ", default="", metavar="COLUMN", help="how patients with it differ from those without")
    parser.add_argument("--around", type=at_least_one, default=50, metavar="N",
                        help="nearest of the cohort that outcomes are counted among (50)")  # fmt: skip
    parser.add_argument("--why", action="store_true", help="the genes, and regions, in which they are alike")
    parser.add_argument("--components", type=at_least_two, default=50, metavar="N", help="of a new space, at most (50)")
    parser.add_argument("--fit-again", action="store_true", help="a new space of all patients; else that which is kept")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="all of it as a page, with the map")


def run(options: argparse.Namespace) -> int:
    wanted = (*options.columns, *((options.differ,) if options.differ else ()))
    if bool(options.corpus or options.table) != bool(wanted):
        raise InputError("--corpus or --table goes with --columns or --differ: where the table of patients is, and "
                         "what of it is told; give both")  # fmt: skip
    if options.measured and options.patient is None:
        raise InputError("--measured: goes with --patient; leave it out")
    if options.report is not None and options.report.suffix != ".html":
        raise InputError(f"--report={options.report}: expected a name that ends in .html")
    need_eval()
    from tario_jax.corpus.read import Corpus
    from tario_jax.evaluate.patients.frame_job import Asked, query_of, text_of, told_of
    from tario_jax.evaluate.patients.index import index_of
    from tario_jax.evaluate.patients.store import EmbeddingStore
    from tario_jax.evaluate.patients.tables import columns_of, table_of_file
    from tario_jax.evaluate.patients.vectors import MEASURED, PREDICTED
    from tario_jax.predict.signatures import cell_types, read_gmt

    store = EmbeddingStore(options.embeddings)
    index = index_of(store, fit_again=options.fit_again, components=options.components, say=say)
    tables = [*(Corpus.open(place) for place in options.corpus), *table_of_file(options.table, store, say)]
    query = query_of(store, index, patient=options.patient, slide=options.slide, measured=options.measured)
    signatures = ()
    if options.signatures is not None:
        signatures = cell_types(store.panel) if options.signatures == CELL_TYPES else read_gmt(
            Path(options.signatures), store.panel)  # fmt: skip
    among = (PREDICTED, MEASURED) if options.among == "both" else (options.among,)
    asked = Asked(options.number, among, options.genes, tuple(signatures), options.columns, options.differ,
                  options.around, options.why)  # fmt: skip
    result = told_of(store, index, tables, query, asked)
    text = text_of(result)
    if options.report is not None:
        from tario_jax.evaluate.patients.frame_report import write_frame

        coloured = columns_of(tables, ("cohort", *wanted), index.name_P.tolist(), cohort_P=index.cohort_P)
        text += f"\n{write_frame(options.report, index, query, result, coloured)}"
    return finish(options, text, result)
