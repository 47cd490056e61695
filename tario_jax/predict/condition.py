"""Gene maps of what was not measured, from what was: the same model, given contents in one pass.

Given are whole bins (half of every window, every other bin, a share of them), or a part of the panel in every bin; with
the H&E, or without it. What training never did is said where it is done: training hides no H&E, and shows no query the
content of its own bin.

No count that is to be predicted is ever handed to the model.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.model.model import Given, Tario
from tario_jax.predict.cover import Blend, Cover, Placed
from tario_jax.predict.generate import refuse_one_shot
from tario_jax.predict.maps import GeneMaps
from tario_jax.predict.predictor import Predictor
from tario_jax.tokens.batch import Batch
from tario_jax.tokens.capacity import count_capacity
from tario_jax.tokens.coarse import with_coarse
from tario_jax.tokens.window import Bins, Window, begin_bins

_GLASS = 255  # pixels in place of an H&E that nobody sees
BINS = ("half", "checkerboard", "random", "all", "coarse")


@dataclasses.dataclass(frozen=True)
class Condition:
    """What is given of a section. Raises `InputError` for what leaves nothing to predict, or is unknown.

    bins: "half": bands half a window wide, by turns, so that a window holds as much of both; "checkerboard": every
    other bin; "random": a share of the bins; "all": every bin, of a share of the genes; "coarse": the larger bins that
    training wrote first (data.coarse_um), which the others are parts of. share: of bins or genes, drawn
    by `seed`. he: whether the H&E is given too.
    """

    bins: str
    he: bool = True
    share: float = 0.5
    seed: int = 0

    def __post_init__(self):
        if self.bins not in BINS:
            raise InputError(f"condition: bins is {self.bins!r}; expected one of {', '.join(BINS)}")
        if not 0 < self.share < 1:
            raise InputError(f"condition: share is {self.share:g}; expected above 0 and below 1")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"condition: seed is {self.seed}; expected 0 to 2^64 - 1")

    @property
    def of_panel(self) -> bool:
        """Whether a part of the panel is given, not a part of the bins."""
        return self.bins == "all"

    def __str__(self) -> str:
        share = f"{self.share:g} of "
        what = {"half": "half of the tissue", "checkerboard": "every other bin", "random": f"{share}the bins",
                "all": f"{share}the genes", "coarse": "larger bins"}[self.bins]  # fmt: skip
        return f"one-shot, given {what}{'' if self.he else ' and no H&E'}"

    def given_bins(self, cover: Cover) -> np.ndarray:
        """Places whose counts are given, bool [N]: those of this pattern that were measured."""
        places, data = cover.places, cover.data
        match self.bins:
            case "half":
                given_N = np.floor(places.x_um_N / (data.window_um / 2)).astype(int) % 2 == 0
            case "checkerboard":
                column_N, row_N = (np.floor(at / places.pitch_um).astype(int) for at in (places.x_um_N, places.y_um_N))
                given_N = (column_N + row_N) % 2 == 0
            case "random":
                rng = np.random.Generator(np.random.Philox(key=[self.seed, cover.section_key]))
                given_N = rng.random(len(cover)) < self.share
            case "all":
                given_N = np.ones(len(cover), bool)
            case "coarse":
                return places.scale_N < places.scale_N.max()
        if not cover.section.has_spots:
            share_N = cover.section.measured_share(places.x_um_N, places.y_um_N, places.size_um)
            given_N &= share_N >= data.min_measured - 1e-6
        return given_N

    def given_genes(self, genes: int) -> np.ndarray:
        """Genes whose counts are given, bool [G]: the same for every section."""
        if not self.of_panel:
            return np.ones(genes, bool)
        rng = np.random.Generator(np.random.Philox(key=[self.seed, 0]))
        given_G = np.zeros(genes, bool)
        given_G[rng.permutation(genes)[: min(max(round(self.share * genes), 1), genes - 1)]] = True
        return given_G


class NothingAsked(InputError):
    """A section is given whole, or not at all: nothing of it is predicted from the rest."""


@dataclasses.dataclass(frozen=True)
class Conditioned:
    """Rates of what was asked: maps of all genes at the asked places, of which `asked_G` were not given."""

    maps: GeneMaps
    asked_G: np.ndarray  # bool


def predict_given(
    predictor: Predictor, corpus: Corpus, section: Section, condition: Condition, *, bin_um: float | None = None,
    overlap: float = 0.5, capacity: int = 0, progress: Callable[[int, int], None] | None = None,
) -> Conditioned:  # fmt: skip
    """Rates at the places of a section whose counts are not given, or of the genes that are not, from what is given.

    A bin is given only as far as it was measured; what is asked lies anywhere on the section, measured or not. The
    level of detection is left as the model reads it from the counts: it is the patient's. capacity: entries of counts a
    window, by default those that the section needs (sections in turn share a compiled program if it is given).

    Raises `InputError` for a model that reads no contents, a section without counts, and where no gene is in both
    panels; `NothingAsked` where no place is given, or none is left to predict.
    """
    refuse_one_shot(predictor, "prediction from measured bins")
    if not section.has_counts:
        raise InputError(f"{section.id}: holds no counts that could be given; expected detections or spots")
    if condition.he and not section.holds("he"):
        raise InputError(f"{section.id}: has no H&E; ask without it (he=False, --given=no-he)")
    capacity = capacity or entries_of_window(predictor, [section], bin_um)
    cover = predictor.cover(section, tissue=corpus.kind, bin_um=bin_um, overlap=overlap, count_capacity=capacity,
                            coarse=condition.bins == "coarse", he=condition.he)  # fmt: skip
    genes = len(predictor.panel)
    position_G = predictor.panel.positions(corpus.panel.symbols)  # of the corpus's genes, in the model's panel
    given_G = condition.given_genes(genes)
    told_G = np.zeros(genes, bool)
    told_G[position_G[(position_G >= 0) & section.measured_gene_G]] = True
    told_G &= given_G
    if not told_G.any():
        raise InputError(f"{section.id}: measured none of the genes that are to be given; check the panels")
    given_N = condition.given_bins(cover)
    read = functools.partial(_read, cover, given_N, position_G, told_G, condition.he)
    asked_N = np.ones(len(cover), bool) if condition.of_panel else ~given_N
    for left, what in ((given_N, "given"), (asked_N, "left to predict")):
        if not left.any():
            raise NothingAsked(f"{section.id}: of its {len(cover)} places none is {what} ({condition})")
    blend = Blend(len(cover), genes)
    for windows, batch in cover.batches(predictor.rows, read):
        placed = [cover.placed(batch, row, window) for row, window in enumerate(windows)]
        batch = _in_two_steps(batch, placed, given_N)
        given = _given(batch, told_G, condition.he)
        rates_BxQxG = np.asarray(predictor.call(Tario.rates, predictor.placed_on_devices(batch), given))
        # maps are of whole bins; what is given of a bin, and so asked of it too, may be a part
        rates_BxQxG = rates_BxQxG / np.maximum(batch.bin_measured_BxTxN.reshape(len(rates_BxQxG), -1, 1), 1e-3)
        for row, of_row in enumerate(placed):
            asked_n = asked_N[of_row.number_n]
            blend.add(Placed(*(part[asked_n] for part in of_row)), rates_BxQxG[row])
        if progress is not None:
            progress(windows[-1] + 1, len(cover.corners))
    maps = predictor.maps(cover, blend, corpus.kind, asked_N=asked_N, decoding=str(condition))
    return Conditioned(maps, ~given_G if condition.of_panel else np.ones(genes, bool))


def _in_two_steps(batch: Batch, placed: list[Placed], given_N: np.ndarray) -> Batch:
    """With the given bins as group 1, and all others as group 2, whose contents no query of theirs sees."""
    step_BxTxN = np.full_like(batch.bin_step_BxTxN, 2)
    for row, of_row in enumerate(placed):
        step_BxTxN[row].reshape(-1)[of_row.slot_n[given_N[of_row.number_n]]] = 1
    return batch._replace(bin_step_BxTxN=step_BxTxN)


def _given(batch: Batch, told_G: np.ndarray, he: bool) -> Given:
    """All queries see group 1: also those of its own bins, whose other genes may be asked."""
    rows, windows, padded = batch.measured_gene_BxWxG.shape
    told_BxWxG = np.broadcast_to(np.pad(told_G, (0, padded - len(told_G))), (rows, windows, padded))
    return Given(np.ones_like(batch.bin_step_BxTxN), told_BxWxG, np.full(rows, he))


def entries_of_window(predictor: Predictor, sections: list[Section], bin_um: float | None) -> int:
    """A capacity for counts that no window of these sections exceeds, a power of two."""
    trained = predictor.provenance.config.data
    bin_um = predictor.provenance.bin_um if bin_um is None else bin_um
    # these sections' own spots, whatever training made room for
    data = trained.of_one_scale(bin_um=bin_um, bin_mixture=(), windows_per_row=1, sequence="window", max_spots=0)
    most = count_capacity(sections, data).most * max(1, len(trained.coarse_um))
    return 1 << max(most - 1, 127).bit_length()


def _read(cover: Cover, given_N, position_G, told_G, he: bool, corner: tuple[float, float]) -> Window:
    """A window with the counts that are given and no other, of the model's genes."""
    if he:
        window = cover.window(corner)
    else:  # the section may have none
        side_px = round(cover.data.window_um / cover.data.he_um_per_px)
        bins = begin_bins(cover.section, *corner, cover.data, with_counts=False)()
        glass = np.full((side_px, side_px, 3), _GLASS, np.uint8)
        window = Window(cover.data.window_um, glass, bins, np.ones(cover.genes, bool))
    counted = begin_bins(cover.section, *corner, cover.data)()
    if cover.data.coarse_um:
        with_counts = with_coarse(window, counted, cover.data).coarse
        return dataclasses.replace(window, coarse=tuple(_of_genes(bins, position_G, told_G) for bins in with_counts))
    number_N = np.full(len(window.bins.x_um_N), -1)
    on = np.flatnonzero(window.bins.measured_N > 0)
    x_um_n, y_um_n = window.bins.x_um_N[on] + corner[0], window.bins.y_um_N[on] + corner[1]
    number_N[on] = cover.places.number(x_um_n, y_um_n, np.full(len(on), window.bins.size_um))
    given_n = (number_N >= 0) & given_N[number_N]
    bins = _of_genes(counted, position_G, told_G, given_n)
    measured_N = np.where(given_n, counted.measured_N, window.bins.measured_N)
    return dataclasses.replace(window, bins=dataclasses.replace(bins, measured_N=measured_N))


def _of_genes(bins: Bins, position_G, told_G, given_N: np.ndarray | None = None) -> Bins:
    """With the counts of told genes alone, numbered as the model does; of all bins, or of those that are given."""
    gene_E = position_G[bins.gene_E]
    kept_E = (gene_E >= 0) & told_G[gene_E]
    if given_N is not None:
        kept_E &= given_N[bins.bin_E]
    return dataclasses.replace(bins, bin_E=bins.bin_E[kept_E], gene_E=gene_E[kept_E], count_E=bins.count_E[kept_E])
