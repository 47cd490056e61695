"""tario check: a corpus against its seals."""

import argparse
from pathlib import Path

from tario_jax.cli.options import config_flags, corpus_of, finish, say

SUMMARY = "is a corpus what its seals say: checksums, contents, units, registration"
EXAMPLES = """
    tario check corpora/xenium
    tario check --workdir=runs/quickstart
    tario check corpora/virtual --json=check.json
"""
GROUPS_READ = ("source",)


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("corpus", type=Path, nargs="?", help="WORKDIR/corpus, or the corpus of --config, by default")
    config_flags(parser, required=False)


def run(options: argparse.Namespace) -> int:
    from tario_jax.corpus.read import Corpus
    from tario_jax.sources.check import check

    found = check(Corpus.open(corpus_of(options)), say)
    finish(options, found.table(), found.to_dict())
    return 1 if found.faults else 0
