"""How the tumour cells of each pattern stand together, and the normal glands of each organ.

A layout is two signed distances on the plan's grid. Where `lumen_um` < 0 there is open space; else where
`gland_um` < 0 there is epithelium, its depth −gland_um below the basement membrane; else there is stroma.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import ndimage, spatial

from tario_jax.virtual.diagnoses import Diagnosis, Pattern
from tario_jax.virtual.shapes import FAR_UM, Discs, lattice, lobes, stems, walls_um


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a pattern is laid out: warped coordinates of the grid, and the bed of the tumour."""

    side_um: float
    x_um: np.ndarray
    y_um: np.ndarray
    bed_um: np.ndarray  # about the distance to the border of the tumour's bed, negative inside
    bed_at: Callable[[np.ndarray, np.ndarray], np.ndarray]  # the same at any place
    stream_um: np.ndarray  # a coordinate that runs across the fibres
    noise_YxXxF: np.ndarray  # three fields of N(0, 1), some 16 µm wide
    openness: float  # of lumina, 0 to 1
    septa: float  # factor on the thickness of septa

    def within_bed(self, places: np.ndarray, margin_um: float = 0.0) -> np.ndarray:
        return places[self.bed_at(*places.T) < -margin_um]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Grids [rows, columns] in µm, or radians."""

    gland_um: np.ndarray
    lumen_um: np.ndarray
    septum_um: np.ndarray | None = None  # distance to the middle of a septum that carries capillaries
    axis: np.ndarray | None = None  # of the tumour cells, where it is neither the fibres' nor across the epithelium


def _far(site: Site) -> np.ndarray:
    return np.full(site.bed_um.shape, FAR_UM)


def _glands(site: Site, kind: Diagnosis, rng: np.random.Generator) -> Layout:
    places = site.within_bed(lattice(rng, site.side_um, kind.pitch_um))
    radius_um_K = kind.pitch_um * kind.fill * rng.uniform(0.72, 1.15, len(places))
    outer, place_K = lobes(rng, places, radius_um_K, 2, 0.7)
    gland_um = outer.distance_um(site.x_um, site.y_um)
    # a gland is open or solid as a whole
    open_um = outer.radius_um_K - kind.height_um
    opened = (open_um > 2) & (rng.random(len(places)) < 0.55 + 0.45 * site.openness)[place_K]
    inner = Discs(outer.x_um_K[opened], outer.y_um_K[opened], open_um[opened] * (0.8 + 0.2 * site.openness))
    lumen_um = inner.distance_um(site.x_um, site.y_um)
    return Layout(gland_um, np.maximum(lumen_um, gland_um + 0.75 * kind.height_um))


def _lepidic(site: Site, kind: Diagnosis, rng: np.random.Generator) -> Layout:
    wall_um = alveolar_walls_um(site, kind.pitch_um, rng)
    core_um = 4.0 * site.septa + 1.5 * site.noise_YxXxF[..., 0]
    lumen_um = core_um + kind.height_um * (1.25 - 0.4 * site.openness) - wall_um
    return Layout(np.maximum(core_um - wall_um, site.bed_um), np.maximum(lumen_um, site.bed_um + 3))


def alveolar_walls_um(site: Site, pitch_um: float, rng: np.random.Generator) -> np.ndarray:
    """Distance to the middle of the nearest wall between airspaces; some spaces join, as alveoli do in a duct."""
    places = lattice(rng, site.side_um, pitch_um, 0.33)
    group_K = np.arange(len(places))
    joined = np.flatnonzero(rng.random(len(places)) < 0.3)
    group_K[joined] = group_K[np.maximum(joined - 1, 0)]
    return walls_um(places, group_K, site.x_um, site.y_um)[0]


def _papillae(site: Site, kind: Diagnosis, rng: np.random.Generator) -> Layout:
    places = site.within_bed(lattice(rng, site.side_um, kind.pitch_um, 0.22))
    core_um = kind.pitch_um * kind.fill * 0.13
    stem = stems(rng, places, kind.pitch_um * 0.85, core_um)
    away_um = stem.distance_um(site.x_um, site.y_um)
    # tufts: the epithelium is of uneven height
    height_um = kind.height_um * (1.1 + 0.22 * site.noise_YxXxF[..., 1]) + 3 * (1 - site.openness)
    space_um = np.maximum(height_um - away_um, site.bed_um + kind.height_um)
    return Layout(np.maximum(-away_um, site.bed_um), space_um)


def _nests(site: Site, kind: Diagnosis, rng: np.random.Generator) -> Layout:
    places = site.within_bed(lattice(rng, site.side_um, kind.pitch_um, 0.36))
    radius_um_K = kind.pitch_um * kind.fill * rng.uniform(0.45, 1.0, len(places))
    nest, _ = lobes(rng, places, radius_um_K, 4, 1.0)
    ragged_um = 0.07 * kind.pitch_um * site.noise_YxXxF[..., 0]
    gland_um = nest.distance_um(site.x_um, site.y_um) + ragged_um
    if not kind.tubules:
        return Layout(gland_um, _far(site))
    tubule = rng.random(len(places)) < kind.tubules * (0.4 + 1.2 * site.openness)
    space = Discs(*places[tubule].T, np.minimum(0.4 * radius_um_K[tubule], 12))
    return Layout(gland_um, np.maximum(space.distance_um(site.x_um, site.y_um), gland_um + 8))


def _sheets(site: Site, kind: Diagnosis, rng: np.random.Generator) -> Layout:
    places = lattice(rng, site.side_um, 1.25 * kind.pitch_um, 0.36)
    wall_um, _ = walls_um(places, np.arange(len(places)), site.x_um, site.y_um)
    # septa thin out and end
    septum_um = wall_um + 3.5 * np.maximum(site.noise_YxXxF[..., 2], 0)
    return Layout(np.maximum(site.bed_um, 2.4 * site.septa - septum_um), _far(site), septum_um)


def _files(site: Site, kind: Diagnosis, rng: np.random.Generator) -> Layout:
    row_um = site.stream_um / kind.pitch_um % 1.0
    away_um = np.abs(row_um - 0.5) * kind.pitch_um
    gap_um = 9.0 * np.maximum(site.noise_YxXxF[..., 2] - 0.5, 0)
    return Layout(np.maximum(away_um - 5.4 + gap_um, site.bed_um), _far(site))


def _pools(site: Site, kind: Diagnosis, rng: np.random.Generator) -> Layout:
    centres = lattice(rng, site.side_um, 1.6 * kind.pitch_um, 0.36)
    wall_um, _ = walls_um(centres, np.arange(len(centres)), site.x_um, site.y_um)
    pool_um = np.maximum(site.bed_um, 5.0 * site.septa - wall_um)
    places = site.within_bed(lattice(rng, site.side_um, 0.62 * kind.pitch_um, 0.36), 18)
    places = places[rng.random(len(places)) < 0.62]
    radius_um_K = kind.pitch_um * kind.fill * rng.uniform(0.5, 1.1, len(places))
    cluster, _ = lobes(rng, places, radius_um_K, 3, 1.0)
    cluster_um = np.maximum(cluster.distance_um(site.x_um, site.y_um) + 2 * site.noise_YxXxF[..., 0], pool_um + 6)
    # here and there the wall of a pool is lined by epithelium
    lined_um = np.abs(pool_um + 0.5 * kind.height_um) - 0.5 * kind.height_um
    lined_um += 12 * np.maximum(0.9 - site.noise_YxXxF[..., 1], 0)
    cluster_um = np.minimum(cluster_um, lined_um)
    hollow = rng.random(len(places)) < 0.5 * site.openness
    inner = Discs(*places[hollow].T, np.maximum(radius_um_K[hollow] - kind.height_um, 1))
    hollow_um = np.maximum(inner.distance_um(site.x_um, site.y_um), cluster_um + 8)
    return Layout(cluster_um, np.minimum(np.maximum(pool_um, -cluster_um), hollow_um))


def _cribriform(site: Site, kind: Diagnosis, rng: np.random.Generator) -> Layout:
    places = site.within_bed(lattice(rng, site.side_um, kind.pitch_um, 0.22))
    radius_um_K = kind.pitch_um * kind.fill * rng.uniform(0.7, 1.1, len(places))
    gland_um = lobes(rng, places, radius_um_K, 3, 0.7)[0].distance_um(site.x_um, site.y_um)
    spaces = lattice(rng, site.side_um, kind.sieve_um, 0.18)
    share = rng.uniform(0.26, 0.40, len(spaces)) * (0.75 + 0.45 * site.openness)
    sieve = Discs(*spaces.T, kind.sieve_um * share)
    sieve_um = sieve.distance_um(site.x_um, site.y_um)
    return Layout(gland_um, np.maximum(sieve_um, gland_um + kind.height_um))


def _alveoli(site: Site, kind: Diagnosis, rng: np.random.Generator) -> Layout:
    places = lattice(rng, site.side_um, kind.pitch_um, 0.32)
    wall_um, _ = walls_um(places, np.arange(len(places)), site.x_um, site.y_um)
    return Layout(np.maximum(site.bed_um, 2.3 * site.septa - wall_um), _far(site), wall_um)


def _fascicles(site: Site, kind: Diagnosis, rng: np.random.Generator) -> Layout:
    places = lattice(rng, site.side_um, 2.0 * kind.pitch_um, 0.36)
    _, bundle = walls_um(places, np.arange(len(places)), site.x_um, site.y_um)
    twice = 2 * rng.uniform(0, np.pi, len(places))[bundle]
    cos, sin = (ndimage.gaussian_filter(f(twice), 3.0) for f in (np.cos, np.sin))
    axis = 0.5 * np.arctan2(sin, cos) + 0.2 * site.noise_YxXxF[..., 1]
    return Layout(site.bed_um, _far(site), axis=axis)


def _scattered(site: Site, kind: Diagnosis, rng: np.random.Generator) -> Layout:
    """Tumour cells lie one by one among the fibres: `cells.py` strews them over the bed."""
    return Layout(_far(site), _far(site))


LAYOUTS: dict[Pattern, Callable[[Site, Diagnosis, np.random.Generator], Layout]] = {
    "glands": _glands, "lepidic": _lepidic, "papillae": _papillae, "nests": _nests, "sheets": _sheets,
    "files": _files, "pools": _pools, "cribriform": _cribriform, "small_glands": _glands, "alveoli": _alveoli,
    "fascicles": _fascicles, "scattered": _scattered,
}  # fmt: skip

POLARITY: dict[Pattern, str] = {
    "glands": "across", "lepidic": "across", "papillae": "across", "nests": "any", "sheets": "any", "files": "along",
    "pools": "across", "cribriform": "across", "small_glands": "across", "alveoli": "any", "fascicles": "along",
    "scattered": "along",
}  # fmt: skip
"""Long axes of tumour cells: across the epithelium, along the fibres, or any."""


@dataclasses.dataclass(frozen=True)
class Normal:
    """The glands of an organ outside its tumour."""

    pitch_um: float
    radius_um: tuple[float, float]
    height_um: float
    kept: float  # share of places that hold a gland
    goblet: float = 0.0  # mucin in its cells


NORMAL = {
    "BRCA": Normal(34, (10, 17), 8, 0.22), "CRC": Normal(66, (22, 29), 15, 0.95, goblet=0.8),
    "RCC": Normal(44, (16, 23), 11, 0.95), "PRAD": Normal(105, (28, 46), 14, 0.8),
    "SKCM": Normal(120, (12, 18), 8, 0.1), "OV": Normal(140, (14, 30), 9, 0.15),
    "LUAD": Normal(200, (30, 45), 14, 0.12), "LUSC": Normal(200, (30, 45), 14, 0.12),
}  # fmt: skip
ALVEOLAR_PITCH_UM = 130.0


def normal_glands(site: Site, cohort: str, rng: np.random.Generator) -> Layout:
    """Glands, ducts, crypts or tubules over the whole square; lung has its airspaces as lumina."""
    kind = NORMAL[cohort]
    places = lattice(rng, site.side_um, kind.pitch_um, 0.16)
    # what is kept stands together in lobules
    lobules = lattice(rng, site.side_um, 3.5 * kind.pitch_um, 0.4)
    away_um, _ = spatial.cKDTree(lobules).query(places)
    places = places[away_um <= np.quantile(away_um, kind.kept)]
    radius_um_K = rng.uniform(*kind.radius_um, len(places))
    gland_um = lobes(rng, places, radius_um_K, 2, 0.6)[0].distance_um(site.x_um, site.y_um)
    lumen_um = Discs(*places.T, np.maximum(radius_um_K - kind.height_um, 2)).distance_um(site.x_um, site.y_um)
    return Layout(gland_um, np.maximum(lumen_um, gland_um + 0.7 * kind.height_um))
