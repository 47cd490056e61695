"""Time and memory of the count likelihood, forward and gradients, beside optax on materialised logits.

Ours is told by group of bins as in training; the peer's is one sum.

Both get the same bins, gene table and counts, and take turns. What the peer needs beforehand is given to it: dense
counts [tokens, genes] as an argument, neither timed nor counted as temporary memory.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tario_jax.ops.count_likelihood import SparseCounts, chunk_sizes, count_nll
from tario_jax.ops.products import dot

_MEDIAN_DETECTIONS = 120.0  # of a bin; nine in ten bins have 45 to 320
_MIB = 1 << 20


class _Moving(NamedTuple):
    """What is differentiated."""

    h_Nxd: jax.Array
    table_Gxd: jax.Array
    bias_G: jax.Array
    log_total_N: jax.Array


def bench_likelihood(*, tokens: int, genes: int, width: int, chunk: int, gene_chunk: int, rounds: int,
                     say: Callable[[str], None] = print) -> dict[str, Any]:  # fmt: skip
    """Seconds and temporary MiB of both, medians over rounds, and the median of the rounds' ratios.

    tokens: bins, of one row; genes: before padding to a multiple of 1,024; chunk, gene_chunk: as of `count_nll`.
    float32 on a CPU, bfloat16 (sums in float32) elsewhere. The result holds by how much the two
    differ, too.
    """
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    padded = -(-genes // 1024) * 1024
    moving, counts, dense_NxG = _case(tokens, genes, padded, width, dtype)
    sizes = chunk_sizes(1, tokens, padded, chunk=chunk, gene_chunk=gene_chunk)
    measured_G = jnp.arange(padded) < genes
    loss = _ours(measured_G, chunk, gene_chunk), _materialised(measured_G)
    given = {"tario": (moving, counts), "optax": (moving, dense_NxG)}
    programs = {
        name: jax.jit(jax.value_and_grad(of, has_aux=True)).lower(*given[name]).compile()
        for (name, of) in zip(given, loss, strict=True)
    }
    difference = _difference(*(programs[name](*given[name]) for name in given))
    seconds: dict[str, list[float]] = {name: [] for name in given}
    for number in range(rounds):
        for name in list(given)[:: 1 if number % 2 else -1]:  # by turns the first
            began = time.perf_counter()
            jax.block_until_ready(programs[name](*given[name]))
            seconds[name].append(time.perf_counter() - began)
        said = "  ".join(f"{name} {found[-1] * 1e3:,.1f} ms" for name, found in seconds.items())
        say(f"bench: round {number + 1}/{rounds}  {said}")
    memory = {name: program.memory_analysis().temp_size_in_bytes / _MIB for name, program in programs.items()}
    result: dict[str, Any] = {
        "device": jax.devices()[0].device_kind, "dtype": jnp.dtype(dtype).name, "tokens": tokens, "genes": genes,
        "genes_padded": padded, "width": width, "entries": int((counts.bin_BxC >= 0).sum()),
        "detections": int(counts.count_BxC.sum()), "chunk": sizes.bins, "gene_chunk": sizes.genes,
        **{name: {"seconds": statistics.median(seconds[name]), "temporary_mib": memory[name]} for name in given},
        "time_ratio": statistics.median(a / b for a, b in zip(*seconds.values(), strict=True)),
        "temporary_ratio": memory["tario"] / memory["optax"],
        "tflops": 6e-12 * tokens * padded * width / statistics.median(seconds["tario"]), "difference": difference,
    }  # fmt: skip
    result["table"] = table(result)
    return result


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"{result['tokens']:,} tokens x {result['genes']:,} genes (padded to {result['genes_padded']:,}) x width "
        f"{result['width']:,}, {result['dtype']}, {result['device']}; {result['detections']:,} detections",
        f"chunk: {result['chunk']:,} tokens x {result['gene_chunk']:,} genes",
        f"{'forward and gradients':<28}{'ms':>10}{'temporary MiB':>16}",
    ]
    for name, title in (("tario", "tario"), ("optax", "optax, materialised logits")):
        lines.append(f"{title:<28}{result[name]['seconds'] * 1e3:>10,.1f}{result[name]['temporary_mib']:>16,.1f}")
    lines += [
        f"{'ratio':<28}{result['time_ratio']:>10.2f}{result['temporary_ratio']:>16.3f}",
        f"tario: {result['tflops']:.3g} TFLOP/s of the three products (6 x tokens x genes x width)",
        "largest difference of the two, relative: "
        + ", ".join(f"{name} {x:.1e}" for name, x in result["difference"].items()),
    ]
    return "\n".join(lines)


def _case(tokens: int, genes: int, padded: int, width: int, dtype) -> tuple[_Moving, SparseCounts, jax.Array]:
    """What is differentiated, sparse counts of a row, and the same counts dense, float32 [N, G]."""
    rng = np.random.default_rng(0)
    totals_N = np.clip(rng.lognormal(np.log(_MEDIAN_DETECTIONS), 0.6, tokens), 10, 900).astype(np.int64)
    share_G = rng.permutation(1.0 / np.arange(1, genes + 1) ** 0.8)  # few genes have most of the detections
    bin_D = np.repeat(np.arange(tokens), totals_N)
    gene_D = rng.choice(genes, len(bin_D), p=share_G / share_G.sum())
    key_C, count_C = np.unique(bin_D * padded + gene_D, return_counts=True)
    entries = (key_C // padded, key_C % padded, count_C)
    counts = SparseCounts(*(jnp.asarray(np.pad(x, (0, len(x) // 16), constant_values=fill), jnp.int32)[None]
                            for x, fill in zip(entries, (-1, 0, 0), strict=True)))  # fmt: skip
    dense_NxG = np.zeros((tokens, padded), np.float32)
    dense_NxG[entries[0], entries[1]] = count_C
    moving = _Moving(
        jnp.asarray(rng.normal(size=(tokens, width)), dtype),
        jnp.asarray(rng.normal(size=(padded, width)) / np.sqrt(width), dtype),
        jnp.asarray(rng.normal(size=padded), jnp.float32),
        jnp.asarray(rng.normal(np.log(_MEDIAN_DETECTIONS), 0.1, tokens), jnp.float32),
    )
    return moving, counts, jnp.asarray(dense_NxG)


def _ours(measured_G: jax.Array, chunk: int, gene_chunk: int):
    def loss(moving: _Moving, counts: SparseCounts) -> jax.Array:
        h, table, bias, log_total = moving
        tokens = len(log_total)
        sums = count_nll(
            h[None], table, bias, log_total[None], counts, jnp.ones((1, tokens), bool), measured_G[None, None],
            jnp.zeros((1, tokens), jnp.int32), chunk=chunk, gene_chunk=gene_chunk,
            group_of_bin_BxN=jnp.arange(tokens)[None] % 4, groups=2,
        )  # fmt: skip
        return (sums.total_nats + sums.gene_nats) / sums.detections, sums

    return loss


def _materialised(measured_G: jax.Array):
    def loss(moving: _Moving, dense_NxG: jax.Array) -> jax.Array:
        h, table, bias, log_total = moving
        logits_NxG = dot("nd,gd->ng", h, table) + bias
        n_N = dense_NxG.sum(-1)
        total_N = jnp.exp(log_total) - n_N * log_total + jax.lax.lgamma(n_N + 1)
        gene_N = optax.softmax_cross_entropy(jnp.where(measured_G, logits_NxG, -1e30), dense_NxG)
        return (total_N + gene_N).sum() / n_N.sum(), None

    return loss


def _difference(ours, peers) -> dict[str, float]:
    """Largest difference of the loss and of each gradient, relative to the largest value."""

    def relative(x, y) -> float:
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        return float(np.abs(x - y).max() / np.abs(y).max())

    gradients = {name: relative(x, y) for name, x, y in zip(("h", "table", "bias", "log_total"), ours[1], peers[1],
                                                            strict=True)}  # fmt: skip
    return {"loss": relative(ours[0][0], peers[0][0]), **gradients}
