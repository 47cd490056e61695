"""tario simulate: virtual patients."""

import argparse
import dataclasses
from pathlib import Path

from tario_jax.cli.options import config_flags, config_of, describe_corpus, finish, new_corpus, say
from tario_jax.config import InputError, SourceConfig

SUMMARY = "virtual patients into a corpus"
EXAMPLES = """
    tario simulate --out=corpora/virtual --patients=93 --validation=7 --held-out=30
    tario simulate --config=configs/quickstart.py --workdir=runs/quickstart --config.source.seed=1
    tario simulate --out=corpora/small --patients=6 --validation=3 --held-out=3 --section-um=288
"""
GROUPS_READ = ("source",)


def flags(parser: argparse.ArgumentParser) -> None:
    defaults = SourceConfig()
    config_flags(parser, required=False)
    parser.add_argument("--out", type=Path, help="folder of the corpus; WORKDIR/corpus by default")
    parser.add_argument("--patients", type=int, help=f"for training ({defaults.train_patients})")
    parser.add_argument("--validation", type=int, help=f"({defaults.validation_patients})")
    parser.add_argument("--held-out", type=int, help=f"({defaults.held_out_patients})")
    parser.add_argument("--section-um", type=float, help=f"side of a section ({defaults.section_um:g})")
    parser.add_argument("--seed", type=int, help=f"of the cohort ({defaults.seed})")
    parser.add_argument("--workers", type=int, help=f"processes ({defaults.workers})")


def run(options: argparse.Namespace) -> int:
    from tario_jax.virtual.cohort import simulate_cohort

    source = SourceConfig() if options.config is None else config_of(options).source
    if source.kind != "virtual":
        raise InputError(
            f"--config={options.config}: its source is {source.kind!r}; 'tario simulate' makes virtual ones"
        )
    given = {
        "train_patients": options.patients, "validation_patients": options.validation,
        "held_out_patients": options.held_out, "section_um": options.section_um, "seed": options.seed,
        "workers": options.workers,
    }  # fmt: skip
    source = dataclasses.replace(source, **{name: value for name, value in given.items() if value is not None})
    return finish(options, *describe_corpus(simulate_cohort(source, new_corpus(options), say)))
