"""Which genes are evaluated, and in which order: decided on the training sections alone."""

import dataclasses

import numpy as np
import scipy.sparse

from tario_jax.evaluate.kept import Arrays
from tario_jax.evaluate.metrics import COMPOSITION_SCALE, mean_defined
from tario_jax.evaluate.moments import Measured
from tario_jax.evaluate.moran import Layout, morans_i, neighbour_weights

RANKED_BIN_UM = 36.0  # side of the bins that Moran's I is of, whatever is evaluated; spots are taken as they are


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Orders of genes; positions are among the genes under evaluation."""

    moran_G: np.ndarray
    moran_c_G: np.ndarray
    mean_G: np.ndarray  # count a bin
    sets: dict[str, np.ndarray]  # top_moran, top_mean, top_moran_c: best first
    order: np.ndarray  # every gene that may be ranked, highest Moran's I first


def standing(measured: Measured, x_um_N: np.ndarray, y_um_N: np.ndarray, pitch_um: float, layout: Layout) -> Arrays:
    """How the genes of a section stand: Moran's I of counts and composition, bins where seen, sums; [G] each.

    Composition uses only the bins with enough counts, with weights among those. Genes that were not measured: NaN.
    """
    kept = measured.kept_N
    counts, composed = measured.counts, measured.counts[kept]
    scale_N = COMPOSITION_SCALE / np.maximum(measured.total_N[kept], 1.0)
    composed = scipy.sparse.csr_array((np.log1p(composed.data * np.repeat(scale_N, np.diff(composed.indptr))),
                                       composed.indices, composed.indptr), shape=composed.shape)  # fmt: skip
    moran = {}
    for name, values, bins in (("moran", counts, slice(None)), ("moran_c", composed, kept)):
        i_G = morans_i(values, neighbour_weights(x_um_N[bins], y_um_N[bins], pitch_um, layout))
        moran[name] = np.where(measured.measured_G, i_G, np.nan)
    genes = counts.shape[1]
    return {
        **moran, "seen": np.bincount(counts.indices[counts.data > 0], minlength=genes).astype(np.float64),
        "sum": np.bincount(counts.indices, counts.data, minlength=genes), "bins": np.array(float(len(measured))),
        "measured": measured.measured_G,
    }  # fmt: skip


def candidate_genes(standings: list[Arrays], min_detected: float, mean_genes: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the panel of the G genes under evaluation, and which may enter a Moran ranking, bool [G].

    A gene may if it was seen in at least `min_detected` of the bins of the sections that measured it (and at all).
    The genes of highest mean are evaluated whether or not they may.
    """
    seen_G, bins_G = sum(s["seen"] for s in standings), sum(s["bins"] * s["measured"] for s in standings)
    mean_G = sum(s["sum"] for s in standings) / np.maximum(bins_G, 1)
    detected_G = (seen_G > 0) & (seen_G >= min_detected * bins_G)
    highest = np.argsort(-mean_G, kind="stable")[:mean_genes]
    evaluated_G = detected_G.copy()
    evaluated_G[highest[mean_G[highest] > 0]] = True
    genes = np.flatnonzero(evaluated_G)
    return genes, detected_G[genes]


def rank_genes(standings: list[Arrays], genes: np.ndarray, rankable_G: np.ndarray, top_genes: int,
               mean_genes: int) -> Ranking:  # fmt: skip
    """Ranks the genes under evaluation by mean Moran's I of counts and of composition over the sections, and by mean
    count.

    genes, rankable_G: as from `candidate_genes`; top_genes, mean_genes: lengths of the sets by Moran's I and by mean.
    """
    moran_G, moran_c_G = (mean_defined(np.stack([s[name][genes] for s in standings])) for name in ("moran", "moran_c"))
    bins_G = sum(s["bins"] * s["measured"][genes] for s in standings)
    mean_G = sum(s["sum"][genes] for s in standings) / np.maximum(bins_G, 1)
    order = best_first(np.where(rankable_G, moran_G, np.nan))
    sets = {
        "top_moran": order[:top_genes],
        "top_mean": best_first(mean_G)[:mean_genes],
        "top_moran_c": best_first(np.where(rankable_G, moran_c_G, np.nan))[:top_genes],
    }
    return Ranking(moran_G, moran_c_G, mean_G, sets, order)


def best_first(value_G: np.ndarray) -> np.ndarray:
    """Positions by falling value; NaN is left out, ties keep the panel's order."""
    order = np.argsort(-np.where(np.isfinite(value_G), value_G, -np.inf), kind="stable")
    return order[: np.isfinite(value_G).sum()]
