"""Bins and a table of genes, and what the bins hold by it, dense in float64."""

import functools

import count_case
import jax
import numpy as np

from tario_jax.ops.count_content import count_content


def case(B=3, N=22, seed=0):
    """Inputs of count_content by name, and dense counts [B, N, G]."""
    inputs, dense = count_case.case(B, N, seed)
    rng = np.random.default_rng(seed)
    frequency_G = np.exp(rng.normal(0, 1.5, count_case.G)) * (np.arange(count_case.G) < count_case.GENES)
    given = {
        "table_Gxr": inputs["table_Gxd"],
        "frequency_G": (frequency_G / frequency_G.sum()).astype(np.float32),
        "counts": inputs["counts"],
        "gene_mask_BxWxG": inputs["gene_mask_BxWxG"],
        "mask_of_bin_BxN": inputs["mask_of_bin_BxN"],
    }
    return given, dense


@functools.partial(jax.jit, static_argnums=1)
def compiled(given, chunk):
    """What is held, totals, and the table's gradient of Σ held · weights."""
    rest = {name: value for name, value in given.items() if name != "table_Gxr"}
    table = given["table_Gxr"]
    (held, total), pull = jax.vjp(lambda table: count_content(table, **rest, dtype=table.dtype, chunk=chunk), table)
    (d_table,) = pull((_weights(held.shape).astype(held.dtype), jax.numpy.zeros_like(total)))
    return held, total, d_table


def _weights(shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def oracle(given, dense):
    """The same in float64."""
    table, frequency_G = (np.asarray(given[name], np.float64) for name in ("table_Gxr", "frequency_G"))
    allowed = count_case.allowed_genes(given)
    share = np.where(allowed, frequency_G, 0)
    share /= share.sum(-1, keepdims=True)
    total = dense.sum(-1)
    residual = np.where(allowed, np.sqrt(dense + 0.375) - np.sqrt(total[..., None] * share + 0.375), 0)
    held = residual @ table
    return held, total, np.einsum("bng,bnr->gr", residual, _weights(held.shape).astype(np.float64))


def assert_near(found, expected, tolerance):
    for name, x, y in zip(("held", "total", "d_table")[: len(found)], found, expected, strict=True):
        error = np.abs(np.asarray(x, np.float64) - y).max() / np.abs(y).max()
        assert error < tolerance, f"{name}: relative error {error:.2e}"
