"""Means of tokens: of the H&E patches under each bin.

A bin may reach into the tiles of its neighbours, and on a mesh these belong to other ranks of `context`. So each rank
adds up what its own patches give to the bins of all ranks, and the sums are scattered to the ranks that hold the bins.
That moves the width of a token for each bin of the row, once a step and once back: where several patches lie under a
bin, less than gathering the patches would (of 36 µm bins and 16 µm patches a fifth), and no rank ever holds all of
them. The numbers and shares of patches are gathered, 8 · M bytes a bin. Every rank looks M patches up for every bin, so
this small part of a step (a bin reads its patches, where each layer multiplies them) does not shrink with more ranks.

Axes: B rows, S patches of a row, N bins of a row, M patches under a bin (or other tokens that are averaged), d width.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from tario_jax.config import BATCH_AXES
from tario_jax.ops.ranks import Ranks


def weighted_means(tokens_BxSxd: jax.Array, number_BxNxM: jax.Array, weight_BxNxM: jax.Array) -> jax.Array:
    """Σ_m weight[b, n, m] · tokens[b, number[b, n, m]], [B, N, d] in the dtype of the tokens, summed in float32.

    number: int32, 0 <= number < S. The gradient is that of the tokens; weights have none. Under `jax.set_mesh`: rows
    over replica × fsdp, patches and bins over context.

    Raises `InputError` where rows, patches or bins do not divide over the mesh.
    """
    ranks = Ranks.ambient()
    rows, bins, _ = number_BxNxM.shape
    ranks.part(rows, "rows", *BATCH_AXES)
    ranks.part(bins, "bins of a row", "context")
    ranks.part(tokens_BxSxd.shape[1], "patches of a row", "context")
    return _means(tokens_BxSxd, number_BxNxM, lax.stop_gradient(weight_BxNxM), tokens_BxSxd.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _means(tokens_BxSxd, number_BxNxM, weight_BxNxM, patches):
    def local(ranks, here, tokens_BxSxd, number_MxBxN, weight_MxBxN):
        def add(sum_BxNxd, at):
            number_BxN, weight_BxN = at
            of_row = jax.vmap(lambda x_Sxd, number_N: x_Sxd.at[number_N].get(mode="fill", fill_value=0))
            return sum_BxNxd + weight_BxN[..., None] * of_row(tokens_BxSxd, number_BxN), None

        nothing = jnp.zeros((*number_MxBxN.shape[1:], tokens_BxSxd.shape[2]), jnp.float32)
        sum_BxNxd, _ = lax.scan(add, nothing, (number_MxBxN, weight_MxBxN))
        # a bin has patches of the few ranks whose tiles it meets: little is lost by adding in the tokens' dtype
        return ranks.sum_scattered(sum_BxNxd.astype(tokens_BxSxd.dtype), "context", 1)

    return _on_mesh(local, tokens_BxSxd, number_BxNxM, weight_BxNxM, patches)


def _forward(tokens_BxSxd, number_BxNxM, weight_BxNxM, patches):
    return _means(tokens_BxSxd, number_BxNxM, weight_BxNxM, patches), (number_BxNxM, weight_BxNxM)


def _backward(patches, given, d_mean_BxNxd):
    def local(ranks, here, d_mean_BxNxd, number_MxBxN, weight_MxBxN):
        d_mean_BxNxd = ranks.gather(d_mean_BxNxd, "context", 1)

        def add(d_tokens_BxSxd, at):
            number_BxN, weight_BxN = at
            to_row = jax.vmap(lambda d_Sxd, number_N, d_Nxd: d_Sxd.at[number_N].add(d_Nxd, mode="drop"))
            return to_row(d_tokens_BxSxd, number_BxN, weight_BxN[..., None] * d_mean_BxNxd), None

        nothing = jnp.zeros((d_mean_BxNxd.shape[0], here, d_mean_BxNxd.shape[2]), jnp.float32)
        d_tokens_BxSxd, _ = lax.scan(add, nothing, (number_MxBxN, weight_MxBxN))
        return d_tokens_BxSxd.astype(d_mean_BxNxd.dtype)

    return _on_mesh(local, d_mean_BxNxd, *given, patches), None, None


_means.defvjp(_forward, _backward)


def _on_mesh(local, x_Bx___xd, number_BxNxM, weight_BxNxM, patches: int):
    """`local(ranks, here, x, number, weight)` with the patches of all bins, of which this rank's are 0 … here − 1.

    One patch of each bin after the other: looked up all together they are larger than the tokens.
    """
    ranks = Ranks.ambient()
    here = ranks.part(patches, "patches of a row", "context")

    def on_device(x_Bx___xd, number_BxNxM, weight_BxNxM):
        number_BxNxM, weight_BxNxM = (ranks.gather(x, "context", 1) for x in (number_BxNxM, weight_BxNxM))
        number_BxNxM -= here * ranks.index("context")
        # other ranks' patches lie past the end: nothing is found there; a negative number would wrap around
        number_BxNxM = jnp.where(number_BxNxM < 0, here, number_BxNxM)
        return local(ranks, here, x_Bx___xd, jnp.moveaxis(number_BxNxM, 2, 0), jnp.moveaxis(weight_BxNxM, 2, 0))

    of_tokens = ranks.spec(BATCH_AXES, "context")
    return ranks.run(on_device, (of_tokens, of_tokens, of_tokens), of_tokens)(x_Bx___xd, number_BxNxM, weight_BxNxM)
