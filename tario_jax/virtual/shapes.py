"""Shapes on the plan of a section: scattered places, discs, walls between territories, vessels."""

import dataclasses

import numpy as np
from scipy import spatial

FAR_UM = 1000.0
"""Distance to what does not exist."""


def scatter(rng: np.random.Generator, side_um: float, per_mm2: float, margin_um: float, of: int = 1) -> np.ndarray:
    """Places of a Poisson process on a square and its margin, `of` proposals each, float64 [K, of, 2] (x, y)."""
    count = rng.poisson(per_mm2 * (side_um + 2 * margin_um) ** 2 * 1e-6)
    return rng.uniform(-margin_um, side_um + margin_um, (count, of, 2))


def lattice(rng: np.random.Generator, side_um: float, pitch_um: float, jitter: float = 0.27) -> np.ndarray:
    """Places of a jittered hexagonal lattice over a square and a pitch around it, float64 [K, 2] (x, y)."""
    count = int(side_um / pitch_um) + 4
    column, row = np.meshgrid(np.arange(count), np.arange(int(count * 1.16) + 1))
    places = np.stack([column + 0.5 * (row % 2), row * 0.866], -1).reshape(-1, 2) * pitch_um - 1.5 * pitch_um
    return places + rng.uniform(-jitter, jitter, places.shape) * pitch_um


@dataclasses.dataclass(frozen=True)
class Discs:
    """Round things: centres and radii in µm."""

    x_um_K: np.ndarray
    y_um_K: np.ndarray
    radius_um_K: np.ndarray

    def __len__(self) -> int:
        return len(self.radius_um_K)

    def distance_um(self, x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
        """From each place to the border of the union, negative inside; FAR_UM where there is no disc.

        Radii within a set are of one order: the nearest border is looked for among the five nearest centres.
        """
        if not len(self):
            return np.full(np.shape(x_um), FAR_UM)
        tree = spatial.cKDTree(np.stack([self.x_um_K, self.y_um_K], 1))
        distance, which = tree.query(np.stack([x_um, y_um], -1), k=[*range(1, min(5, len(self)) + 1)])
        return (distance - self.radius_um_K[which]).min(-1)


def lobes(rng: np.random.Generator, places: np.ndarray, radius_um_K: np.ndarray, most: int,
          reach: float) -> tuple[Discs, np.ndarray]:  # fmt: skip
    """Each place becomes a disc with up to `most` − 1 smaller ones beside it, so that outlines are lobed.

    reach: how far a lobe's centre lies from the place, in radii of the first disc. Also the place of each disc.
    """
    turn = rng.uniform(0, 2 * np.pi, (len(places), most))
    out = reach * rng.uniform(0.5, 1.0, (len(places), most)) * radius_um_K[:, None]
    out[:, 0] = 0
    size = rng.uniform(0.55, 0.9, (len(places), most))
    size[:, 0] = 1
    there = np.arange(most) <= rng.integers(0, most, len(places))[:, None]
    x = places[:, 0, None] + out * np.cos(turn)
    y = places[:, 1, None] + out * np.sin(turn)
    return Discs(x[there], y[there], (radius_um_K[:, None] * size)[there]), np.nonzero(there)[0]


def stems(rng: np.random.Generator, places: np.ndarray, length_um: float, radius_um: float) -> Discs:
    """Branching stems, as from each place in a random direction: beads along a stem and two side branches."""
    step_um = 0.8 * radius_um
    parts = []
    turn = rng.uniform(0, 2 * np.pi, len(places))
    length_um_K = length_um * rng.uniform(0.5, 1.25, len(places))
    bend = rng.normal(0, 0.35, len(places))
    for branch, (start, share, side) in enumerate(((-0.5, 1.0, 0.0), (-0.1, 0.55, 1.0), (0.2, 0.5, -1.0))):
        along = np.arange(0, length_um * 1.25, step_um)[None] * np.ones((len(places), 1))
        there = along < share * length_um_K[:, None]
        angle = (turn + side * rng.uniform(0.7, 1.3, len(places)))[:, None] + bend[:, None] * along / length_um
        x = places[:, 0, None] + start * length_um_K[:, None] * np.cos(turn)[:, None] + along * np.cos(angle)
        y = places[:, 1, None] + start * length_um_K[:, None] * np.sin(turn)[:, None] + along * np.sin(angle)
        radius = radius_um * (1.15 - 0.3 * (branch > 0) - 0.35 * along / (share * length_um_K[:, None] + 1))
        radius = radius * rng.uniform(0.85, 1.2, radius.shape)
        parts.append((x[there], y[there], radius[there]))
    return Discs(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def walls_um(places: np.ndarray, group_K: np.ndarray, x_um: np.ndarray, y_um: np.ndarray):
    """Distance from each place to the border of its territory, and the position of its centre among `places`.

    A territory is all that is nearest to the centres of one group (a union of Voronoi cells). The distance is that to
    the bisector of the nearest centre and the nearest one of another group.
    """
    distance, which = spatial.cKDTree(places).query(np.stack([x_um, y_um], -1), k=[*range(1, min(6, len(places)) + 1)])
    first = which[..., 0]
    other = np.argmax(group_K[which] != group_K[first][..., None], -1)[..., None]
    far = np.take_along_axis(distance, other, -1)[..., 0]
    second = np.take_along_axis(which, other, -1)[..., 0]
    apart_um = np.sqrt(((places[first] - places[second]) ** 2).sum(-1))
    wall_um = (far**2 - distance[..., 0] ** 2) / np.maximum(2 * apart_um, 1e-6)
    return np.where(other[..., 0] > 0, wall_um, FAR_UM), first


@dataclasses.dataclass(frozen=True)
class Vessels:
    """K vessels cut across or aslant: their open lumens are ellipses."""

    x_um_K: np.ndarray
    y_um_K: np.ndarray
    angle_K: np.ndarray
    long_um_K: np.ndarray  # semi-axes
    radius_um_K: np.ndarray

    def __len__(self) -> int:
        return len(self.radius_um_K)

    def beads(self) -> tuple[Discs, np.ndarray]:
        """The lumens as unions of discs that touch the ellipse from within, and the vessel of each disc."""
        count_K = 1 + 2 * np.ceil(self.long_um_K / self.radius_um_K - 1).astype(np.int64)
        owner = np.repeat(np.arange(len(self)), count_K)
        index = np.arange(len(owner)) - np.repeat(np.cumsum(count_K) - count_K, count_K)
        share = 0.94 * (2 * index / np.maximum(count_K[owner] - 1, 1) - 1) * (count_K[owner] > 1)
        focus_um = np.sqrt(self.long_um_K**2 - self.radius_um_K**2)[owner]
        x = share * focus_um * np.cos(self.angle_K[owner])
        y = share * focus_um * np.sin(self.angle_K[owner])
        radius_um = self.radius_um_K[owner] * np.sqrt(1 - share**2)
        return Discs(self.x_um_K[owner] + x, self.y_um_K[owner] + y, radius_um), owner

    def outline(self, rng: np.random.Generator, out_um: float, step_um: float) -> tuple[np.ndarray, np.ndarray]:
        """Places about `step_um` apart on the outlines, out_um beyond the lumens, [N, 2], and tangents [N]."""
        a, b = self.long_um_K + out_um, self.radius_um_K + out_um
        round_um_K = np.pi * (3 * (a + b) - np.sqrt((3 * a + b) * (a + 3 * b)))  # Ramanujan
        count_K = np.maximum(2, np.round(round_um_K / step_um)).astype(np.int64)
        owner = np.repeat(np.arange(len(self)), count_K)
        index = np.arange(len(owner)) - np.repeat(np.cumsum(count_K) - count_K, count_K)
        turn = 2 * np.pi * (index + rng.uniform(-0.3, 0.3, len(owner)) + rng.random(len(self))[owner]) / count_K[owner]
        a, b, angle = a[owner], b[owner], self.angle_K[owner]
        u, v = a * np.cos(turn), b * np.sin(turn)
        cos, sin = np.cos(angle), np.sin(angle)
        places = np.stack([self.x_um_K[owner] + u * cos - v * sin, self.y_um_K[owner] + u * sin + v * cos], 1)
        return places, angle + np.arctan2(b * np.cos(turn), -a * np.sin(turn))
