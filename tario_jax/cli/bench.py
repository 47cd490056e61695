"""tario bench: a figure beside its peers, from one run.

A bench is a module of this package with SUMMARY, EXAMPLES, `flags(parser)` and `run(options) -> status`, as a job is.
"""

import argparse
import textwrap

from tario_jax.cli import bench_attention, bench_likelihood, bench_loader, bench_step, bench_width
from tario_jax.cli.options import add_command

BENCHES = {"loader": bench_loader, "attention": bench_attention, "likelihood": bench_likelihood, "step": bench_step,
           "width": bench_width}  # fmt: skip
SUMMARY = "figures beside their peers, measured in one run: " + ", ".join(BENCHES)
EXAMPLES = "\n".join(textwrap.dedent(bench.EXAMPLES).strip() for bench in BENCHES.values())
GROUPS_READ = None  # all of a config


def flags(parser: argparse.ArgumentParser) -> None:
    benches = parser.add_subparsers(dest="what", required=True, metavar="WHAT", help="what is measured")
    for name, bench in BENCHES.items():
        add_command(benches, name, bench, json=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    return BENCHES[options.what].run(options)
