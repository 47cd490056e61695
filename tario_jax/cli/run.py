"""tario run: the main job."""

import argparse

from tario_jax.cli.options import config_flags, config_of, finish, say

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
    from tario_jax.evaluate.job import headline_table
    from tario_jax.evaluate.main_job import run as run_main_job

    evaluation = run_main_job(config, options.workdir, say)
    report = evaluation.report
    page = (options.workdir / "report.html").resolve()
    return finish(options, f"\n{headline_table(report)}\n\nreport: {page}", report)
