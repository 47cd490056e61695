"""Attention and likelihood with the batch sharded over four virtual devices by XLA: same numbers, no gathered keys.

Runs itself in a process of its own, since the number of devices is fixed when JAX starts.
"""

import os
import re
import subprocess
import sys

import jax
import numpy as np

from tario_jax.ops.attention import attention
from tario_jax.ops.count_likelihood import SparseCounts, count_nll
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility


def test_sharded_batch_gives_the_same_numbers():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def loss_of(params, batch):
    visibility = QueryVisibility(batch["segment"], batch["step"]), KeyVisibility(batch["segment"], batch["step"])
    h = batch["x"] * params["gain"]
    h = h + attention(h, h[:, :, :2], h[:, :, 1:3], *visibility, strategy="blockwise", block=8)
    h = h.reshape(*h.shape[:2], -1)
    rest = (batch["counts"], batch["valid"], batch["gene_mask"], batch["mask_of_bin"])
    sums = count_nll(h, params["table"], params["bias"], h.mean(-1), *rest, chunk=7)
    return (sums.total_nats + sums.gene_nats) / sums.detections


def main():
    rng = np.random.default_rng(0)
    rows, length, genes = 8, 20, 32
    counts = [np.sort(rng.integers(0, length, (rows, 60))), rng.integers(0, 30, (rows, 60)), np.ones((rows, 60))]
    batch = {
        "x": rng.normal(size=(rows, length, 4, 8)).astype(np.float32),
        "segment": np.sort(rng.integers(0, 3, (rows, length))).astype(np.int32),  # other cuts in every row
        "step": rng.integers(0, 5, (rows, length)).astype(np.int32),
        "counts": SparseCounts(*(field.astype(np.int32) for field in counts)),
        "valid": rng.random((rows, length)) < 0.9,
        "gene_mask": np.broadcast_to(np.arange(genes) < 30, (rows, 1, genes)),
        "mask_of_bin": np.zeros((rows, length), np.int32),
    }
    params = {
        "gain": np.ones((4, 8), np.float32),
        "table": rng.normal(size=(genes, 32)).astype(np.float32),
        "bias": rng.normal(size=genes).astype(np.float32),
    }
    step = jax.jit(jax.value_and_grad(loss_of))
    alone = step(params, batch)
    mesh = jax.make_mesh((2, 2), ("replica", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    by_row = jax.NamedSharding(mesh, jax.P(("replica", "fsdp")))
    sharded = jax.device_put(params, jax.NamedSharding(mesh, jax.P())), jax.device_put(batch, by_row)
    with jax.set_mesh(mesh):
        program = step.lower(*sharded).compile()
    for x, y in zip(jax.tree.leaves(program(*sharded)), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    assert np.isfinite(alone[0]) and len(jax.devices()) == 4
    text = program.as_text()
    assert "all-reduce" in text  # of the gradients
    assert "all-to-all" not in text and "collective-permute" not in text
    # of all that is gathered there is the gene table, whose width lies over fsdp: no keys, no tokens
    assert set(re.findall(r"= (\S+?)\{\S* all-gather\(", text)) == {f"f32[{genes},32]"}


if __name__ == "__main__":
    main()
