"""Time and memory of attention, forward and backward, beside its peers and a plain matmul, in one process.

All take turns on the same devices. FLOPs are counted from the pairs of tokens that the mask allows: 4 D a pair and head
forward, 10 D backward (its five products; scores made again are not counted), so that work on masked pairs shows as a
lower rate.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tario_jax.bench.sequences import Sequence, allowed_pairs, make_sequence
from tario_jax.config import InputError
from tario_jax.ops.attention import attention, choose_strategy
from tario_jax.ops.products import precision

_MIB = 1 << 20
_DENSE_LIMIT = 3 << 30  # bytes that the scores of a dense peer may take, forward and backward, in one memory
_LEAST_SECONDS = 0.02  # of a measurement: short programs are called again and again within it


class Shape(NamedTuple):
    """Sizes of what is attended: tokens that are seen, and of a head."""

    tokens: int
    heads: int
    kv_heads: int
    width: int
    dtype: str
    block: int


class _Peer(NamedTuple):
    name: str
    function: Callable | None  # (q, k, v, visibility) -> out
    dealt: bool = True  # whether its tokens lie in stripes
    why: str = ""  # it is not run


def bench_attention(shape: Shape, mask: str, devices: int, rounds: int, leave_out: tuple[str, ...] = (),
                    say: Callable[[str], None] = print) -> dict[str, Any]:  # fmt: skip
    """Seconds, temporary MiB and counted TFLOP/s of each way, medians over rounds. JSON-like, with a "table".

    devices: the first of those here, along the axis context; leave_out: ways that are not to be run. Raises
    `InputError` where there are not so many devices, and for a way that there is not.
    """
    mesh = _mesh(devices)
    dealt = make_sequence(mask, shape.tokens, devices, shape.block)
    # of as many tokens: those of a window of tissue are rounded to whole tiles for every device
    natural = make_sequence(mask, dealt.keys.segment_BxS.shape[1], 1, shape.block)
    sequences = {True: dealt, False: natural}
    pairs = allowed_pairs(sequences[True]) * shape.heads
    flops = {"forward": 4 * shape.width * pairs, "backward": 10 * shape.width * pairs}
    programs, rows, left_out = {}, {}, {}
    with jax.set_mesh(mesh):
        arrays = _arrays(shape, sequences[True], mesh)
        peers = _peers(shape, mask, devices, sequences[False])
        for name in set(leave_out) - {peer.name for peer in peers}:
            raise InputError(f"--leave-out={name}: expected one of {' | '.join(peer.name for peer in peers)}")
        for peer in peers:
            if peer.name in leave_out:
                continue
            if peer.function is None:
                left_out[peer.name] = peer.why
                continue
            say(f"bench: compiling {peer.name}")
            placed = _placed(sequences[peer.dealt], mesh)
            programs[peer.name], rows[peer.name] = _compiled(peer.function, arrays, placed)
        chosen = str(choose_strategy(*arrays[:2], block=shape.block))
    if not rows:
        raise InputError(f"--leave-out={' '.join(leave_out)}: nothing is left to run; expected fewer")
    programs["matmul"], matmul_flops = _matmul(shape.dtype)
    seconds = _by_turns(programs, rounds, say)
    matmul_rate = matmul_flops / statistics.median(seconds["matmul"]["forward"])
    for name, row in rows.items():
        for part in ("forward", "backward"):
            row[f"{part}_seconds"] = statistics.median(seconds[name][part])
            row[f"{part}_tflops"] = 1e-12 * flops[part] / row[f"{part}_seconds"]
        row["seconds"] = row["forward_seconds"] + row["backward_seconds"]
        row["share_of_matmul"] = sum(flops.values()) / row["seconds"] / matmul_rate
    result: dict[str, Any] = {
        "device": jax.devices()[0].device_kind, "devices": devices, "mask": mask, **shape._asdict(),
        "queries": int(sequences[True].queries.segment_BxS.shape[1]), "allowed_pairs": pairs // shape.heads,
        "matmul_tflops": 1e-12 * matmul_rate, "ways": rows, "left_out": left_out,
        "chosen": chosen,
    }  # fmt: skip
    first = next(iter(rows))
    result["beside"] = {
        name: {
            part: statistics.median(a / b for a, b in zip(seconds[first][part], seconds[name][part], strict=True))
            for part in ("forward", "backward")
        } | {"both": rows[first]["seconds"] / rows[name]["seconds"]}
        for name in rows
    }  # fmt: skip
    result["table"] = _table(result, first)
    return result


def bench_memory(shape: Shape, mask: str, ranks: list[int], say: Callable[[str], None] = print) -> dict[str, Any]:
    """Bytes a device of forward with backward, where tokens and devices grow together: `shape.tokens` a device.

    By `memory_analysis` of the compiled programs; nothing is run.
    """
    rows = {}
    for devices in ranks:
        mesh = _mesh(devices)
        sequence = make_sequence(mask, shape.tokens * devices, devices, shape.block)
        with jax.set_mesh(mesh):
            arrays = _arrays(shape, sequence, mesh, abstract=True)
            function = functools.partial(_attention, strategy="ring", block=shape.block)
            say(f"bench: compiling a ring of {devices}")
            program = _both.lower(function, *arrays, _placed(sequence, mesh, abstract=True)).compile()
        memory = program.memory_analysis()
        rows[str(devices)] = {
            "temporary_mib": memory.temp_size_in_bytes / _MIB,
            "arguments_mib": memory.argument_size_in_bytes / _MIB,
            "outputs_mib": memory.output_size_in_bytes / _MIB,
        }
        rows[str(devices)]["total_mib"] = sum(rows[str(devices)].values())
    result = {"mask": mask, **shape._asdict(), "ring_of": rows}
    lines = [f"{shape.tokens:,} tokens a device, {shape.heads} heads of {shape.width}, {shape.dtype}: MiB a device",
             f"{'devices':>8}{'temporary':>12}{'arguments':>12}{'outputs':>10}{'total':>10}"]  # fmt: skip
    for devices, row in rows.items():
        lines.append(f"{devices:>8}" + "".join(f"{row[f'{part}_mib']:>{wide}.1f}" for part, wide in
                     (("temporary", 12), ("arguments", 12), ("outputs", 10), ("total", 10))))  # fmt: skip
    return result | {"table": "\n".join(lines)}


def _mesh(devices: int) -> Mesh:
    found = jax.devices()
    if len(found) < devices:
        raise InputError(
            f"--devices={devices}: there are {len(found)} of {found[0].device_kind}; expected at most that"
        )
    return Mesh(np.array(found[:devices]), ("context",), axis_types=(AxisType.Auto,))


def _attention(q, k, v, visibility: Sequence, *, strategy: str, block: int):
    return attention(q, k, v, *visibility, strategy=strategy, block=block)


def _peers(shape: Shape, mask: str, devices: int, natural: Sequence) -> list[_Peer]:
    """Ours first, then what it is held against."""
    ours = functools.partial(_attention, block=shape.block)
    if devices > 1:
        ways = [_Peer(name, functools.partial(ours, strategy=name)) for name in ("ring", "all_gather")]
    else:
        ways = [_Peer("blockwise", functools.partial(ours, strategy="blockwise"))]
        try:
            choose_strategy(*_shapes(shape, natural)[:2], strategy="pallas")
            ways.insert(0, _Peer("pallas", functools.partial(ours, strategy="pallas")))
        except InputError as missing:
            ways.append(_Peer("pallas", None, why=str(missing)))
    (sq, sk) = (x[0].shape[1] for x in natural)
    platform = jax.devices()[0].platform
    scores = 4 * shape.heads * sq * sk // (1 if platform == "cpu" else devices)  # virtual devices share one memory
    dense = [
        _Peer("dense XLA", functools.partial(ours, strategy="reference")),
        _Peer("jax.nn XLA", functools.partial(_jax_nn, mask=mask, implementation="xla"), dealt=False),
    ]
    if 2 * scores > _DENSE_LIMIT:
        why = f"its scores would take {2 * scores / (1 << 30):.0f} GiB, forward and backward"
        dense = [_Peer(peer.name, None, why=why) for peer in dense]
    if platform == "gpu" and shape.dtype == "bfloat16" and devices == 1:
        if mask in ("full", "causal"):
            cudnn = functools.partial(_jax_nn, mask=mask, implementation="cudnn")
            dense.append(_Peer("jax.nn cudnn", cudnn, dealt=False))
        else:
            dense.append(_Peer("jax.nn cudnn", None, why=f"it has no mask like {mask}"))
    return ways + dense


def _jax_nn(q, k, v, visibility: Sequence, *, mask: str, implementation: str):
    dense = None
    if mask not in ("full", "causal"):
        (of_query, read), (of_key, write) = visibility
        dense = (of_query[:, None, :, None] == of_key[:, None, None]) & (write[:, None, None] <= read[:, None, :, None])
    return jax.nn.dot_product_attention(q, k, v, mask=dense, is_causal=mask == "causal", implementation=implementation)


def _shapes(shape: Shape, sequence: Sequence) -> list[jax.ShapeDtypeStruct]:
    """q, k, v and the cotangent of the output."""
    (sq, sk) = (x[0].shape[1] for x in sequence)
    of_q, of_k = (1, sq, shape.heads, shape.width), (1, sk, shape.kv_heads, shape.width)
    return [jax.ShapeDtypeStruct(size, shape.dtype) for size in (of_q, of_k, of_k, of_q)]


def _arrays(shape: Shape, sequence: Sequence, mesh: Mesh, abstract: bool = False) -> list:
    by_token = NamedSharding(mesh, PartitionSpec(None, "context"))
    shapes = _shapes(shape, sequence)
    if abstract:
        return [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=by_token) for x in shapes]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.device_put(jax.random.normal(key, x.shape, x.dtype), by_token)
            for key, x in zip(keys, shapes, strict=True)]  # fmt: skip


def _placed(sequence: Sequence, mesh: Mesh, abstract: bool = False) -> Sequence:
    by_token = NamedSharding(mesh, PartitionSpec(None, "context"))
    if abstract:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=by_token), sequence)
    return jax.device_put(sequence, by_token)


@functools.partial(jax.jit, static_argnums=0)
def _both(function, q, k, v, d_out, visibility):
    out, pull = jax.vjp(lambda *qkv: function(*qkv, visibility), q, k, v)
    return out, pull(d_out)


@functools.partial(jax.jit, static_argnums=0)
def _with_pull(function, q, k, v, visibility):
    return jax.vjp(lambda *qkv: function(*qkv, visibility), q, k, v)


@jax.jit
def _pulled(pull, d_out):
    return pull(d_out)


def _compiled(function, arrays, visibility):
    """Calls of the forward and of the backward pass, and the memory of both in one program."""
    q, k, v, d_out = arrays
    both = _both.lower(function, q, k, v, d_out, visibility).compile()
    _, pull = _with_pull(function, q, k, v, visibility)
    forward = jax.jit(function).lower(q, k, v, visibility).compile()
    calls = {"forward": lambda: forward(q, k, v, visibility), "backward": lambda: _pulled(pull, d_out)}
    return calls, {"temporary_mib": both.memory_analysis().temp_size_in_bytes / _MIB}


def _matmul(dtype: str):
    """A plain product of squares on the first device, as large as the device needs to show its rate."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    rng = np.random.default_rng(0)
    a, b = (jax.device_put(rng.normal(size=(side, side)).astype(dtype), jax.devices()[0]) for _ in range(2))
    product = jax.jit(functools.partial(jnp.matmul, precision=precision(a, b))).lower(a, b).compile()
    return {"forward": lambda: product(a, b)}, 2 * side**3


def _by_turns(programs: dict[str, dict[str, Callable]], rounds: int, say) -> dict[str, dict[str, list[float]]]:
    """Seconds of every call in every round; the first, unmeasured round says how often each must be repeated."""
    repeats = {}
    for name, calls in programs.items():
        for part, call in calls.items():
            repeats[name, part] = max(1, round(_LEAST_SECONDS / _timed(call, 1)))
    seconds = {name: {part: [] for part in calls} for name, calls in programs.items()}
    for number in range(rounds):
        for name in list(programs)[:: 1 if number % 2 else -1]:
            for part, call in programs[name].items():
                seconds[name][part].append(_timed(call, repeats[name, part]))
        said = "  ".join(
            f"{name} {sum(x[-1] for x in parts.values()) * 1e3:,.1f} ms" for name, parts in seconds.items()
        )
        say(f"bench: round {number + 1}/{rounds}  {said}")
    return seconds


def _timed(call: Callable, repeats: int) -> float:
    """Seconds a call, after one that is not counted: it finds memory as another program left it."""
    jax.block_until_ready(call())
    began = time.perf_counter()
    if jax.default_backend() == "cpu":  # virtual devices share a few threads: calls under way at once can take them all
        for _ in range(repeats):
            jax.block_until_ready(call())
    else:
        jax.block_until_ready([call() for _ in range(repeats)])
    return (time.perf_counter() - began) / repeats


def _table(result: dict[str, Any], first: str) -> str:
    lines = [
        f"{result['mask']}, {result['tokens']:,} tokens ({result['queries']:,} that look), {result['heads']} heads on "
        f"{result['kv_heads']} key heads of {result['width']}, {result['dtype']}, {result['devices']} x "
        f"{result['device']}, blocks of {result['block']}",
        f"a plain matmul: {result['matmul_tflops']:.3g} TFLOP/s; attention's FLOPs are counted from allowed pairs",
        f"auto chooses: {result['chosen']}",
        f"{'':<15}{'forward ms':>12}{'TFLOP/s':>10}{'backward ms':>13}{'TFLOP/s':>10}{'of matmul':>11}"
        f"{'temporary MiB':>15}{f'{first} takes':>18}",
    ]
    for name, row in result["ways"].items():
        lines.append(
            f"{name:<15}{row['forward_seconds'] * 1e3:>12,.2f}{row['forward_tflops']:>10.3g}"
            f"{row['backward_seconds'] * 1e3:>13,.2f}{row['backward_tflops']:>10.3g}{row['share_of_matmul']:>11.2f}"
            f"{row['temporary_mib']:>15,.1f}{result['beside'][name]['both']:>12.2f} times"
        )
    lines += [f"{name}: not run: {why}" for name, why in result["left_out"].items()]
    return "\n".join(lines)
