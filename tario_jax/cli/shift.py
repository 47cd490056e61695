"""tario shift: what it costs where the detections do not lie where the H&E shows them."""

import argparse

from tario_jax.cli.finer import score, scored_flags

SUMMARY = "how r falls when the detections are moved by 2, 9, 18 and 36 µm: what registration costs"
EXAMPLES = """
    tario shift --workdir=runs/quickstart --out=reports/shift
    tario shift --workdir=runs/lung --corpus=corpora/lung --out=reports/shift --patients=4 --json=shift.json
"""
GROUPS_READ = ("source", "evaluate.overlap", "evaluate.min_total", "evaluate.top_genes",
               "evaluate.bootstraps", "evaluate.seed")  # fmt: skip


def flags(parser: argparse.ArgumentParser) -> None:
    scored_flags(parser)


def run(options: argparse.Namespace) -> int:
    from tario_jax.evaluate.finer.figures import draw_shift
    from tario_jax.evaluate.finer.registration_cost import measure_registration_cost

    return score(options, "shift", measure_registration_cost, draw_shift)
