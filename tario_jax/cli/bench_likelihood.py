"""tario bench likelihood."""

import argparse

from tario_jax.cli.options import at_least_one, finish, say

SUMMARY = "the count likelihood, forward and gradients, beside optax on materialised logits"
EXAMPLES = """
    tario bench likelihood
    tario bench likelihood --tokens=1024 --genes=1000 --width=64 --rounds=9
    tario bench likelihood --chunk=64 --gene-chunk=4096 --json=likelihood.json
"""


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=at_least_one, default=4096, help="bins of one row (4096)")
    parser.add_argument("--genes", type=at_least_one, default=18963, help="padded to a multiple of 1,024 (18963)")
    parser.add_argument("--width", type=at_least_one, default=512, help="of the gene table (512)")
    parser.add_argument("--chunk", type=at_least_one, help="bins whose logits exist at once (by a budget of memory)")
    parser.add_argument("--gene-chunk", type=at_least_one, help="genes of them (by the same budget, mostly all)")
    parser.add_argument("--rounds", type=at_least_one, default=7, help="the two take turns; medians are told (7)")
    parser.set_defaults(config=None, reads_no_config=True)


def run(options: argparse.Namespace) -> int:
    from tario_jax.bench.likelihood import bench_likelihood

    result = bench_likelihood(
        tokens=options.tokens, genes=options.genes, width=options.width, chunk=options.chunk or 0,
        gene_chunk=options.gene_chunk or 0, rounds=options.rounds, say=say,
    )  # fmt: skip
    return finish(options, result["table"], result)
