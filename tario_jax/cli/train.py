"""tario train: a model on a corpus."""

import argparse
import json

from tario_jax.cli.options import config_flags, config_of, finish, say

SUMMARY = "trains a model on a corpus; run again, it continues"
EXAMPLES = """
    tario train --config=configs/quickstart.py --corpus=corpora/virtual --workdir=runs/a
    tario train --config=configs/quickstart.py --corpus=corpora/virtual --workdir=runs/b --config.data.bin_um=18
"""
GROUPS_READ = None  # all of a config


def flags(parser: argparse.ArgumentParser) -> None:
    config_flags(parser)
    parser.add_argument("--corpus", metavar="PLACE",
                        help="sealed corpus (a folder, gs://… or s3://…); by default the config's")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    config = config_of(options)
    from tario_jax.corpus.read import Corpus

    if options.corpus is not None:
        corpus = Corpus.open(options.corpus)
    else:
        from tario_jax.evaluate.main_job import make_corpus

        corpus = make_corpus(config.source, options.workdir / "corpus", say)
    from tario_jax.train.loop import train  # jax starts only when the corpus is there

    train(config, corpus, options.workdir, say)
    lines = [json.loads(line) for line in (options.workdir / "metrics.jsonl").read_text().splitlines()]
    result = {"workdir": str(options.workdir), "corpus": str(corpus.root), "metrics": lines}
    last = next(line for line in reversed(lines) if "loss_nats_per_detection" in line)
    return finish(options, "\n".join(f"{name:<28} {value:,.4f}" for name, value in last.items()), result)
