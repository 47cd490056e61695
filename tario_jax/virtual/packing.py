"""Cells side by side: random places that keep their distance."""

from collections.abc import Callable

import numpy as np
from scipy import spatial

PROPOSALS = 3.0
"""Proposals by area of the least spacing: enough that few more would find room."""

CROWDED_UM = 9.0


def pack(rng: np.random.Generator, side_um: float, least_um: float, spacing_at: Callable,
         shape_at: Callable) -> np.ndarray:  # fmt: skip
    """Places no nearer to each other than the spacing there (Poisson discs), float64 [N, 2] (x, y).

    spacing_at(x, y): the spacing in µm, at least least_um; inf where no cell lies. shape_at(x, y): the
    direction in which cells are drawn out, radians, and by how much; the distance is measured in units of that shape.
    Proposals in a random order are taken where no taken one is too near: a maximal independent set, found in rounds.
    """
    proposals = rng.random((int(PROPOSALS * (side_um / least_um) ** 2), 2)) * side_um
    lottery = rng.random(len(proposals))
    own_um = spacing_at(*proposals.T)
    chosen = lottery < (least_um / own_um) ** 2
    proposals, own_um = proposals[chosen], own_um[chosen]
    if not len(proposals):
        return proposals
    angle, stretch = shape_at(*proposals.T)
    first, second = _pairs(proposals, own_um, float(stretch.max()))
    x_um, y_um = (proposals[second] - proposals[first]).T
    cos, sin = np.cos(angle)[first], np.sin(angle)[first]
    along_um, across_um = (x_um * cos + y_um * sin) / stretch[first], (y_um * cos - x_um * sin) * stretch[first]
    near = along_um**2 + across_um**2 < (0.5 * (own_um[first] + own_um[second])) ** 2
    first, second = first[near], second[near]
    taken = np.zeros(len(proposals), bool)
    free = np.ones(len(proposals), bool)
    while free.any():
        live = free[first] & free[second]
        first, second = first[live], second[live]
        blocked = np.zeros(len(proposals), bool)
        blocked[second] = True
        new = free & ~blocked
        taken |= new
        free &= ~new
        free[second[new[first]]] = False
    return proposals[taken]


def _pairs(places: np.ndarray, own_um: np.ndarray, stretch: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that could be too near, the earlier of each first: it has the right of way.

    Crowded and roomy places are paired apart, since few pairs of the crowded reach as far as the roomy do.
    """
    crowded = own_um < CROWDED_UM
    part = np.flatnonzero(crowded), np.flatnonzero(~crowded)
    tree = [spatial.cKDTree(places[which]) if len(which) else None for which in part]
    most_um = [float(own_um[which].max(initial=0)) * stretch for which in part]
    found = [
        which[side.query_pairs(reach_um, output_type="ndarray")]
        for which, side, reach_um in zip(part, tree, most_um, strict=True)
        if side is not None
    ]
    if len(found) == 2:
        mixed = tree[0].sparse_distance_matrix(tree[1], 0.5 * sum(most_um), output_type="ndarray")
        found.append(np.stack([part[0][mixed["i"]], part[1][mixed["j"]]], 1))
    pairs = np.concatenate(found)
    return pairs.min(1), pairs.max(1)
