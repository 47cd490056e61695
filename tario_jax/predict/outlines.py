"""Outlines of nuclei or cells: polygons in a section's frame, found by `nuclei.py` or given by the user."""

import dataclasses
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.spatial

from tario_jax.config import InputError
from tario_jax.corpus.section import Detections
from tario_jax.whole_file import write_whole

LEAST_UM2 = 1.0  # smaller polygons are slips of the pen
PLAUSIBLE_WIDTH_UM = (2.0, 60.0)  # of the median outline; beyond, its unit is not what was said
LEAST_DETECTIONS = 8  # of a vendor's cell, to draw an outline around them


@dataclasses.dataclass(frozen=True)
class Outlines:
    """N closed polygons of V vertices in all; polygon i has the vertices first[i] … first[i + 1] − 1."""

    vertex_um_Vx2: np.ndarray  # float64, x and y in the section's frame
    first_N1: np.ndarray  # int64 [N + 1]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, polygons: Iterable[np.ndarray], names: Iterable[str] | None = None) -> "Outlines":
        """polygons: float [vertices, 2] each, in µm; names: 1, 2, … by default."""
        polygons = [np.asarray(polygon, np.float64) for polygon in polygons]
        sizes = [len(polygon) for polygon in polygons]
        vertices = np.concatenate([np.zeros((0, 2)), *polygons])
        names = tuple(names) if names is not None else tuple(str(i + 1) for i in range(len(polygons)))
        return cls(vertices, np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64), names)

    def polygon(self, i: int) -> np.ndarray:
        return self.vertex_um_Vx2[self.first_N1[i] : self.first_N1[i + 1]]

    def only(self, chosen: np.ndarray) -> "Outlines":
        """Those at these positions."""
        return Outlines.of([self.polygon(i) for i in chosen], [self.names[i] for i in chosen])

    @functools.cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Signed areas [N] and centroids [N, 2]; a polygon without area has the mean of its vertices."""
        start, sizes = self.first_N1[:-1], np.diff(self.first_N1)
        of_V = np.repeat(np.arange(len(self)), sizes)
        corner_Vx2 = self.vertex_um_Vx2 - self.vertex_um_Vx2[start][of_V]  # near 0: large places cancel badly
        following = np.arange(1, len(of_V) + 1)
        following[self.first_N1[1:] - 1] = start
        next_Vx2 = corner_Vx2[following]
        cross_V = corner_Vx2[:, 0] * next_Vx2[:, 1] - next_Vx2[:, 0] * corner_Vx2[:, 1]
        area_N = np.bincount(of_V, cross_V, len(self)) / 2
        centre_Nx2 = np.empty((len(self), 2))
        flat_N = np.abs(area_N) < 1e-9
        for axis in (0, 1):
            moment_N = np.bincount(of_V, (corner_Vx2 + next_Vx2)[:, axis] * cross_V, len(self))
            mean_N = np.bincount(of_V, corner_Vx2[:, axis], len(self)) / sizes
            centre_Nx2[:, axis] = np.where(flat_N, mean_N, moment_N / np.where(flat_N, 1.0, 6 * area_N))
        return area_N, centre_Nx2 + self.vertex_um_Vx2[start]

    @property
    def area_um2_N(self) -> np.ndarray:
        """By the shoelace formula, float64 [N]."""
        return np.abs(self._moments[0])

    @property
    def centre_um_Nx2(self) -> np.ndarray:
        """Centroids, float64 [N, 2]."""
        return self._moments[1]

    @functools.cached_property
    def box_um_Nx4(self) -> np.ndarray:
        """Left, top, right, bottom of each."""
        if not len(self):
            return np.zeros((0, 4))
        low, high = (edge.reduceat(self.vertex_um_Vx2, self.first_N1[:-1], axis=0) for edge in (np.minimum, np.maximum))
        return np.concatenate([low, high], 1)

    def write_geojson(self, path: Path, um_per_px: float = 1.0, origin_px: tuple[float, float] = (0.0, 0.0)) -> None:
        """Writes polygons in px of the full-resolution H&E, as QuPath reads them; `read_geojson` takes them back."""
        features = []
        for i, name in enumerate(self.names):
            ring = (self.polygon(i) / um_per_px + origin_px).round(3).tolist()
            features.append({"type": "Feature", "id": name, "properties": {"objectType": "cell"},
                             "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}})  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"type": "FeatureCollection", "features": features}))


def read_geojson(path: Path, um_per_px: float = 1.0, origin_px: tuple[float, float] = (0.0, 0.0)) -> Outlines:
    """Polygons of a GeoJSON file whose coordinates are px of an image; um_per_px = 1: µm in the section's frame.

    Of a feature with several parts the largest is taken; holes are filled. Raises `InputError` for a file that is
    missing or no GeoJSON, for features that are no polygons, and where the polygons' size says that the unit is wrong.
    """
    if not path.is_file():
        raise InputError(f"--cells={path}: no such file; expected GeoJSON with a polygon a cell, 'nuclei' or 'corpus'")
    try:
        found = json.loads(path.read_text())
        features = list(found["features"] if isinstance(found, dict) else found)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"--cells={path}: is no GeoJSON ({type(error).__name__}); expected a FeatureCollection of "
                         "polygons") from None  # fmt: skip
    polygons, names = [], []
    for number, feature in enumerate(features, 1):
        ring = _outer_ring(feature, f"--cells={path}: feature {number}")
        polygons.append((ring - origin_px) * um_per_px)
        names.append(str(feature.get("id", number)))
    outlines = Outlines.of(polygons, names)
    outlines = outlines.only(np.flatnonzero(outlines.area_um2_N >= LEAST_UM2))
    if not len(outlines):
        raise InputError(f"--cells={path}: holds {len(features)} features and no polygon of {LEAST_UM2:g} µm² or more; "
                         "expected a polygon a cell")  # fmt: skip
    width_um = float(np.median(2 * np.sqrt(outlines.area_um2_N / np.pi)))
    if not PLAUSIBLE_WIDTH_UM[0] <= width_um <= PLAUSIBLE_WIDTH_UM[1]:
        low, high = PLAUSIBLE_WIDTH_UM
        raise InputError(
            f"--cells={path}: half of its polygons are less than {width_um:.3g} µm wide; expected {low:g} to "
            f"{high:g}; say what its coordinates are by --cells-unit=px or --cells-unit=um"
        )
    return outlines


def _outer_ring(feature: Any, where: str) -> np.ndarray:
    geometry = feature.get("geometry") if isinstance(feature, dict) else None
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise InputError(f"{where}: is a {kind or 'feature without geometry'}; expected a Polygon or a MultiPolygon")
    try:
        parts = [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"]
        rings = [np.asarray(part[0], np.float64)[:, :2] for part in parts]
    except (ValueError, KeyError, IndexError, TypeError):
        rings = []
    if not rings or any(len(ring) < 4 or not np.isfinite(ring).all() for ring in rings):
        raise InputError(f"{where}: its ring is not a list of at least 4 places [x, y], the first again at the end")
    rings = [ring[:-1] if (ring[0] == ring[-1]).all() else ring for ring in rings]
    return max(rings, key=lambda ring: Outlines.of([ring]).area_um2_N[0])


def outlines_of_cells(found: Detections, where: str) -> Outlines:
    """The convex hull of the detections of each of the vendor's cells, by its id.

    Cells of fewer than 8 detections, or whose detections lie on a line, have no outline. Raises `InputError` where
    the section has no cell ids.
    """
    if found.cell_D is None or not (found.cell_D > 0).any():
        raise InputError(f"--cells=corpus: section {where} has no cell ids; give --cells=nuclei, or polygons")
    order = np.argsort(found.cell_D, kind="stable")
    order = order[found.cell_D[order] > 0]
    ids, first = np.unique(found.cell_D[order], return_index=True)
    places = np.stack([found.x_um_D, found.y_um_D], 1).astype(np.float64)
    polygons, names = [], []
    for cell, mine in zip(ids, np.split(order, first[1:]), strict=True):
        if len(mine) < LEAST_DETECTIONS:
            continue
        try:
            hull = scipy.spatial.ConvexHull(places[mine])
        except scipy.spatial.QhullError:  # all on a line
            continue
        polygons.append(places[mine][hull.vertices])
        names.append(str(cell))
    outlines = Outlines.of(polygons, names)
    return outlines.only(np.flatnonzero(outlines.area_um2_N >= LEAST_UM2))
