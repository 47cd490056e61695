"""Sequences that attention is measured on, and what a ring over them costs, counted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from tario_jax.config import InputError
from tario_jax.ops.attention.stripes import stripes
from tario_jax.ops.attention.work import block_pairs
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

_PATCHES, _BINS = 256, 64  # of a tile of 288 µm: patches of 18 µm, bins of 36 µm; four fifths of what is seen is H&E
_PACKED_SHORTEST, _PACKED_LONGEST = 2048, 8192


class Sequence(NamedTuple):
    """One row, as it is dealt to the ranks."""

    queries: QueryVisibility  # int32 [1, Sq]
    keys: KeyVisibility  # int32 [1, Sk]


class Balance(NamedTuple):
    """Pairs of tokens of a ring, in shares of those that are allowed."""

    allowed: int
    computed: float  # by all ranks
    critical_path: float  # sum over hops of the busiest rank, against an equal share of the allowed pairs


def causal(tokens: int, ranks: int, stripe: int, rng: np.random.Generator) -> Sequence:
    """Each token sees itself and those before it."""
    step = np.arange(tokens)[stripes(tokens, ranks, stripe)]
    return _of_one_stream(np.zeros(tokens), step)


def full(tokens: int, ranks: int, stripe: int, rng: np.random.Generator) -> Sequence:
    """Every token sees every other."""
    return _of_one_stream(np.zeros(tokens), np.zeros(tokens))


def packed(tokens: int, ranks: int, stripe: int, rng: np.random.Generator) -> Sequence:
    """Causal documents of 2,048 to 8,192 tokens, one after the other; those of a short row are a quarter of it."""
    segment, begin = np.zeros(tokens, int), 0
    for document in range(tokens):
        if begin >= tokens:
            break
        length = int(rng.integers(_PACKED_SHORTEST, _PACKED_LONGEST + 1))
        end = begin + min(length, max(tokens // 4, 1))
        segment[begin:end], begin = document, end
    order = stripes(tokens, ranks, stripe)
    return _of_one_stream(segment[order], np.arange(tokens)[order])


def tario(tokens: int, ranks: int, stripe: int, rng: np.random.Generator) -> Sequence:
    """A window of tissue whose bins are written one by one in random order: `tokens` seen ones, nearly.

    A stripe is a tile, whatever `stripe` says: 256 H&E tokens and 64 contents, and 64 queries. On each rank the H&E of
    its tiles comes first, then their contents, as in the model.
    """
    seen_RxS, read_RxA, _, _ = _tissue(tokens, ranks, rng)
    return Sequence(
        QueryVisibility(_row(np.zeros_like(read_RxA)), _row(read_RxA)),
        KeyVisibility(_row(np.zeros_like(seen_RxS)), _row(seen_RxS)),
    )


def tario_local(tokens: int, ranks: int, stripe: int, rng: np.random.Generator) -> Sequence:
    """The same in a local layer: a token sees its own tile alone."""
    seen_RxS, read_RxA, tile_of_seen_RxS, tile_RxA = _tissue(tokens, ranks, rng)
    return Sequence(
        QueryVisibility(_row(tile_RxA), _row(read_RxA)), KeyVisibility(_row(tile_of_seen_RxS), _row(seen_RxS))
    )


def _tissue(tokens: int, ranks: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Steps of the seen tokens and of all that look, and their tiles, by rank: [R, S], [R, A], [R, S], [R, A]."""
    tiles = max(round(tokens / (_PATCHES + _BINS) / ranks), 1) * ranks
    step_TxN = 1 + rng.permutation(tiles * _BINS).reshape(tiles, _BINS)
    step_RxB = step_TxN.reshape(-1, ranks, _BINS).swapaxes(0, 1).reshape(ranks, -1)
    seen_RxS = np.concatenate([np.zeros((ranks, tiles // ranks * _PATCHES), int), step_RxB], 1)
    place_RxT = np.arange(tiles).reshape(ranks, -1)
    of_patches, of_bins = (np.repeat(place_RxT, each, axis=1) for each in (_PATCHES, _BINS))
    tile_RxS = np.concatenate([of_patches, of_bins], 1)
    read_RxA = np.concatenate([seen_RxS, step_RxB - 1], 1)
    return seen_RxS, read_RxA, tile_RxS, np.concatenate([tile_RxS, of_bins], 1)


SEQUENCES: dict[str, Callable[[int, int, int, np.random.Generator], Sequence]] = {
    "causal": causal, "full": full, "packed": packed, "tario": tario, "tario_local": tario_local,
}  # fmt: skip


def make_sequence(kind: str, tokens: int, ranks: int, stripe: int, seed: int = 0) -> Sequence:
    """Raises `InputError` for a kind that there is not, and for tokens that the ranks cannot share equally."""
    if kind not in SEQUENCES:
        raise InputError(f"--mask={kind}: expected one of {', '.join(SEQUENCES)}")
    return SEQUENCES[kind](tokens, ranks, stripe, np.random.default_rng(seed))


def allowed_pairs(sequence: Sequence) -> int:
    """Pairs of tokens that the rule of visibility allows, counted exactly by sorting."""
    (of_query, read), (of_key, write) = (np.asarray(x, np.int64)[:, 0] for x in sequence)
    pairs = 0
    for segment in np.unique(of_query[of_query >= 0]):
        writes = np.sort(write[of_key == segment])
        pairs += int(np.searchsorted(writes, read[of_query == segment], side="right").sum())
    return pairs


def ring_balance(sequence: Sequence, ranks: int, block: int) -> Balance:
    """What a ring of `ranks` computes in blocks of `block` tokens, by the lists of work that it makes at each hop."""
    queries = QueryVisibility(*(np.split(x, ranks, axis=1) for x in sequence.queries))
    keys = KeyVisibility(*(np.split(x, ranks, axis=1) for x in sequence.keys))
    possible = jax.jit(lambda q, k: block_pairs(q, k, block, block).possible_BxQxJ)
    work = np.zeros((ranks, ranks))  # by hop and rank
    for hop in range(ranks):
        for rank in range(ranks):
            of_rank = QueryVisibility(*(x[rank] for x in queries))
            met = KeyVisibility(*(x[(rank - hop) % ranks] for x in keys))
            work[hop, rank] = np.asarray(possible(of_rank, met)).sum() * block**2
    allowed = allowed_pairs(sequence)
    return Balance(allowed, float(work.sum() / allowed), float(work.max(1).sum() / (allowed / ranks)))


def bench_balance(mask: str, tokens: int, ranks: int, block: int) -> dict[str, Any]:
    """`ring_balance` of a made sequence dealt in stripes of a block; JSON-like, with a "table"."""
    sequence = make_sequence(mask, tokens, ranks, block)
    balance = ring_balance(sequence, ranks, block)
    queries, keys = (x[0].shape[1] for x in sequence)
    table = (
        f"{mask}: {queries:,} tokens look at {keys:,} on {ranks} ranks, in blocks of {block}: "
        f"{balance.allowed:,} allowed pairs\n"
        f"computed pairs: {balance.computed:.3f} of the allowed ones\n"
        f"critical path, the busiest rank of every hop: {balance.critical_path:.3f} of an equal share of them"
    )
    return {"mask": mask, "queries": queries, "keys": keys, "ranks": ranks, "block": block, **balance._asdict(),
            "table": table}  # fmt: skip


def _of_one_stream(segment_S: np.ndarray, step_S: np.ndarray) -> Sequence:
    segment, step = _row(segment_S), _row(step_S)
    return Sequence(QueryVisibility(segment, step), KeyVisibility(segment, step))


def _row(x: np.ndarray) -> np.ndarray:
    return x.reshape(1, -1).astype(np.int32)
