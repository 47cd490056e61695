"""tario scaling: what more patients, parameters, context, resolution or compute bring."""

import argparse
from pathlib import Path

from tario_jax.cli.options import at_least_one, finish, say

SUMMARY = (
    "runs of a sweep: loss and r against patients, parameters, context, resolution, compute; laws; genes that gain"
)
EXAMPLES = """
    tario scaling sweeps/patients --out=reports/patients
    tario scaling runs/93_s0 runs/93_s1 runs/2545_s0 runs/2545_s1 --out=reports/article --json=article.json
    tario scaling sweeps/patients sweeps/parameters --out=reports/joint --top-genes=1000
    tario scaling runs/a runs/b runs/c --between runs/a runs/c --out=reports/two
"""
GROUPS_READ = ()


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("places", nargs="+", type=Path, metavar="WORKDIR",
                        help="of runs that are done and evaluated, or folders of such workdirs")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder of scaling.html, scaling.json and figures")
    parser.add_argument("--top-genes", type=at_least_one, metavar="N", help="r is a mean over so many genes of highest "
                        "Moran's I; by default as many as evaluate.top_genes of the runs")  # fmt: skip
    parser.add_argument("--samples", type=_samples, default=1000, metavar="N",
                        help="of patients, drawn; at least 20 (1000)")  # fmt: skip
    parser.add_argument("--between", nargs=2, metavar="RUN",
                        help="compare these two gene by gene, each with its replicates")  # fmt: skip


def _samples(text: str) -> int:
    """Of fewer, 95 % are no interval."""
    if at_least_one(text) < 20:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 20")
    return int(text)


def run(options: argparse.Namespace) -> int:
    from tario_jax.evaluate.scaling.page import study_table, write_study
    from tario_jax.evaluate.scaling.study import Options, study

    between = tuple(options.between) if options.between else None
    values = study(options.places, Options(options.top_genes, options.samples, between), say)
    page = write_study(options.out, values, f"Scaling: {', '.join(place.name for place in options.places)}")
    return finish(options, f"\n{study_table(values)}\n\nreport: {page.resolve()}", values)
