"""Made cases of every kind of mask, and a float64 oracle in numpy: what attention's tests hold it against."""

import jax.numpy as jnp
import numpy as np

from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

B, SQ, SK, H, K, D = 2, 75, 52, 4, 2, 8
MASKS = ("causal", "full", "prefix", "packed", "padded", "tiles", "random_order")


def case(kind, seed=0, sq=SQ, sk=SK):
    """Visibility of queries and keys, and the mask bool [B, sq, sk], built from the words and not from the rule."""
    rng = np.random.default_rng(seed)
    i, j = np.arange(sq), np.arange(sk)
    segment_q, segment_k = np.zeros((B, sq), int), np.zeros((B, sk), int)
    read, write = np.zeros((B, sq), int), np.zeros((B, sk), int)
    mask = np.ones((B, sq, sk), bool)
    if kind == "causal":
        read[:], write[:] = i, j
        mask &= j <= i[:, None]
    elif kind == "prefix":
        read[:], write[:] = np.maximum(i - 19, 0), np.maximum(j - 19, 0)
        mask &= (j < 20) | (j <= i[:, None])
    elif kind in ("packed", "tiles"):
        for b in range(B):
            ends = np.sort(rng.choice(np.arange(5, sk - 5), 3, replace=False))
            segment_q[b], segment_k[b] = np.searchsorted(ends, i, side="right"), np.searchsorted(ends, j, side="right")
        mask &= segment_q[:, :, None] == segment_k[:, None]
        if kind == "packed":
            segment_q[:, sq - 15 :], segment_k[:, sk - 7 :] = -1, -1
            read[:], write[:] = i, j
            mask &= j <= i[:, None]
            mask[:, sq - 15 :], mask[:, :, sk - 7 :] = False, False
    elif kind == "padded":
        padding_q, padding_k = rng.random((B, sq)) < 0.3, rng.random((B, sk)) < 0.3
        segment_q[padding_q], segment_k[padding_k] = -1, -1
        mask[padding_q] = False
        mask &= ~padding_k[:, None]
    elif kind == "random_order":  # groups of bins in any order; queries of the first group see nothing
        write[:], read[:] = rng.integers(1, 9, (B, sk)), rng.integers(0, 9, (B, sq))
        mask &= np.array([[[write[b, y] <= read[b, x] for y in j] for x in i] for b in range(B)])
    return as_visibility(segment_q, read, segment_k, write), mask


def as_visibility(segment_q, read, segment_k, write):
    fields = [jnp.asarray(field, jnp.int32) for field in (segment_q, read, segment_k, write)]
    return QueryVisibility(*fields[:2]), KeyVisibility(*fields[2:])


def arrays(seed=1, sq=SQ, sk=SK, heads=H, kv_heads=K, width=D):
    rng = np.random.default_rng(seed)
    shapes = ((B, sq, heads, width), (B, sk, kv_heads, width), (B, sk, kv_heads, width), (B, sq, heads, width))
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]  # q, k, v, cotangent of the output


def oracle(q, k, v, d_out, mask):
    """Output and gradients of q, k, v in float64."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    repeats = q.shape[2] // k.shape[2]
    k, v = (np.repeat(x, repeats, axis=2) for x in (k, v))
    mask = mask[:, None]
    scale = q.shape[-1] ** -0.5
    scores = np.where(mask, np.einsum("bqhd,bshd->bhqs", q, k) * scale, -1e300)
    weight = np.where(mask, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    weight /= np.maximum(weight.sum(-1, keepdims=True), 1e-300)
    out = np.einsum("bhqs,bshd->bqhd", weight, v)
    d_weight = np.einsum("bqhd,bshd->bhqs", d_out, v)
    d_scores = weight * (d_weight - (weight * d_weight).sum(-1, keepdims=True)) * scale

    def of_key_heads(x):
        return x.reshape(*x.shape[:2], -1, repeats, x.shape[-1]).sum(3)

    dk, dv = np.einsum("bhqs,bqhd->bshd", d_scores, q), np.einsum("bhqs,bqhd->bshd", weight, d_out)
    return out, np.einsum("bhqs,bshd->bqhd", d_scores, k), of_key_heads(dk), of_key_heads(dv)


def relative_errors(found, expected):
    """Largest error of output and gradients of q, k, v, each over the largest value of its oracle."""
    return [float(np.abs(np.asarray(x, np.float64) - y).max() / np.abs(y).max())
            for x, y in zip(found, expected, strict=True)]  # fmt: skip


def assert_near(found, expected, tolerance):
    for name, error in zip(("out", "dq", "dk", "dv"), relative_errors(found, expected), strict=True):
        assert error < tolerance, f"{name}: relative error {error:.2e}"
