"""Keys and values of tokens that were written, kept for the queries that come later: generation in K steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tario_jax.config import ModelConfig
from tario_jax.ops.visibility import KeyVisibility


class DecoderCache(NamedTuple):
    """Slots for S tokens of each row, of all layers. A slot that is not written has segment −1: nobody sees it.

    So the rule of visibility is that of training, and needs no other mask.
    """

    k_LxBxSxKxD: jax.Array
    v_LxBxSxKxD: jax.Array
    visibility: dict[str, KeyVisibility]  # of "global" and of "local" layers, [B, S]

    @staticmethod
    def empty(config: ModelConfig, rows: int, slots: int, dtype: jnp.dtype) -> "DecoderCache":
        """No token written."""
        zeros = jnp.zeros((config.layers, rows, slots, config.kv_heads, config.head_dim), dtype)
        nothing = KeyVisibility(jnp.full((rows, slots), -1, jnp.int32), jnp.zeros((rows, slots), jnp.int32))
        return DecoderCache(zeros, zeros, {kind: nothing for kind in dict.fromkeys(config.pattern)})

    def marked(self, slot_Bxn: jax.Array, keys: dict[str, KeyVisibility]) -> "DecoderCache":
        """With the segments and steps of the tokens that are being written."""
        visibility = {kind: KeyVisibility(*kept_at(slot_Bxn, self.visibility[kind], keys[kind])) for kind in keys}
        return self._replace(visibility=visibility)


def kept_at(slot_Bxn: jax.Array, kept_BxSx___, new_Bxnx___) -> tuple[jax.Array, ...]:
    """Each of the kept arrays with the new tokens in their slots; those with a negative slot are dropped."""

    def of_row(slot_n, kept_Sx___, new_nx___):
        past = kept_Sx___.shape[0]  # a negative index would count from the end
        at_n = jnp.where(slot_n < 0, past, slot_n)
        return kept_Sx___.at[at_n].set(new_nx___.astype(kept_Sx___.dtype), mode="drop")

    return tuple(jax.vmap(of_row)(slot_Bxn, kept, new) for kept, new in zip(kept_BxSx___, new_Bxnx___, strict=True))
