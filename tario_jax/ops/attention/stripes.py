"""How a sequence is dealt to the devices of the mesh axis `context`."""

import numpy as np

from tario_jax.config import InputError


def stripes(length: int, ranks: int, stripe: int) -> np.ndarray:
    """Where each token comes from, int [length], so that the ranks hold stripes by turns.

    `x[:, stripes(length, ranks, stripe)]`, cut into `ranks` equal parts, gives part r the stripes r, r + ranks, … of
    `stripe` tokens each, in order. What is left beyond whole rounds is dealt in shorter, equal stripes. Stripes keep a
    causal or packed sequence balanced over the hops of a ring, where contiguous parts leave the last rank twice the
    work (Brandon et al., arXiv 2311.09431, with stripes of one token).

    Raises `InputError` for a length that the ranks cannot share equally.
    """
    if length % ranks:
        raise InputError(f"attention: {length} tokens for {ranks} ranks of context; expected a multiple")
    rounds = length // (ranks * stripe)
    dealt = np.arange(rounds * ranks * stripe).reshape(rounds, ranks, stripe)
    rest = np.arange(dealt.size, length).reshape(ranks, -1)
    parts = [np.concatenate([dealt[:, rank].ravel(), rest[rank]]) for rank in range(ranks)]
    return np.concatenate(parts)
