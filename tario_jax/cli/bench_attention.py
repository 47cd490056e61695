"""tario bench attention."""

import argparse

from tario_jax.cli.options import at_least_one, finish, say
from tario_jax.config import InputError

SUMMARY = "attention, forward and backward, beside its peers and a plain matmul; its memory; the balance of a ring"
EXAMPLES = """
    tario bench attention --devices=8 --tokens=8192
    tario bench attention --mask=tario --heads=8 --kv-heads=2 --dtype=bfloat16
    tario bench attention --memory=1,2,4,8,16 --tokens=2048
    tario bench attention --balance --mask=tario --devices=8 --tokens=65536 --block=128
"""
_UNREAD = {"balance": ("memory", "heads", "kv_heads", "width", "dtype", "rounds", "leave_out"),
           "memory": ("devices", "rounds", "leave_out")}  # fmt: skip
"""Flags that have no effect, by the way to ask."""


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokens", type=at_least_one, default=8192, help="that are seen; with --memory, a device (8192)"
    )
    parser.add_argument("--mask", default="causal", help="causal, full, packed (documents of 2k to 8k tokens), tario "
                        "(tiles of H&E and bins, written in random order), tario_local (the same in a local "
                        "layer) (causal)")  # fmt: skip
    parser.add_argument("--heads", type=at_least_one, help="(2)")
    parser.add_argument("--kv-heads", type=at_least_one, help="(as many as heads)")
    parser.add_argument("--width", type=at_least_one, help="of a head (64)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="(float32)")
    parser.add_argument("--block", type=at_least_one, default=256, help="tokens of a block in plain XLA (256)")
    parser.add_argument("--devices", type=at_least_one, help="along context; on a CPU they are virtual (1)")
    parser.add_argument("--rounds", type=at_least_one, help="all take turns; medians are told (5)")
    parser.add_argument("--leave-out", action="append", metavar="WAY",
                        help="not run, e.g. blockwise: slow on a GPU; may be given again")  # fmt: skip
    parser.add_argument(
        "--memory", type=_counts, metavar="N,N,…", help="compile rings of so many devices: MiB a device"
    )
    parser.add_argument("--balance", action="store_true", help="count the pairs that a ring computes; nothing is timed")
    parser.set_defaults(config=None, reads_no_config=True)


def run(options: argparse.Namespace) -> int:
    import jax

    _refuse_unread(options)
    devices, heads = options.devices or 1, options.heads or 2
    if not options.balance:
        jax.config.update("jax_num_cpu_devices", max([devices, *(options.memory or ())]))
    from tario_jax.bench.attention import Shape, bench_attention, bench_memory
    from tario_jax.bench.sequences import bench_balance

    shape = Shape(options.tokens, heads, options.kv_heads or heads, options.width or 64, options.dtype or "float32",
                  options.block)  # fmt: skip
    if options.balance:
        result = bench_balance(options.mask, options.tokens, devices, options.block)
    elif options.memory:
        result = bench_memory(shape, options.mask, options.memory, say)
    else:
        result = bench_attention(shape, options.mask, devices, options.rounds or 5, tuple(options.leave_out or ()), say)
    return finish(options, result["table"], result)


def _refuse_unread(options: argparse.Namespace) -> None:
    """A flag that the way chosen does not read would do nothing, silently."""
    way = "balance" if options.balance else "memory" if options.memory else None
    for name in _UNREAD.get(way, ()):
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')}: --{way} does not read it; leave one of them out")


def _counts(text: str) -> list[int]:
    return [at_least_one(part) for part in text.split(",")]
