"""tario bench step."""

import argparse
import os
from pathlib import Path

from tario_jax.cli.options import at_least_one, config_flags, config_of, finish, say
from tario_jax.config_files import override

SUMMARY = "the training step beside a plain product and the same model in PyTorch; MFU; where its time goes"
EXAMPLES = """
    tario bench step --config=configs/tario2_50m.py --config.data.window_um=432 --rows=1
    tario bench step --config=configs/tario2_200m.py --rows=8 --trace=traces/200m --json=step.json
    tario bench step --config=configs/tario2_10m.py --config.data.window_um=288 --rows=2 --leave-out=torch
"""


def flags(parser: argparse.ArgumentParser) -> None:
    config_flags(parser, workdir=False)
    parser.add_argument("--rows", type=at_least_one, help="of the batch; those of the config by default")
    parser.add_argument("--genes", type=at_least_one, default=18963, help="of the panel (18963)")
    parser.add_argument("--rounds", type=at_least_one, default=5, help="all take turns; medians are told (5)")
    parser.add_argument("--steps", type=at_least_one, default=1, help="of a round (1)")
    parser.add_argument("--leave-out", action="append", default=[], metavar="PEER", help="not run: torch")
    parser.add_argument("--trace", type=Path, metavar="DIR", help="keep the profiler's trace of a step there")


def run(options: argparse.Namespace) -> int:
    # a peer shares the accelerator's memory: JAX would take three quarters of it at once
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # a stored program may have lost the names of its parts
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    from tario_jax.bench.step import bench_step, check_left_out

    config = config_of(options)
    config.refuse_he_alone("tario bench step")
    if options.rows:
        config = override(config, {"data.rows": str(options.rows)})
    result = bench_step(config, genes=options.genes, rounds=options.rounds, steps=options.steps,
                        leave_out=check_left_out(options.leave_out), trace=options.trace, say=say)  # fmt: skip
    return finish(options, result["table"], result)
