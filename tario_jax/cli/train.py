"""tario train: a model on a corpus."""

import argparse
import os

from tario_jax.cli.options import at_least_one, config_flags, config_of, finish, say, say_nothing
from tario_jax.config_files import expand

SUMMARY = "trains a model on a corpus; run again, it continues"
EXAMPLES = """
    tario train --config=configs/quickstart.py --corpus=corpora/virtual --workdir=runs/a
    tario train --config=configs/quickstart.py --corpus=corpora/virtual --workdir=runs/b --config.data.bin_um=18
    tario train --config=configs/quickstart.py --corpus=corpora/slides --workdir=runs/he --config.train.learns=he
    srun tario train --config=configs/tario2_200m.py --corpus=gs://tissue/corpus --workdir=runs/c
    tario train --config=configs/quickstart.py --workdir=runs/d --coordinator=node01:12321 --processes=2 --process=0
    tario train --config=configs/quickstart.py --workdir=runs/d --coordinator=node01:12321 --processes=2 --process=1
"""
GROUPS_READ = None  # all of a config


def flags(parser: argparse.ArgumentParser) -> None:
    config_flags(parser)
    parser.add_argument("--corpus", metavar="PLACE",
                        help="sealed corpus (a folder, gs://… or s3://…); by default the config's")  # fmt: skip
    several = parser.add_argument_group(
        "several processes", "They are one run, and share the disk of workdir and corpus. Slurm, GKE and Cloud TPU are "
        "found; elsewhere say it to each:",
    )  # fmt: skip
    several.add_argument("--coordinator", metavar="HOST:PORT",
                         help="where process 0 is reached; under Slurm, GKE and Cloud TPU it is known")  # fmt: skip
    several.add_argument("--processes", type=at_least_one, metavar="N",
                         help="so many in all; 1: alone, whatever is found")  # fmt: skip
    several.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
    several.add_argument("--start-timeout-s", type=at_least_one, default=300, metavar="S",
                         help="how long to wait for the others (300)")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    config = config_of(options)
    from tario_jax.corpus.read import Corpus
    from tario_jax.evaluate.main_job import corpus_of_run
    from tario_jax.parallel.clusters import find_cluster, why_alone
    from tario_jax.parallel.hosts import is_first, join, tpu_metadata  # imports jax, which sets what is looked at

    place = options.corpus or (expand(config.source.path) if config.source.kind == "corpus" else None)

    def corpus() -> Corpus:
        return Corpus.open(place) if place is not None else corpus_of_run(config.source, options.workdir, say)

    cluster = find_cluster(os.environ, coordinator=options.coordinator, processes=options.processes,
                           process=options.process, metadata=tpu_metadata)  # fmt: skip
    if cluster is None:
        if (advice := why_alone(os.environ)) is not None:
            say(advice)
        found = corpus()
    else:
        # process 0 makes the corpus while the others wait; then all open it
        found = join(cluster, options.start_timeout_s, say, corpus)
        found = found or Corpus.open(options.workdir / "corpus" if place is None else place)
    from tario_jax.train.loop import train
    from tario_jax.train.metrics import JsonLines

    train(config, found, options.workdir, say if is_first() else say_nothing)
    if not is_first():
        return 0
    lines = JsonLines(options.workdir / "metrics.jsonl", say).read()
    result = {"workdir": str(options.workdir), "corpus": str(found.root), "metrics": lines}
    last = next((line for line in reversed(lines) if "loss_nats_per_detection" in line), {})  # a full disk loses lines
    told = {name: value for name, value in last.items() if isinstance(value, float)}
    return finish(options, "\n".join(f"{name:<28} {value:,.4g}" for name, value in told.items()), result)
