"""One composition of the whole panel, from tissue of which each part was measured with a panel of its own."""

import numpy as np

_MOST_ROUNDS = 1000
_SETTLED = 1e-6  # of a share, relative


def composition(found_G: np.ndarray, total_M: np.ndarray, masks_MxG: np.ndarray) -> np.ndarray:
    """Share of each gene [G], above 0, sum 1: that of maximum likelihood, under which M masks found what they did.

    found_G: detections of all masks together; total_M: of each; masks_MxG: bool, the genes that it measured. What a
    mask lacks leaves more to its other genes, so counts are not pooled: the shares are the fixed point of
    found = Σ_m total_m · share within m. Between masks that have no gene in common nothing is known, and the ratio
    stays that of their detections. Of a gene that no mask measured nothing is known either: half a detection.
    """
    any_G = masks_MxG.any(0)
    counted_G = np.where(any_G, found_G + 0.5, 0.0)  # a gene that was never found is rare, not absent
    of_all_G = counted_G / max(counted_G.sum(), 0.5)
    for _ in range(_MOST_ROUNDS if len(masks_MxG) > 1 else 0):
        expected_G = (total_M / np.maximum(masks_MxG @ of_all_G, 1e-12)) @ masks_MxG
        after_G = counted_G / np.maximum(expected_G, 1e-12)
        after_G /= max(after_G.sum(), 1e-12)
        settled = np.abs(after_G - of_all_G).max(where=any_G, initial=0.0) <= _SETTLED * of_all_G.max()
        of_all_G = after_G
        if settled:
            break
    if any_G.all():
        return of_all_G
    of_all_G = np.where(any_G, of_all_G, 0.5 / max(found_G.sum(), 0.5))
    return of_all_G / of_all_G.sum()
