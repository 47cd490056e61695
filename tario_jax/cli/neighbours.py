"""tario neighbours: the patients that a patient, or a slide, is most like."""

import argparse
from pathlib import Path
from typing import Any

from tario_jax.cli.options import at_least_one, finish
from tario_jax.config import InputError

SUMMARY = "the patients that a patient or a slide is most like, with what is known of them; no advice on a treatment"
EXAMPLES = """
    tario neighbours runs/quickstart.embeddings --patient=vh00000
    tario neighbours runs/quickstart.embeddings --patient=vh00000 --measured --number=10
    tario neighbours lung.embeddings --slide=slide.maps --corpus=corpora/lung --columns=diagnosis,response
    tario neighbours lung.embeddings --slide=slide.maps --genes=EGFR,CD274
"""
GROUPS_READ = ()


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("embeddings", type=Path, metavar="NAME.embeddings", help="that 'tario embed' wrote")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--patient", help="one of them")
    who.add_argument("--slide", type=Path, metavar="NAME.maps", help="a slide that the same model predicted")
    parser.add_argument("--measured", action="store_true", help="by what was measured of --patient")
    parser.add_argument("--number", type=at_least_one, default=5, metavar="N", help="of neighbours (5)")
    parser.add_argument("--components", type=at_least_one, default=50, metavar="N", help="of the space, at most (50)")
    parser.add_argument("--genes", metavar="SYMBOL,…", help="where they stand within the cohort")
    parser.add_argument("--corpus", metavar="PLACE", help="whose table of patients has --columns")
    parser.add_argument("--columns", metavar="NAME,…", help="of that table, beside the neighbours")


def run(options: argparse.Namespace) -> int:
    if (options.corpus is None) != (options.columns is None):
        raise InputError("--corpus and --columns: where the table of patients is, and what of it is told; give both")
    if options.measured and options.patient is None:
        raise InputError("--measured: goes with --patient; leave it out")
    from tario_jax.evaluate.patients.neighbours import NO_ADVICE, neighbours, query_of_patient, query_of_slide
    from tario_jax.evaluate.patients.store import EmbeddingStore
    from tario_jax.evaluate.patients.vectors import MEASURED, PREDICTED

    store = EmbeddingStore(options.embeddings)
    columns = _columns(options)
    if options.patient is not None:
        query = query_of_patient(store, options.patient, MEASURED if options.measured else PREDICTED)
    else:
        query = query_of_slide(store, options.slide)
    genes = tuple(filter(None, (options.genes or "").split(",")))
    found = neighbours(store, query, options.number, components=options.components, genes=genes)
    rows = [{"patient": patient, "cohort": cohort, "distance": round(float(distance), 3)} | columns(patient)
            for patient, cohort, distance in
            zip(found.patient_n, found.cohort_n, found.distance_n, strict=True)]  # fmt: skip
    result: dict[str, Any] = {
        "query": query.name, "kind": query.kind, "neighbours": rows, "unusual": found.unusual,
        "percentiles": found.percentile, "of_cohort": found.of_cohort, "trained_on": store.about["trained_on"],
        "banner": query.banner, "note": NO_ADVICE,
    }  # fmt: skip
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [*("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells),
             *filter(None, [query.banner]),
             f"{found.unusual:.0%} of the patients are nearer to their own nearest than {query.name} is to its",
             *(f"{gene}: above {share:.0%} of the patients of {found.of_cohort}"
               for gene, share in found.percentile.items()), NO_ADVICE]  # fmt: skip
    return finish(options, "\n".join(line.rstrip() for line in lines), result)


def _columns(options: argparse.Namespace):
    """patient -> what the table says of it."""
    if options.corpus is None:
        return lambda patient: {}
    from tario_jax.corpus.read import Corpus

    table = {row["patient"]: row for row in Corpus.open(options.corpus).patients}
    names = tuple(filter(None, options.columns.split(",")))
    known = sorted({name for row in table.values() for name in row})
    if missing := [name for name in names if name not in known]:
        raise InputError(f"--columns={missing[0]}: is no column of the table of patients; it has {', '.join(known)}")
    return lambda patient: {name: table.get(patient, {}).get(name, "") for name in names}
