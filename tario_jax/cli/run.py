"""tario run: the main job."""

import argparse
import os

from tario_jax.cli.options import config_flags, config_of, finish, say
from tario_jax.config import InputError

SUMMARY = "the main job: corpus, training, gene maps of held-out sections, report"
EXAMPLES = """
    tario run --config=configs/quickstart.py --workdir=runs/quickstart
    tario run --config=configs/her2st.py --workdir=runs/her2st --config.train.steps=200
"""
GROUPS_READ = None  # all of a config


def flags(parser: argparse.ArgumentParser) -> None:
    config_flags(parser)


def run(options: argparse.Namespace) -> int:
    config = config_of(options)
    from tario_jax.evaluate.job import headline_table  # imports jax, which sets what is looked at
    from tario_jax.evaluate.main_job import run as run_main_job
    from tario_jax.parallel.clusters import find_cluster
    from tario_jax.parallel.hosts import tpu_metadata

    if (cluster := find_cluster(os.environ, metadata=tpu_metadata)) is not None:
        raise InputError(
            f"run: is one process, and this is one of {len(cluster)} ({cluster.started_by}); run 'tario train' on all "
            "of them, then this on one: it continues with the maps and the report"
        )
    evaluation = run_main_job(config, options.workdir, say)
    report = evaluation.report
    page = (options.workdir / "report.html").resolve()
    return finish(options, f"\n{headline_table(report)}\n\nreport: {page}", report)
