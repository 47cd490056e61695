"""Gene maps by generation in K steps, averaged over samples: fresh orders of writing and fresh draws."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tario_jax.config import ORDERS, InputError
from tario_jax.corpus.read import Section
from tario_jax.model.generation import Order, Sums, add_sample, averaged, begin
from tario_jax.predict.cover import Blend, Cover
from tario_jax.predict.maps import ONE_SHOT, GeneMaps
from tario_jax.predict.predictor import Predictor
from tario_jax.predict.tissue import ImageSection
from tario_jax.tokens.batch import Batch
from tario_jax.tokens.order import write_steps, writing_ranks


@dataclasses.dataclass(frozen=True)
class Steps:
    """How bins are generated. Raises `InputError` for what cannot be.

    groups: K, at most one for each bin of a window (0: so many); samples: S; order: as `data.order`; seed: of orders
    and draws.
    """

    groups: int
    samples: int = 8
    order: str = "random"
    seed: int = 0

    def __post_init__(self):
        for name, least in (("groups", 0), ("samples", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"generation: {name} is {getattr(self, name)}; expected at least {least}")
        if self.order not in ORDERS:
            raise InputError(f"generation: order is {self.order!r}; expected one of {', '.join(ORDERS)}")

    def __str__(self) -> str:
        steps = f"{self.groups} steps" if self.groups else "one step a bin"
        return f"{steps}, {self.order} order, mean of {self.samples} samples"


class Samples(NamedTuple):
    """What each of S samples says of g genes at N places, from the window in whose middle a place lies most.

    The rates stand at the level of detection that the H&E alone gives; the counts are as they were drawn and written.
    """

    genes_g: np.ndarray  # positions in the panel
    rates_SxNxg: np.ndarray  # float32
    counts_SxNxg: np.ndarray  # float32


def generate_section(
    predictor: Predictor, section: Section | ImageSection, steps: Steps, *, tissue: str, bin_um: float | None = None,
    overlap: float = 0.5, genes: np.ndarray | None = None, progress: Callable[[int, int], None] | None = None,
) -> tuple[GeneMaps, Samples]:  # fmt: skip
    """Gene maps of a section from its H&E, its bins written in K groups; `predict_section`'s with K = 1.

    The rates are the mean over samples of what the model says of a bin when its turn comes; `between_NxG` is the
    variance between samples, None for one sample. genes: positions of those whose samples are kept; none by default.

    Windows are sampled apart and blended as in one-shot prediction. No array of all samples and genes is ever made.
    Orders and draws are from Philox keyed by (seed, section, window, sample): how windows are batched does not matter.
    Raises `InputError` where the model was trained to read no contents (every K of data.groups is 1) and K is not 1.
    """
    if steps.groups != 1:
        refuse_one_shot(predictor, "generation in steps")
    cover = predictor.cover(section, tissue=tissue, bin_um=bin_um, overlap=overlap)
    chosen_g = np.asarray([] if genes is None else genes, np.int32)
    blend, spread = Blend(len(cover), len(predictor.panel)), Blend(len(cover), len(predictor.panel))
    kept = _Kept(len(cover), chosen_g, steps.samples)
    for windows, batch in cover.batches(predictor.rows):
        on_devices = predictor.placed_on_devices(batch)
        begun = predictor.call(begin, on_devices)
        sums = Sums.zero(begun.said, batch.measured_gene_BxWxG)
        drawn = []
        for sample in range(steps.samples):
            order = _order(cover, batch, windows, steps, sample)
            sums, *of_chosen = predictor.call(add_sample, on_devices, begun, order, chosen_g, sums)
            drawn.append(jax.device_get(of_chosen) if len(chosen_g) else None)
        mean, between = predictor.call(averaged, on_devices, begun, sums, jnp.float32(steps.samples))
        mean, between = np.asarray(mean), np.asarray(between)
        for row, window in enumerate(windows):
            placed = cover.placed(batch, row, window)
            blend.add(placed, mean[row])
            spread.add(placed, between[row])
            if len(chosen_g):
                kept.add(placed, [[values[row] for values in of_sample] for of_sample in drawn])
        if progress is not None:
            progress(windows.stop, len(cover.corners))
    maps = predictor.maps(cover, blend, tissue, decoding=ONE_SHOT if steps.groups == 1 else str(steps))
    return dataclasses.replace(maps, between_NxG=spread.mean() if steps.samples > 1 else None), kept.samples


def refuse_one_shot(predictor: Predictor, what: str) -> None:
    """Raises `InputError` for a model that never learnt to read contents."""
    data = predictor.provenance.config.data
    if data.one_shot:
        raise InputError(f"{what}: the model of {predictor.provenance.config.name!r} was trained one-shot, data.groups "
                         f"= {data.groups}, and reads no contents; train with a K other than 1 there")  # fmt: skip


def _order(cover: Cover, batch: Batch, windows: range, steps: Steps, sample: int) -> Order:
    """The order of writing of one sample of each window, in arrays of one size for all windows of a section."""
    B, T, N = batch.bin_step_BxTxN.shape
    per_window = cover.places.per_window
    groups = per_window if steps.groups == 0 else min(steps.groups, per_window)
    step_BxQ = np.ones((B, T * N), np.int32)
    slot_KxBxn = np.full((groups, B, -(-per_window // groups)), -1, np.int32)
    key_Bx2 = np.zeros((B, 2), np.uint32)
    for row, window in enumerate(windows):
        rng = np.random.Generator(np.random.Philox(key=[steps.seed, cover.section_key], counter=[0, 0, window, sample]))
        key_Bx2[row] = rng.integers(1 << 32, size=2, dtype=np.uint32)
        slot_n = np.flatnonzero(batch.bin_measured_BxTxN[row].ravel() > 0)
        x_n, y_n = batch.bin_xy_um_BxTxNx2[row].reshape(-1, 2)[slot_n].T
        rank_n = writing_ranks(steps.order, x_n, y_n, cover.places.pitch_um, rng)
        step_n = write_steps(rank_n, groups)
        step_BxQ[row, slot_n] = step_n
        by_rank = np.argsort(rank_n)
        place_n = np.arange(len(rank_n)) - np.searchsorted(step_n[by_rank], step_n[by_rank])
        slot_KxBxn[step_n[by_rank] - 1, row, place_n] = slot_n[by_rank]
    return Order(step_BxQ, slot_KxBxn, jax.random.wrap_key_data(key_Bx2))


class _Kept:
    """Samples of chosen genes; of each place those from the window that has it most in its middle."""

    def __init__(self, places: int, chosen_g: np.ndarray, samples: int):
        shape = (samples, places if len(chosen_g) else 0, len(chosen_g))
        self.samples = Samples(chosen_g, np.zeros(shape, np.float32), np.zeros(shape, np.float32))
        self._weight_N = np.zeros(places)

    def add(self, placed, drawn: list[list[np.ndarray]]) -> None:
        """drawn: rates and counts [Q, g] of each sample."""
        better = placed.weight_n > self._weight_N[placed.number_n]
        number_n, slot_n = placed.number_n[better], placed.slot_n[better]
        self._weight_N[number_n] = placed.weight_n[better]
        for sample, (rates_Qxg, counts_Qxg) in enumerate(drawn):
            self.samples.rates_SxNxg[sample, number_n] = rates_Qxg[slot_n]
            self.samples.counts_SxNxg[sample, number_n] = counts_Qxg[slot_n]
