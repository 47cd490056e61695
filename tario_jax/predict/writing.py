"""Who writes which bins of a section, and what windows write: shared by sections in memory and slides on disk.

Each bin is drawn once, in the window in whose middle it lies most, or the larger bin of which it is a part. Windows
that overlap come one after the other, in turns; each is given the contents that the windows before it have written.

Axes: W windows, N places of the section, n of a window, B rows of a batch, Q bin slots of a row, R samples of windows
that are drawn at once, S samples, G genes, g chosen genes, d width of contents.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from tario_jax.config import GENERATED_ORDERS, RESOLUTIONS, InputError
from tario_jax.model.generation import Order, Sums, add_samples, averaged, begin
from tario_jax.predict.cover import Cover, Placed
from tario_jax.predict.predictor import Predictor
from tario_jax.tokens.batch import Batch
from tario_jax.tokens.order import writing_ranks

LEAST_MEAN = 1e-6  # that a mean over samples, as a share of the rate from the H&E alone, is taken for
_GLASS = 0.01  # of the mean place: a place with less is no tissue
_NO_NEARER = 1e-6  # of a weight: as near to the middle of either window, the first draws a bin


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
        if self.seed >= 2**64:
            raise InputError(f"generation: seed is {self.seed}; expected less than 2^64")
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


class Parted(NamedTuple):
    own: Placed  # bins that the window draws
    before: Placed  # bins that other windows have drawn


class WritingPlan:
    """Which window draws which places, and in which turn; windows of a turn do not overlap."""

    def __init__(self, cover: Cover, held: Iterable[Placed], steps: Steps):
        """held: what each window holds, window by window."""
        windows, weight_N, self.window_N = len(cover.corners), np.zeros(len(cover)), np.zeros(len(cover), int)
        for window, placed in enumerate(held):
            better = placed.weight_n > weight_N[placed.number_n] + _NO_NEARER
            weight_N[placed.number_n[better]] = placed.weight_n[better]
            self.window_N[placed.number_n[better]] = window
        if steps.coarse:
            self._keep_together(cover)
        own_W = np.bincount(self.window_N, minlength=windows)
        per_window = cover.places.per_window
        self._scale_N = cover.places.scale_N if steps.coarse else np.zeros(len(cover), int)
        self.scales = int(self._scale_N.max())  # that are written before the bins
        own_SxW = [np.bincount(self.window_N[self._scale_N == scale], minlength=windows)
                   for scale in range(self.scales + 1)]  # fmt: skip
        bins = per_window - sum(scale.per_window for scale in cover.places.scales) if self.scales else per_window
        self._per_bins = 1 if steps.groups == 0 else -(-bins // steps.groups)
        self.per_group = max(self._per_bins, *(int(own_W.max()) for own_W in own_SxW[:-1]), 1)
        self.groups = self.scales + -(-int(own_SxW[-1].max()) // self._per_bins)
        self.per_window = per_window
        self.windows = int((own_W > 0).sum())
        self.turns = turns_of(np.array(cover.corners), np.flatnonzero(own_W), cover.data.window_um)
        self._turn_W = np.full(windows, len(self.turns))
        for turn, some in enumerate(self.turns):
            self._turn_W[some] = turn

    def _keep_together(self, cover: Cover) -> None:
        """A larger bin's parts are drawn by the window that draws it: never before it, by one of an earlier turn.

        Corners of windows lie on the grid of the coarsest bins, so who holds one holds all of its parts.
        """
        side_um, places = cover.data.largest_bin_um, cover.places
        column_N, row_N = ((at // side_um).astype(int) for at in (places.x_um_N, places.y_um_N))
        coarsest_first = np.argsort(places.scale_N, kind="stable")
        cell_N = (row_N * (column_N.max() + 1) + column_N)[coarsest_first]
        _, first, of_N = np.unique(cell_N, return_index=True, return_inverse=True)
        self.window_N[coarsest_first] = self.window_N[coarsest_first[first]][of_N]

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

    def parted(self, placed: Placed, window: int) -> Parted:
        owner_n = self.window_N[placed.number_n]
        earlier_n = self._turn_W[owner_n] < self._turn_W[window]
        return Parted(*(Placed(*(part[some] for part in placed)) for some in (owner_n == window, earlier_n)))


class Contents(Protocol):
    """Tokens of what samples wrote, by place."""

    def of(self, sample: int, number_n: np.ndarray) -> np.ndarray:
        """Float32 [n, d]."""

    def put(self, sample: int, number_n: np.ndarray, content_nxd: np.ndarray) -> None: ...


class Sample(NamedTuple):
    """What a sample says of the bins that a window draws."""

    window: int
    number: int  # of the sample
    own: Placed
    counts_nxg: np.ndarray  # as they were drawn
    share_nxg: np.ndarray  # rates, as a share of those from the H&E alone


class Written(NamedTuple):
    """Over the samples of a window, of the bins that it draws: rates as a share of those from the H&E alone."""

    window: int
    own: Placed
    mean_nxG: np.ndarray
    between_nxG: np.ndarray  # variance between samples


class Writer:
    """Draws samples of windows, a batch of them after the other."""

    def __init__(self, predictor: Predictor, cover: Cover, plan: WritingPlan, steps: Steps, log_depth: float):
        """log_depth: of the section, log of its mean detections per µm² of tissue."""
        self._predictor, self._cover, self._plan, self._steps = predictor, cover, plan, steps
        self._log_depth = log_depth

    def write(self, windows: Sequence[int], batch: Batch, contents: Contents, genes_g: np.ndarray,
              keep: Callable[[Sample], None], genes_of: Callable[[int], bool] = lambda sample: True
              ) -> Iterator[Written]:  # fmt: skip
        """All samples of the windows of a batch; nothing of it may be drawn again before its contents are wanted.

        genes_g: of which `keep` is told counts and shares, of the samples for which `genes_of` says so; else of none.
        """
        predictor, rows = self._predictor, len(batch.tile_BxT)
        batch = batch._replace(log_depth_BxW=np.full_like(batch.log_depth_BxW, self._log_depth))
        on_devices = predictor.placed_on_devices(batch)
        begun = predictor.call(begin, on_devices)
        sums = Sums.zero(begun.predicted, batch.measured_gene_BxWxG)
        parted = [self._plan.parted(self._cover.placed(batch, row, window), window)
                  for row, window in enumerate(windows)]  # fmt: skip
        pairs = [(row, sample) for sample in range(self._steps.samples) for row in range(len(parted))]
        for first in range(0, len(pairs), rows):
            some = pairs[first : first + rows]
            kept_g = genes_g if any(genes_of(sample) for _, sample in some) else genes_g[:0]
            order = self._order(batch, parted, windows, some, contents)
            window_R = np.array([row for row, _ in some] + [0] * (rows - len(some)), np.int32)
            sums, share_RxQxg, drawn = predictor.call(add_samples, on_devices, begun, window_R, order, kept_g, sums)
            share_RxQxg, content_RxQxd, counts_RxQxg = jax.device_get(
                (share_RxQxg, drawn.content_BxQxd, drawn.counts_BxQxg)
            )
            for at, (row, sample) in enumerate(some):
                own = parted[row].own
                contents.put(sample, own.number_n, content_RxQxd[at, own.slot_n])
                keep(Sample(windows[row], sample, own, counts_RxQxg[at, own.slot_n], share_RxQxg[at, own.slot_n]))
        mean_BxQxG, between_BxQxG = jax.device_get(averaged(sums, self._steps.samples))
        for row, (own, _) in enumerate(parted):
            yield Written(windows[row], own, mean_BxQxG[row, own.slot_n], between_BxQxG[row, own.slot_n])

    def _order(self, batch: Batch, parted: list[Parted], windows: Sequence[int], pairs: list[tuple[int, int]],
               contents: Contents) -> Order:  # fmt: skip
        """What samples write, each of a window, by its row of the batch, and a number; rows beyond are padding."""
        plan, R = self._plan, len(batch.bin_step_BxTxN)
        width = self._predictor.provenance.config.model.width
        before_Rxm = np.full((R, plan.per_window), -1, np.int32)
        content_Rxmxd = np.zeros((R, plan.per_window, width), np.float32)
        slot_KxRxn = np.full((plan.groups, R, plan.per_group), -1, np.int32)
        key_Rx2 = np.zeros((R, 2), np.uint32)
        for at, (row, sample) in enumerate(pairs):
            key, counter = [self._steps.seed, self._cover.section_key], [0, 0, windows[row], sample]
            rng = np.random.Generator(np.random.Philox(key=key, counter=counter))
            key_Rx2[at] = rng.integers(1 << 32, size=2, dtype=np.uint32)
            own, before = parted[row]
            before_Rxm[at, : len(before.slot_n)] = before.slot_n
            content_Rxmxd[at, : len(before.slot_n)] = contents.of(sample, before.number_n)
            x_n, y_n = batch.bin_xy_um_BxTxNx2[row].reshape(-1, 2)[own.slot_n].T
            group_n, place_n = plan.group(own.number_n, self._steps.order, x_n, y_n, self._cover.places.pitch_um, rng)
            slot_KxRxn[group_n, at, place_n] = own.slot_n
        return Order(before_Rxm, content_Rxmxd, slot_KxRxn, jax.random.wrap_key_data(key_Rx2))


def turns_of(corner_Wx2: np.ndarray, windows: np.ndarray, side_um: float) -> list[list[int]]:
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


def log_depth_of(total_N: np.ndarray, size_um: float) -> float:
    """Log of a section's mean detections per µm² of tissue. total_N: float64, expected detections of each place."""
    return float(np.log(total_N[holds_tissue(total_N)].mean() / size_um**2))


def holds_tissue(total_N: np.ndarray) -> np.ndarray:
    """Bool [N]: places of a section that are more than glass, by the expected detections of each."""
    return total_N > _GLASS * total_N.mean()
