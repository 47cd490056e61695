"""Which genes are evaluated, and in which order: decided on the training sections alone."""

import dataclasses

import numpy as np

from tario_jax.evaluate.controls import Measured
from tario_jax.evaluate.metrics import mean_defined
from tario_jax.evaluate.moran import morans_i, neighbour_weights


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Orders of genes; positions are among the genes under evaluation."""

    moran_G: np.ndarray
    moran_c_G: np.ndarray
    mean_G: np.ndarray  # count a bin
    sets: dict[str, np.ndarray]  # top_moran, top_mean, top_moran_c: best first
    order: np.ndarray  # every gene that may be ranked, highest Moran's I first


def candidate_genes(counts_S: list[np.ndarray], measured_S: list[np.ndarray], min_detected: float, mean_genes: int):
    """Positions in the panel of the genes under evaluation, and which of them may enter a Moran ranking.

    A gene may if it was seen in at least `min_detected` of the bins of the sections that measured it (and at all).
    The genes of highest mean are evaluated whether or not they may.
    """
    seen_G = sum((counts_NxG > 0).sum(0) * m_G for counts_NxG, m_G in zip(counts_S, measured_S, strict=True))
    bins_G = sum(len(counts_NxG) * m_G for counts_NxG, m_G in zip(counts_S, measured_S, strict=True))
    total_G = sum(c.sum(0, dtype=np.float64) * m_G for c, m_G in zip(counts_S, measured_S, strict=True))
    mean_G = total_G / np.maximum(bins_G, 1)
    detected_G = (seen_G > 0) & (seen_G >= min_detected * bins_G)
    highest = np.argsort(-mean_G, kind="stable")[:mean_genes]
    evaluated_G = detected_G.copy()
    evaluated_G[highest[mean_G[highest] > 0]] = True
    genes = np.flatnonzero(evaluated_G)
    return genes, detected_G[genes]


def rank_genes(
    sections, measured_S: list[Measured], rankable_G: np.ndarray, top_genes: int, mean_genes: int
) -> Ranking:
    """Ranks the genes under evaluation by mean Moran's I of counts and composition, and by mean count.

    `sections` carry x_um_N, y_um_N, pitch_um and layout; measured_S are their values. Composition uses only the bins
    with enough counts, with weights among those.
    """
    moran_S, moran_c_S = [], []
    for section, measured in zip(sections, measured_S, strict=True):
        for values, form in ((moran_S, "counts"), (moran_c_S, "composition")):
            bins = measured.bins(form)
            where = (section.x_um_N[bins], section.y_um_N[bins], section.pitch_um, section.layout)
            values.append(morans_i(measured.x[form], neighbour_weights(*where)))
    moran_G, moran_c_G = mean_defined(np.stack(moran_S)), mean_defined(np.stack(moran_c_S))
    bins_G = sum(len(m.total_N) * m.measured_G for m in measured_S)
    mean_G = sum(m.counts_NxG.sum(0) for m in measured_S) / np.maximum(bins_G, 1)
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
