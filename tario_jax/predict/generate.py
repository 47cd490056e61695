"""Gene maps by generation in K steps, averaged over samples: fresh orders of writing and fresh draws."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from tario_jax.config import GENERATED_ORDERS, RESOLUTIONS, InputError
from tario_jax.corpus.read import Section
from tario_jax.model.generation import Order, Sums, add_samples, averaged, begin
from tario_jax.predict.cover import Cover, Placed
from tario_jax.predict.maps import GeneMaps
from tario_jax.predict.predictor import Predictor
from tario_jax.predict.tissue import ImageSection
from tario_jax.tokens.batch import Batch
from tario_jax.tokens.order import writing_ranks


@dataclasses.dataclass(frozen=True)
class Steps:
    """How bins are generated. Raises `InputError` for what cannot be.

    groups: K, at most one for each bin of a window (0: so many); samples: S; order: as `data.order`, or "resolutions":
    first the larger bins that training wrote first, scale by scale, then the others in K groups at random; seed: of
    orders and draws.
    """

    groups: int
    samples: int = 8
    order: str = "random"
    seed: int = 0

    def __post_init__(self):
        for name, least in (("groups", 0), ("samples", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"generation: {name} is {getattr(self, name)}; expected at least {least}")
        if self.order not in GENERATED_ORDERS:
            raise InputError(f"generation: order is {self.order!r}; expected one of {', '.join(GENERATED_ORDERS)}")

    @property
    def one_shot(self) -> bool:
        """Whether nothing is written that another bin is predicted from."""
        return self.groups == 1 and not self.coarse

    @property
    def coarse(self) -> bool:
        return self.order == RESOLUTIONS

    def __str__(self) -> str:
        steps = f"{self.groups} steps" if self.groups else "one step a bin"
        return f"{steps}, {self.order} order, {self.samples} samples"


class Samples(NamedTuple):
    """What each of S samples says of g genes at N places; a sample is of the whole section."""

    genes_g: np.ndarray  # positions in the panel
    rates_SxNxg: np.ndarray  # float32
    counts_SxNxg: np.ndarray  # float32, as they were drawn and written
    moved_Nxg: np.ndarray  # float32: the mean over samples of their rates as they were drawn, over one-shot's


def generate_section(
    predictor: Predictor, section: Section | ImageSection, steps: Steps, *, tissue: str, bin_um: float | None = None,
    overlap: float = 0.5, genes: np.ndarray | None = None, progress: Callable[[int, int], None] | None = None,
) -> tuple[GeneMaps, Samples]:  # fmt: skip
    """Gene maps of a section from its H&E, its bins written in steps; `predict_section`'s with K = 1.

    The rates are those of one-shot prediction. A sample's are these times by how much what the model says of a bin when
    its turn comes differs from what it says from the H&E alone, over the mean of that over samples: a mean over
    contents that were drawn from the model knows no more of the patient, and what it moves by is drift. One sample
    alone has nothing to be held against and keeps its own. `between_NxG` is the variance between samples, None for one
    sample. genes: positions of those whose samples are kept; none by default.

    A sample is of the whole section: each bin is drawn once, in the window in whose middle it lies most, and windows
    that overlap come one after the other, each with the contents that the others have written. All of it is as deep as
    one-shot prediction says the section is, which the model is told. No array of all samples and genes is ever made.

    Orders and draws are from Philox keyed by (seed, section, window, sample): how windows are batched does not matter.
    Raises `InputError` where the model was trained to read no contents (every K of data.groups is 1) and K is not 1,
    and where larger bins are to be written first that it does not know.
    """
    if not steps.one_shot:
        refuse_one_shot(predictor, "generation in steps")
    chosen_g = np.asarray([] if genes is None else genes, np.int32)
    cover = predictor.cover(section, tissue=tissue, bin_um=bin_um, overlap=overlap, turned=True, coarse=steps.coarse)
    held: list[Placed] = []
    blend = predictor.blended(cover, progress if steps.one_shot else None, held)
    is_bin_N = cover.places.scale_N == cover.places.scale_N.max() if steps.coarse else np.ones(len(cover), bool)
    maps = predictor.maps(cover, blend, tissue, asked_N=is_bin_N)
    of_places = (len(maps.rates_NxG), len(chosen_g))
    of_samples = (np.zeros((steps.samples, *of_places), np.float32) for _ in range(2))
    samples = Samples(chosen_g, *of_samples, np.ones(of_places, np.float32))
    if steps.one_shot:
        between_NxG = None if steps.samples == 1 else np.zeros_like(maps.rates_NxG)
        samples.rates_SxNxg[...] = maps.rates_NxG[:, chosen_g]
        for sample in range(steps.samples):
            key = [steps.seed, cover.section_key]
            rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, sample]))
            samples.counts_SxNxg[sample] = rng.poisson(samples.rates_SxNxg[sample])
        return dataclasses.replace(maps, between_NxG=between_NxG), samples
    plan = _Plan(cover, held, steps)
    mean_NxG, between_NxG = np.ones_like(maps.rates_NxG), np.zeros_like(maps.rates_NxG)
    content_SxNxd = np.zeros((steps.samples, len(cover), predictor.provenance.config.model.width), np.float32)
    log_depth, done = _log_depth(maps), 0
    for turn in plan.turns:
        for windows, batch in cover.batches(predictor.rows, numbers=turn):
            batch = batch._replace(log_depth_BxW=np.full_like(batch.log_depth_BxW, log_depth))
            on_devices = predictor.placed_on_devices(batch)
            begun = predictor.call(begin, on_devices)
            sums = Sums.zero(begun.said, batch.measured_gene_BxWxG)
            rows = [plan.parted(cover.placed(batch, row, window), window) for row, window in enumerate(windows)]
            pairs = [(row, sample) for sample in range(steps.samples) for row in range(len(rows))]
            for first in range(0, len(pairs), predictor.rows):
                some = pairs[first : first + predictor.rows]
                order = _order(cover, batch, plan, rows, windows, steps, some, content_SxNxd)
                window_R = np.array([row for row, _ in some] + [0] * (predictor.rows - len(some)), np.int32)
                sums, *found = predictor.call(add_samples, on_devices, begun, window_R, order, chosen_g, sums)
                share_RxQxg, drawn = found
                share_RxQxg, content_RxQxd, counts_RxQxg = jax.device_get(
                    (share_RxQxg, drawn.content_BxQxd, drawn.counts_BxQxg)
                )
                for at, (row, sample) in enumerate(some):
                    own = rows[row].own
                    content_SxNxd[sample, own.number_n] = content_RxQxd[at, own.slot_n]
                    own = own.before(len(maps.rates_NxG))
                    samples.counts_SxNxg[sample, own.number_n] = counts_RxQxg[at, own.slot_n]
                    alone_nxg = maps.rates_NxG[np.ix_(own.number_n, chosen_g)]
                    samples.rates_SxNxg[sample, own.number_n] = share_RxQxg[at, own.slot_n] * alone_nxg
            mean_BxQxG, between_BxQxG = jax.device_get(averaged(sums, steps.samples))
            for row, parted in enumerate(rows):
                own = parted.own.before(len(maps.rates_NxG))
                alone_nxG, genes_all = maps.rates_NxG[own.number_n], maps.rates_NxG.shape[1]
                mean_NxG[own.number_n] = np.maximum(mean_BxQxG[row, own.slot_n, :genes_all], 1e-6)
                between_NxG[own.number_n] = alone_nxG**2 * between_BxQxG[row, own.slot_n, :genes_all]
            plan.written_N[np.concatenate([own.number_n for own, _ in rows])] = True
            done += len(rows)
            if progress is not None:
                progress(done, plan.windows)
    samples.moved_Nxg[...] = mean_NxG[:, chosen_g]
    if steps.samples == 1:
        return dataclasses.replace(maps, decoding=str(steps)), samples
    samples.rates_SxNxg[...] /= samples.moved_Nxg
    return dataclasses.replace(maps, between_NxG=between_NxG / mean_NxG**2, decoding=str(steps)), samples


def refuse_one_shot(predictor: Predictor, what: str) -> None:
    """Raises `InputError` for a model that never learnt to read contents."""
    data = predictor.provenance.config.data
    if data.one_shot:
        raise InputError(f"{what}: the model of {predictor.provenance.config.name!r} was trained one-shot, data.groups "
                         f"= {data.groups}, and reads no contents; train with a K other than 1 there")  # fmt: skip


_GLASS = 0.01  # of the mean place: a place with less is no tissue


def _log_depth(maps: GeneMaps) -> float:
    """Log of the section's mean detections per µm² of tissue, as one-shot prediction has it."""
    total_N = maps.rates_NxG.sum(1, dtype=np.float64)
    tissue_N = total_N > _GLASS * total_N.mean()
    return float(np.log(total_N[tissue_N].mean() / maps.size_um**2))


class _Parted(NamedTuple):
    own: Placed  # bins that the window draws
    before: Placed  # bins that other windows have drawn


class _Plan:
    """Which window draws which places, and in which turn; windows of a turn do not overlap."""

    def __init__(self, cover: Cover, held: list[Placed], steps: Steps):
        weight_N, self._window_N = np.zeros(len(cover)), np.zeros(len(cover), int)
        for window, placed in enumerate(held):
            better = placed.weight_n > weight_N[placed.number_n]
            weight_N[placed.number_n[better]] = placed.weight_n[better]
            self._window_N[placed.number_n[better]] = window
        own_W = np.bincount(self._window_N, minlength=len(held))
        per_window = cover.places.per_window
        self._scale_N = cover.places.scale_N if steps.coarse else np.zeros(len(cover), int)
        self.scales = int(self._scale_N.max())  # that are written before the bins
        own_SxW = [np.bincount(self._window_N[self._scale_N == scale], minlength=len(held))
                   for scale in range(self.scales + 1)]  # fmt: skip
        bins = per_window - sum(scale.per_window for scale in cover.places.scales) if self.scales else per_window
        self._per_bins = 1 if steps.groups == 0 else -(-bins // steps.groups)
        self.per_group = max(self._per_bins, *(int(own_W.max()) for own_W in own_SxW[:-1]), 1)
        self.groups = self.scales + -(-int(own_SxW[-1].max()) // self._per_bins)
        self.per_window = per_window
        self.written_N = np.zeros(len(cover), bool)
        self.windows = int((own_W > 0).sum())
        self.turns = _turns(np.array(cover.corners), np.flatnonzero(own_W), cover.data.window_um)

    def group(self, number_n: np.ndarray, order: str, x_um_n: np.ndarray, y_um_n: np.ndarray, pitch_um: float,
              rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """The group of each of these places, and its place in that group: scales one after the other, then the bins."""
        group_n, place_n = np.zeros((2, len(number_n)), int)
        for scale in range(self.scales + 1):
            own = np.flatnonzero(self._scale_N[number_n] == scale)
            rank_n = writing_ranks("random" if order == RESOLUTIONS else order, x_um_n[own], y_um_n[own], pitch_um, rng)
            size = self._per_bins if scale == self.scales else max(len(own), 1)
            group_n[own], place_n[own] = scale + rank_n // size, rank_n % size
        return group_n, place_n

    def parted(self, placed: Placed, window: int) -> _Parted:
        own_n, written_n = self._window_N[placed.number_n] == window, self.written_N[placed.number_n]
        return _Parted(*(Placed(*(part[some] for part in placed)) for some in (own_n, written_n & ~own_n)))


def _turns(corner_Wx2: np.ndarray, windows: np.ndarray, side_um: float) -> list[list[int]]:
    """These windows by turns, each in the first in which none overlaps it."""
    turns: list[list[int]] = []
    for window in windows.tolist():
        for turn in turns:
            if (np.abs(corner_Wx2[turn] - corner_Wx2[window]).max(1) >= side_um - 1e-6).all():
                turn.append(window)
                break
        else:
            turns.append([window])
    return turns


def _order(cover: Cover, batch: Batch, plan: _Plan, rows: list[_Parted], windows: Sequence[int], steps: Steps,
           pairs: list[tuple[int, int]], content_SxNxd: np.ndarray) -> Order:  # fmt: skip
    """What samples write, each a pair of a window, by its row of the batch, and a number; rows beyond are padding."""
    R = len(batch.bin_step_BxTxN)
    before_Rxm = np.full((R, plan.per_window), -1, np.int32)
    content_Rxmxd = np.zeros((R, plan.per_window, content_SxNxd.shape[2]), np.float32)
    slot_KxRxn = np.full((plan.groups, R, plan.per_group), -1, np.int32)
    key_Rx2 = np.zeros((R, 2), np.uint32)
    for at, (row, sample) in enumerate(pairs):
        key, counter = [steps.seed, cover.section_key], [0, 0, windows[row], sample]
        rng = np.random.Generator(np.random.Philox(key=key, counter=counter))
        key_Rx2[at] = rng.integers(1 << 32, size=2, dtype=np.uint32)
        own, before = rows[row]
        before_Rxm[at, : len(before.slot_n)] = before.slot_n
        content_Rxmxd[at, : len(before.slot_n)] = content_SxNxd[sample, before.number_n]
        x_n, y_n = batch.bin_xy_um_BxTxNx2[row].reshape(-1, 2)[own.slot_n].T
        group_n, place_n = plan.group(own.number_n, steps.order, x_n, y_n, cover.places.pitch_um, rng)
        slot_KxRxn[group_n, at, place_n] = own.slot_n
    return Order(before_Rxm, content_Rxmxd, slot_KxRxn, jax.random.wrap_key_data(key_Rx2))
