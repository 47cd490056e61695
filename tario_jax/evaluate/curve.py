"""Mean r over the k genes of highest Moran's I, for k = 1 … G."""

import dataclasses

import numpy as np

from tario_jax.evaluate.intervals import Resampling, Scores, interval, resample

SAMPLES = 200  # the ends of a band, not a decision: a fifth of the samples of the tables
VALUES_AT_ONCE = 1_000_000  # [samples, G] of a whole transcriptome would be gigabytes


def curve_sizes(genes: int) -> np.ndarray:
    """Every k up to 100, then about 200 more in equal ratios up to all genes: int [K], rising."""
    if genes <= 100:
        return np.arange(1, genes + 1)
    return np.unique(np.concatenate([np.arange(1, 101), np.geomspace(100, genes, 200).round().astype(int)]))


def top_k_means(r_BxG: np.ndarray, sizes_K: np.ndarray) -> np.ndarray:
    """Mean over the first k columns with undefined left out, [B, K]; NaN while nothing is defined."""
    defined_BxG = np.isfinite(r_BxG)
    total_BxK = np.cumsum(np.where(defined_BxG, r_BxG, 0.0), 1)[:, sizes_K - 1]
    number_BxK = np.cumsum(defined_BxG, 1)[:, sizes_K - 1]
    return np.where(number_BxK > 0, total_BxK / np.maximum(number_BxK, 1), np.nan)


def curve(r_G: np.ndarray, order: np.ndarray, sizes_K: np.ndarray) -> np.ndarray:
    """Mean of r over the first k genes of `order` (best first), [K]."""
    return top_k_means(r_G[order][None], sizes_K)[0]


def curve_interval(
    scores: Scores, order: np.ndarray, sizes_K: np.ndarray, resampling: Resampling
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % interval of the curve at every k, each [K], from the first 200 samples."""
    weights = [resampling.weights_BxS] if resampling.by == "patient" else list(resampling.weights_S)
    parts, at_once = [], max(1, VALUES_AT_ONCE // len(order))
    for start in range(0, min(SAMPLES, len(weights[0])), at_once):
        some = [weights_BxK[start : min(start + at_once, SAMPLES)] for weights_BxK in weights]
        fields = {"weights_BxS": some[0]} if resampling.by == "patient" else {"weights_S": tuple(some)}
        parts.append(top_k_means(resample(scores, order, dataclasses.replace(resampling, **fields)), sizes_K))
    samples_BxK = np.concatenate(parts)
    ends = np.array([interval(samples_BxK[:, k]) for k in range(len(sizes_K))])
    return ends[:, 0], ends[:, 1]
