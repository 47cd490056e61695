"""The training step: tokens and FLOPs a second, beside a plain product and the same model in PyTorch, in one process.

All take turns, on one batch of full rows. Shares are medians over the rounds of the ratio within a round, so that a
machine whose speed drifts moves both. Tokens are H&E patches, contents and queries of bins; FLOPs are counted from the
model (model/flops.py).
"""

import importlib.util
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tario_jax.bench.made_batch import made_batch
from tario_jax.bench.phases import PHASES, PhaseSeconds, trace_phases
from tario_jax.bench.rates import Sizes, matmul, measure_rates
from tario_jax.bench.training_step import training_step
from tario_jax.config import BATCH_AXES, Config, InputError
from tario_jax.model.build import model_sizes
from tario_jax.model.decoder import compute_dtype
from tario_jax.model.flops import step_flops
from tario_jax.parallel.chips import Chip, Rates, chip_of_device
from tario_jax.parallel.collectives import collectives, received_by_axis
from tario_jax.parallel.mesh import check_rows, make_mesh, traced_on
from tario_jax.tokens.batch import Batch, Layout
from tario_jax.tokens.deal import check_tiles
from tario_jax.train.aot import pod_layout
from tario_jax.train.roofline import estimate, link_seconds
from tario_jax.train.stability import PLAIN, Stability
from tario_jax.train.state import TrainState, to_devices

PEERS = ("torch",)
_GIB = 1 << 30
_BATCH_SEED = 0
_PHASE_OF_PART = {"projections and MLP": "MLP & projections", "norms, gate, rotary": "MLP & projections",
                  "attention": "attention", "gene head": "gene head & likelihood", "encoders": "encoders",
                  "optimiser": "optimiser"}  # fmt: skip
"""Where a part of the estimate (model/work.py) is traced."""


class _Ours:
    """The compiled step and its state, which each call replaces."""

    def __init__(self, config: Config, genes: int, batch: Batch, say: Callable[[str], None]):
        self.mesh = make_mesh(config.mesh)
        check_rows(self.mesh, config.data.rows, config.train.accumulate)
        check_tiles(batch.tile_BxT.shape[1], self.mesh.shape["context"])
        frozen = batch.features_BxTxPxF.shape[-1]
        self.state, step = training_step(config, genes, frozen, self.mesh)
        self.batch = to_devices(batch, self.mesh)
        say(f"bench: compiling the step of {model_sizes(config, genes, frozen)} for {len(self.mesh.devices.flat)} x "
            f"{jax.devices()[0].device_kind}")  # fmt: skip
        began = time.monotonic()
        self.program = step.lower(self.state, self.batch).compile()
        self.compile_seconds = time.monotonic() - began

    def steps(self, number: int) -> TrainState:
        for _ in range(number):
            self.state, self.metrics = self.program(self.state, self.batch)
        return jax.block_until_ready(self.state)

    def weights(self) -> tuple[dict, dict]:
        """Parameters and calibration on the host."""
        return jax.tree.map(np.asarray, (self.state.parameters, self.state.calibration))


def bench_step(config: Config, *, genes: int, rounds: int, steps: int, leave_out: tuple[str, ...] = (),
               trace: Path | None = None, say: Callable[[str], None] = print) -> dict[str, Any]:  # fmt: skip
    """Medians over rounds of `steps` steps each; JSON-like, with a "table".

    trace: folder that keeps the profiler's trace. Raises `InputError` where the config does not fit the devices.
    """
    layout = pod_layout(config, genes)
    batch = made_batch(config, layout, genes, _BATCH_SEED)
    ours = _Ours(config, genes, batch, say)
    devices = len(ours.mesh.devices.flat)
    dtype = np.dtype(traced_on(ours.mesh, compute_dtype)(config.model)).name
    left_out = {name: f"left out (--leave-out={name})" for name in leave_out}
    peer = None
    if "torch" not in left_out:
        peer = _torch_peer(config, ours, batch, dtype, devices, left_out)
    ours.steps(1)
    at_start = _loss_and_norm(ours)
    plain = matmul(dtype)
    flops = step_flops(config, layout)
    seconds: dict[str, list[float]] = {"tario": []} | ({"torch": []} if peer else {})
    calls = {"tario": ours.steps} | ({"torch": peer} if peer else {})
    if peer:
        theirs_at_start = [float(x) for x in peer(1)]
    matmul_rates = []
    for number in range(rounds):
        matmul_rates.append(plain.rate())
        for name in list(calls)[:: 1 if number % 2 else -1]:
            calls[name](1)  # not counted: it finds memory and caches as another program left them
            began = time.perf_counter()
            calls[name](steps)
            seconds[name].append((time.perf_counter() - began) / steps)
        # the machine may have changed its speed meanwhile
        matmul_rates[-1] = (matmul_rates[-1] + plain.rate()) / 2
        said = "  ".join(f"{name} {found[-1]:.3g} s a step" for name, found in seconds.items())
        say(f"bench: round {number + 1}/{rounds}  {said}  matmul {matmul_rates[-1] * 1e-12:.3g} TFLOP/s")
    of_step = statistics.median(seconds["tario"])
    chip = chip_of_device(jax.devices()[0].device_kind)
    say("bench: tracing a step")
    traced = trace_phases(lambda: ours.steps(1), ours.program.as_text(), trace)
    say("bench: rates of this machine")
    tokens = _tokens(config, layout)["tokens"] // (config.data.rows * ours.mesh.shape["context"])
    product = Sizes(max(1, tokens * config.data.rows // math.prod(ours.mesh.shape[axis] for axis in BATCH_AXES)),
                    config.model.width, config.model.mlp_width // ours.mesh.shape["tensor"])  # fmt: skip
    rates = measure_rates(dtype, product)
    rate_a_device = flops.total / of_step / devices
    expected = estimate(config, layout, genes, ours.mesh, *_shared(rates, ours, chip))
    result: dict[str, Any] = {
        "config": config.name, "device": jax.devices()[0].device_kind, "devices": devices,
        "mesh": dict(ours.mesh.shape), "dtype": dtype, "rows": config.data.rows, **_tokens(config, layout),
        "seconds_a_step": of_step, "seconds": seconds, "tokens_per_second": _tokens(config, layout)["tokens"] / of_step,
        "flops": {"decoder": flops.decoder, "encoders": flops.encoders, "gene_head": flops.gene_head,
                  "attention": flops.attention, "total": flops.total},
        "flops_per_second": flops.total / of_step,
        "rates": {name: rate for name, rate in rates._asdict().items() if name != "overlap"},
        "matmul_flops": statistics.median(matmul_rates),
        "share_of_matmul": statistics.median(flops.total / taken / devices / rate for taken, rate
                                             in zip(seconds["tario"], matmul_rates, strict=True)),
        "mfu": None if chip is None else rate_a_device / chip.rates.matmul_flops,
        "memory_bytes": _memory(ours), "compile_seconds": ours.compile_seconds,
        "phases": _phases(traced, of_step), "left_out": left_out, "estimate": expected.to_dict(),
        "estimated_share": expected.seconds / of_step,
        "nats_per_detection": _loss_and_norm(ours)[0],
    }  # fmt: skip
    if peer:
        ratios = [theirs / taken for taken, theirs in zip(seconds["tario"], seconds["torch"], strict=True)]
        result["beside_torch"] = {
            "seconds_a_step": statistics.median(seconds["torch"]), "tokens_ratio": statistics.median(ratios),
            "least_ratio": min(ratios), "largest_ratio": max(ratios),
            "difference": {name: abs(x / y - 1) for name, x, y
                           in zip(("loss", "gradient_norm"), theirs_at_start, at_start, strict=True)},
        }  # fmt: skip
    result["table"] = table(result)
    return result


def _shared(rates: Rates, ours: _Ours, chip: Chip | None) -> tuple[Rates, dict[str, float]]:
    """Rates of one device of several, and seconds that its messages take by axis, of the compiled program.

    Virtual devices of a CPU share its cores, and a message between them is a copy.
    """
    found, _ = collectives(ours.program.as_text(), dict(ours.mesh.shape))
    received = received_by_axis(found)
    if chip is not None:
        return rates, link_seconds(received, chip, slices=1)
    shared = Rates(*(rate / ours.mesh.size for rate in rates[:3]), rates.overlap)
    return shared, {axis: 2 * size / shared.memory_bytes for axis, size in received.items()}


def _torch_peer(config: Config, ours: _Ours, batch: Batch, dtype: str, devices: int, left_out: dict[str, str]):
    """Calls of the peer's step, so many at a time; None, and why in `left_out`, where it cannot be had."""
    if importlib.util.find_spec("torch") is None:
        left_out["torch"] = "not installed; pip install 'tario-jax[peer]'"
        return None
    if devices > 1:
        left_out["torch"] = f"it takes one device, and the mesh has {devices}"
        return None
    if (lacks := peer_lacks(config)) is not None:
        left_out["torch"] = lacks
        return None
    # threads that wait for each other in a busy loop take the time of those that they wait for, where cores are shared
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from tario_jax.bench.step_torch import TorchStep

    try:
        step = TorchStep(config, *ours.weights(), batch, dtype)
    except ValueError as error:  # InputError is one: of what the peer does not have
        left_out["torch"] = str(error)
        return None
    if (step.device.type == "cpu") != (jax.default_backend() == "cpu"):
        left_out["torch"] = f"this PyTorch runs on {step.device.type}, JAX on {jax.default_backend()}"
        return None

    def run(number: int):
        for _ in range(number):
            found = step.step()
        step.wait()
        return found

    return run


def peer_lacks(config: Config) -> str | None:
    """What a step of this config does and the peer's does not; None where both do the same."""
    if config.start.trained != "all" or Stability.of(config) != PLAIN:
        return "it trains all parameters, without z-loss, running mean or skipped steps"
    if config.optim.optimiser != "adamw":
        return f"it trains by AdamW, and optim.optimiser is {config.optim.optimiser!r}"
    if config.train.accumulate > 1:
        return f"it takes a batch at once, and train.accumulate is {config.train.accumulate}"
    if config.data.frozen_encoder:
        return f"it reads no stored features, and data.frozen_encoder is {config.data.frozen_encoder!r}"
    return None


def _loss_and_norm(ours: _Ours) -> tuple[float, float]:
    """Of the last step, at the weights before it."""
    sums = ours.metrics.sums
    return float((sums.total_nats + sums.gene_nats) / sums.detections), float(ours.metrics.gradient_norm)


def _tokens(config: Config, layout: Layout) -> dict[str, int]:
    bins = layout.tiles * layout.bins_per_tile
    of_row = {"he_tokens_a_row": layout.tiles * layout.patches_per_tile,
              "content_tokens_a_row": 0 if config.data.one_shot else bins, "query_tokens_a_row": bins}  # fmt: skip
    return of_row | {"tokens": config.data.rows * sum(of_row.values())}


def _memory(ours: _Ours) -> dict[str, int]:
    """Of a device: what the compiled step takes, and the most that was in use where the backend tells it."""
    counted = ours.program.memory_analysis()
    found = {"arguments": counted.argument_size_in_bytes, "temporaries": counted.temp_size_in_bytes}
    measured = jax.devices()[0].memory_stats()
    return found | ({"peak": measured["peak_bytes_in_use"]} if measured else {})


def _phases(traced: dict[str, PhaseSeconds], of_step: float) -> dict[str, dict[str, float]]:
    """Shares of the traced time, and the seconds that they are of a step that is not traced."""
    total = sum(map(sum, traced.values()))
    return {
        phase: {"share": sum(of) / total, "seconds": sum(of) / total * of_step,
                "forward_seconds": of.forward / total * of_step, "backward_seconds": of.backward / total * of_step}
        for phase, of in traced.items()
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    memory = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in result["memory_bytes"].items())
    lines = [
        f"{result['config']}, {result['dtype']}, {result['devices']} x {result['device']}: {result['rows']} rows of "
        f"{result['he_tokens_a_row']:,} H&E, {result['content_tokens_a_row']:,} content and "
        f"{result['query_tokens_a_row']:,} query tokens",
        f"{'':<26}{'s a step':>10}{'tokens/s':>12}{'TFLOP/s':>10}",
        f"{'tario':<26}{result['seconds_a_step']:>10.3g}{result['tokens_per_second']:>12,.0f}"
        f"{result['flops_per_second'] * 1e-12:>10.3g}",
    ]
    if beside := result.get("beside_torch"):
        taken = beside["seconds_a_step"]
        lines.append(f"{'PyTorch':<26}{taken:>10.3g}{result['tokens'] / taken:>12,.0f}"
                     f"{result['flops']['total'] / taken * 1e-12:>10.3g}")  # fmt: skip
    lines.append(f"{'a plain product, a device':<26}{'':>22}{result['matmul_flops'] * 1e-12:>10.3g}")
    lines.append(f"of the plain product: {result['share_of_matmul']:.2f}")
    if result["mfu"] is not None:
        lines.append(f"MFU, of the chip's bf16 peak: {result['mfu']:.1%}")
    if beside:
        lines.append(f"tokens/s beside PyTorch's: {beside['tokens_ratio']:.2f} ({beside['least_ratio']:.2f} to "
                     f"{beside['largest_ratio']:.2f} in the rounds)")  # fmt: skip
        lines.append("at the same weights the two differ, relative: " + ", ".join(
            f"{name.replace('_', ' ')} {x:.1e}" for name, x in beside["difference"].items()))  # fmt: skip
    lines += [f"{name}: not run: {why}" for name, why in result["left_out"].items()]
    rates = result["rates"]
    lines += [
        f"memory of a device, GiB: {memory}",
        f"rates of a device: product {rates['matmul_flops'] * 1e-12:.3g} TFLOP/s, memory "
        f"{rates['memory_bytes'] * 1e-9:.3g} GB/s, exponentials {rates['exponentials'] * 1e-9:.3g} G/s",
        f"{'a step by phase':<26}{'share':>10}{'s':>12}{'forward':>10}{'backward':>10}{'estimated':>11}",
    ]
    estimated = dict.fromkeys(PHASES, 0.0)
    for name, part in result["estimate"]["parts"].items():
        estimated[_PHASE_OF_PART[name]] += part["seconds"]
    for phase in PHASES:
        of = result["phases"][phase]
        if of["share"]:
            lines.append(f"{phase:<26}{of['share']:>10.1%}{of['seconds']:>12.3g}{of['forward_seconds']:>10.3g}"
                         f"{of['backward_seconds']:>10.3g}{estimated[phase]:>11.3g}")  # fmt: skip
    lines.append(f"estimated from these rates: {result['estimate']['seconds']:.3g} s a step, "
                 f"{result['estimated_share']:.2f} of what was measured")  # fmt: skip
    return "\n".join(lines)


def check_left_out(names: list[str]) -> tuple[str, ...]:
    """Raises `InputError` for a peer that there is not."""
    for name in names:
        if name not in PEERS:
            raise InputError(f"--leave-out={name}: expected one of {', '.join(PEERS)}")
    return tuple(names)
