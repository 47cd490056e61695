"""Ways of decoding on one section: each prediction against the measured counts of the same bins and genes."""

import dataclasses
import time

import numpy as np
import scipy.spatial

from tario_jax.corpus.read import Corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate.bins import grid_counts, grid_places, whole_bins
from tario_jax.evaluate.decoding.calibration import LEVELS, coverage, crps_mixture, crps_samples, randomised_pit
from tario_jax.evaluate.decoding.spread import POISSON, Spread, fit_spread
from tario_jax.evaluate.metrics import correlations, mean_defined, pearson_by_gene
from tario_jax.evaluate.moran import Layout, morans_i, neighbour_weights
from tario_jax.evaluate.section_bins import least_total
from tario_jax.predict.condition import Condition, NothingAsked, predict_given
from tario_jax.predict.generate import Samples, Steps, generate_section
from tario_jax.predict.maps import GeneMaps
from tario_jax.predict.predictor import Predictor
from tario_jax.predict.same_places import same_places

ONE_SHOT = "one-shot"
CONDITIONS = {  # what --given names
    "half": Condition("half"), "checkerboard": Condition("checkerboard"), "random": Condition("random"),
    "panel": Condition("all"), "coarse": Condition("coarse"), "no-he": Condition("checkerboard", he=False),
}  # fmt: skip
NEIGHBOURS = 8
_LEAST_BINS = 8  # of those that are asked: fewer have no spatial correlation to speak of

Measures = dict[str, np.ndarray]
"""Of one section, by "way/measure": a value a scored gene [g], NaN where it is undefined, or one number."""


@dataclasses.dataclass(frozen=True)
class Truth:
    """What was measured of a section; N bins that count, or spots, g scored genes, G genes of the model's panel."""

    x_um_N: np.ndarray
    y_um_N: np.ndarray
    pitch_um: float
    layout: Layout
    share_N: np.ndarray  # of each place, that was measured
    counts_Nxg: np.ndarray  # NaN for genes that the section did not measure
    total_N: np.ndarray  # over the genes that it measured and the model knows
    common_G: np.ndarray  # bool, those genes

    def __len__(self) -> int:
        return len(self.x_um_N)

    def enough(self, min_total: int) -> np.ndarray:
        """Places with counts enough for composition, bool [N]; min_total: of bins of 36 µm, others by their area."""
        return self.total_N >= least_total(min_total, self.pitch_um, self.layout)

    def of(self, kept: np.ndarray) -> "Truth":
        """At some of the places: positions, or a mask of them, bool [N]."""
        of_places = {name: getattr(self, name)[kept] for name in ("x_um_N", "y_um_N", "share_N", "counts_Nxg",
                                                                  "total_N")}  # fmt: skip
        return dataclasses.replace(self, **of_places)

    def spread(self, values_Nxg: np.ndarray) -> np.ndarray:
        """Moran's I by gene on these places, NaN of what is constant, as genes are that were not measured."""
        weights_NxN = neighbour_weights(self.x_um_N, self.y_um_N, self.pitch_um, self.layout)
        return morans_i(np.nan_to_num(values_Nxg), weights_NxN)


def read_truth(section: Section, corpus: Corpus, predictor: Predictor, genes: np.ndarray, bin_um: float) -> Truth:
    """The places of a section that count, and what was measured there.

    genes: positions in the model's panel, [g]; bin_um: side of the bins, of no account where there are spots.
    """
    in_corpus_G = corpus.panel.positions(predictor.panel.symbols)
    common_G = (in_corpus_G >= 0) & section.measured_gene_G[in_corpus_G]
    if section.has_spots:
        spots = section.spots
        x_um_N, y_um_N, pitch_um, layout = spots.x_um_N, spots.y_um_N, spots.pitch_um, "spots"
        counts_NxG, share_N, kept = spots.dense(len(corpus.panel)), np.ones(len(spots)), slice(None)
    else:
        section.check_bins(bin_um)
        columns, rows = whole_bins(section, bin_um)
        x_um_N, y_um_N, share_N, kept = _bins(section, predictor, bin_um)
        pitch_um, layout = bin_um, "square"
        counts_NxG = grid_counts(section.all_detections(), len(corpus.panel), columns, rows, bin_um)
    counts_NxG = np.asarray(counts_NxG[kept], np.float64)
    counts_Nxg = np.where(common_G[genes], counts_NxG[:, in_corpus_G[genes]], np.nan)
    return Truth(x_um_N[kept], y_um_N[kept], pitch_um, layout, np.minimum(share_N[kept], 1.0), counts_Nxg,
                 counts_NxG[:, in_corpus_G[common_G]].sum(1), common_G)  # fmt: skip


def bins_that_count(section: Section, predictor: Predictor, bin_um: float) -> int:
    """How many places `read_truth` finds."""
    return len(section.placed_spots if section.has_spots else _bins(section, predictor, bin_um)[-1])


def _bins(section: Section, predictor: Predictor, bin_um: float) -> tuple[np.ndarray, ...]:
    """Centres x and y, and the measured share, of the whole bins of a section; positions of those that count."""
    x_um_N, y_um_N = grid_places(*whole_bins(section, bin_um), bin_um)
    share_N = section.measured_share(x_um_N, y_um_N, bin_um)
    return x_um_N, y_um_N, share_N, np.flatnonzero(share_N >= predictor.provenance.config.data.min_measured - 1e-6)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A section on which ways of decoding are compared, and how it is read."""

    predictor: Predictor
    corpus: Corpus
    section: Section
    truth: Truth
    genes: np.ndarray  # [g] positions of the scored ones in the model's panel
    bin_um: float | None  # None of spots
    overlap: float
    min_total: int


def measure_steps(of: Subject, steps: Steps, spread: Spread) -> Measures:
    """r, CRPS, coverage, smoothness and seconds of one way of generating; K = 1 is one-shot.

    spread: of counts around the rates of this way.
    """
    predictor, section, truth, genes = of.predictor, of.section, of.truth, of.genes
    asked = {"tissue": of.corpus.kind, "bin_um": of.bin_um, "overlap": of.overlap}
    began = time.monotonic()
    if steps.one_shot:  # what a user waits for: nothing is drawn
        predictor.predict_section(section, **asked)
        seconds = time.monotonic() - began
    maps, samples = generate_section(predictor, section, steps, genes=genes, **asked)
    if not steps.one_shot:
        seconds = time.monotonic() - began
    at_N = maps.rows_at(truth.x_um_N, truth.y_um_N)
    found = _scores(truth, *_read(maps, at_N, truth, genes), of.min_total)
    found |= _fit(truth, samples, at_N, steps.seed, spread)
    moved_Nxg = (maps.rates_NxG[:, genes] * samples.moved_Nxg)[at_N] * truth.share_N[:, None]
    r_of_mean = pearson_by_gene(truth.counts_Nxg, moved_Nxg)
    found["counts_r_of_mean"] = np.where(np.isnan(found["counts_r"]), np.nan, r_of_mean)
    # of the same genes as that of the measured counts; a rare gene may be drawn nowhere in one of the samples
    known_g = np.isfinite(truth.spread(truth.counts_Nxg))
    drawn_g = mean_defined(np.stack([truth.spread(counts_Nxg[at_N]) for counts_Nxg in samples.counts_SxNxg]))
    for name, moran_g in (("moran", truth.spread(maps.rates_NxG[np.ix_(at_N, genes)])), ("moran_drawn", drawn_g)):
        found[name] = np.where(known_g, moran_g, np.nan)
    found["seconds"] = np.float64(seconds)
    return found


def measure_given(of: Subject, condition: Condition, one_shot: GeneMaps, capacity: int) -> Measures:
    """r on what was asked, of the model, of one-shot and of the mean of the nearest given bins, as "who/measure".

    Where larger bins are given, that mean is an even share of the smallest of them that a bin is part of.
    """
    predictor, truth, genes = of.predictor, of.truth, of.genes
    nothing = np.full(len(genes), np.nan)
    readers = ("model", ONE_SHOT) if condition.of_panel else ("model", ONE_SHOT, "neighbours")
    undefined = {f"{who}/{form}_r": nothing for who in readers for form in ("counts", "composition")}
    try:
        found = predict_given(predictor, of.corpus, of.section, condition, bin_um=of.bin_um, overlap=of.overlap,
                              capacity=capacity)  # fmt: skip
    except NothingAsked:  # as of a section no wider than a band of half of it
        return undefined
    at_N = same_places((found.maps.x_um_N, found.maps.y_um_N), (truth.x_um_N, truth.y_um_N))
    asked = np.flatnonzero(at_N >= 0)
    if len(asked) < _LEAST_BINS:
        return undefined
    here = truth.of(asked)
    here = dataclasses.replace(here, counts_Nxg=np.where(found.asked_G[genes], here.counts_Nxg, np.nan))
    by_reader = {
        "model": _read(found.maps, at_N[asked], here, genes),
        ONE_SHOT: _read(one_shot, one_shot.rows_at(here.x_um_N, here.y_um_N), here, genes),
    }
    if condition.bins == "coarse":
        by_reader["neighbours"] = even_shares(here, predictor.provenance.config.data.coarse_um[-1])
    elif not condition.of_panel:
        by_reader["neighbours"] = nearest_means(truth.of(np.flatnonzero(at_N < 0)), here)
    return {f"{who}/{name}": value for who, values in by_reader.items()
            for name, value in _scores(here, *values, of.min_total).items()}  # fmt: skip


def nearest_means(given: Truth, asked: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Counts [N, g] and totals [N] of the asked places, as the mean of those of the 8 nearest given ones."""
    tree = scipy.spatial.cKDTree(np.stack([given.x_um_N, given.y_um_N], 1))
    number = min(NEIGHBOURS, len(given))
    _, near_Nxk = tree.query(np.stack([asked.x_um_N, asked.y_um_N], 1), number)
    near_Nxk = near_Nxk.reshape(len(asked), number)
    return (np.nan_to_num(given.counts_Nxg)[near_Nxk].mean(1) * asked.share_N[:, None],
            given.total_N[near_Nxk].mean(1) * asked.share_N)  # fmt: skip


def even_shares(truth: Truth, side_um: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts [N, g] and totals [N] of places as if those of each larger square lay evenly in it."""
    squares_Nx2 = np.stack([truth.x_um_N // side_um, truth.y_um_N // side_um], 1)
    _, square_N, number_M = np.unique(squares_Nx2, axis=0, return_inverse=True, return_counts=True)
    square_N = square_N.ravel()
    sums_Mxg, total_M = np.zeros((len(number_M), truth.counts_Nxg.shape[1])), np.zeros(len(number_M))
    np.add.at(sums_Mxg, square_N, np.nan_to_num(truth.counts_Nxg))
    np.add.at(total_M, square_N, truth.total_N)
    return sums_Mxg[square_N] / number_M[square_N, None], total_M[square_N] / number_M[square_N]


def _scores(truth: Truth, predicted_Nxg: np.ndarray, predicted_total_N: np.ndarray, min_total: int) -> Measures:
    """r in counts and in composition, NaN for genes that are not to be scored here."""
    scored = np.isfinite(truth.counts_Nxg).all(0)
    counts_r, composition_r = correlations(np.nan_to_num(truth.counts_Nxg), truth.total_N, predicted_Nxg,
                                           predicted_total_N, truth.enough(min_total))  # fmt: skip
    return {"counts_r": np.where(scored, counts_r, np.nan), "composition_r": np.where(scored, composition_r, np.nan)}


def _read(maps: GeneMaps, at_N: np.ndarray, truth: Truth, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rates [N, g] and totals [N] of the measured share of the places."""
    rates_NxG = maps.rates_NxG[at_N]
    total_N = rates_NxG[:, truth.common_G].sum(1, dtype=np.float64)
    return rates_NxG[:, genes] * truth.share_N[:, None], total_N * truth.share_N


def spread_of(predictor: Predictor, corpus: Corpus, sections: list[Section], genes: np.ndarray, steps: Steps, *,
              bin_um: float, overlap: float) -> Spread:  # fmt: skip
    """How counts of these sections, which no score may be of, scatter around the rates of a way of generating."""
    counts, rates = [], []
    for section in sections:
        truth = read_truth(section, corpus, predictor, genes, bin_um)
        maps, samples = generate_section(predictor, section, steps, genes=genes, tissue=corpus.kind, overlap=overlap,
                                         bin_um=None if section.has_spots else bin_um)  # fmt: skip
        section.close()
        at_N = maps.rows_at(truth.x_um_N, truth.y_um_N)
        rates_SxNxg = samples.rates_SxNxg[:, at_N] * truth.share_N[:, None]
        counts.append(truth.counts_Nxg.ravel())
        rates.append(rates_SxNxg.reshape(len(rates_SxNxg), -1))
    return fit_spread(np.concatenate(counts), np.concatenate(rates, 1), np.random.default_rng(steps.seed))


def _fit(truth: Truth, samples: Samples, at_N: np.ndarray, seed: int, spread: Spread) -> Measures:
    """CRPS of the mixture, with its spread and without, and of the draws; coverage; by gene."""
    rates_SxNxg = samples.rates_SxNxg[:, at_N] * truth.share_N[:, None]
    scored = np.isfinite(truth.counts_Nxg).all(0)
    counts_Nxg = np.nan_to_num(truth.counts_Nxg)
    # draws are of whole bins: of one that was measured in part, each of its detections was in that part by chance
    whole_SxNxg = samples.counts_SxNxg[:, at_N].astype(np.int64)
    drawn_SxNxg = np.random.default_rng(seed).binomial(whole_SxNxg, truth.share_N[:, None])
    found = {"crps_drawn": crps_samples(counts_Nxg, drawn_SxNxg).mean(0)}
    for name, around in (("", spread), ("_poisson", POISSON)):
        pit_Nxg = randomised_pit(counts_Nxg, rates_SxNxg, np.random.default_rng(seed), around)
        found[f"crps{name}"] = crps_mixture(counts_Nxg, rates_SxNxg, around).mean(0)
        found |= {f"covered{name}_{round(100 * level)}": coverage(pit_Nxg, level) for level in LEVELS}
    return {name: np.where(scored, value, np.nan) for name, value in found.items()}
