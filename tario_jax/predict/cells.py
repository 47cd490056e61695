"""Rates of single cells: what the model expects in the area of each.

A cell is an outline (`outlines.py`) grown by a few µm, as far as no other is nearer (`cell_areas.py`). Its rates are
read in one of two ways:

* bins: the density of 9 µm bins times the area that the cell has in each. Cells within one bin have one composition.
* queries: a query at the cell's centre, of the size of its area.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.stored_section import Section
from tario_jax.predict.cell_areas import CellAreas, areas_in_bins, cell_tiles
from tario_jax.predict.maps import GeneMaps
from tario_jax.predict.outlines import Outlines
from tario_jax.predict.predictor import Predictor
from tario_jax.predict.same_places import first_repeated
from tario_jax.predict.tissue import ImageSection

Reading = Literal["bins", "queries"]
READING: Reading = "bins"  # the better of the two on virtual truth: docs/finer.md
BIN_UM = 9.0
GROW_UM = 3.0  # of nuclei; outlines of whole cells are taken as they are


@dataclasses.dataclass(frozen=True)
class CellMaps(GeneMaps):
    """Gene maps whose places are cells: centres of the outlines; size_um: side of the square of the mean area."""

    area_um2_N: np.ndarray = dataclasses.field(kw_only=True)  # of the cells
    outline_um2_N: np.ndarray = dataclasses.field(kw_only=True)  # of their outlines, before they grew
    grow_um: float = dataclasses.field(kw_only=True)
    reading: Reading = dataclasses.field(kw_only=True)

    def columns(self) -> dict[str, np.ndarray]:
        return {"x_um": self.x_um_N, "y_um": self.y_um_N, "area_um2": self.area_um2_N,
                "outline_um2": self.outline_um2_N}  # fmt: skip

    def count_spread(self) -> tuple[float, float]:
        """Raises `InputError`: it was learnt of bins, and cells are of all sizes."""
        raise InputError("how far counts scatter is known of bins, and these places are cells")

    def _count_numbers(self) -> dict[str, float]:
        return {}

    def metadata(self) -> dict:
        return super().metadata() | {"unit": "expected detections per cell", "grow_um": float(self.grow_um),
                                     "reading": self.reading}  # fmt: skip


def predict_cells(
    predictor: Predictor, section: Section | ImageSection, outlines: Outlines, *, tissue: str, grow_um: float,
    reading: Reading = READING, overlap: float = 0.5, progress: Callable[[int, int], None] | None = None,
) -> CellMaps:  # fmt: skip
    """Expected detections of every gene in every cell, from the H&E alone.

    Outlines whose centre lies outside of the section, or whose whole area lies under others, have no cell: see
    `len(maps.x_um_N)`. Raises `InputError` where none is left, where two have one centre, for spots, and as
    `predict_section`.
    """
    if section.has_spots:
        raise InputError(
            f"{section.id}: is measured in spots, and its model knows places of their size; cells need detections"
        )
    outlines = within(outlines, section)
    areas = areas_of(outlines, section, grow_um)
    if not areas.area_um2_N.all():
        kept = np.flatnonzero(areas.area_um2_N)
        outlines, areas = (
            outlines.only(kept),
            areas._replace(area_um2_N=areas.area_um2_N[kept], overlap_um2_NxB=areas.overlap_um2_NxB[kept]),
        )
    if reading == "queries":
        rates_NxG = predictor.predict_squares(
            section, *outlines.centre_um_Nx2.T, np.sqrt(areas.area_um2_N), tissue=tissue, overlap=overlap,
            progress=progress,
        )  # fmt: skip
    else:
        maps = predictor.predict_section(section, tissue=tissue, bin_um=BIN_UM, overlap=overlap, progress=progress)
        rates_NxG = rates_from_bins(areas, maps)
    x_um_N, y_um_N = outlines.centre_um_Nx2.T
    return CellMaps(
        section.id, predictor.panel, x_um_N, y_um_N, float(np.sqrt(areas.area_um2_N.mean())), rates_NxG,
        section.he_full_um_per_px, predictor.trained_on, tissue, outlines.names, section.he_origin_px,
        validation=predictor.validation, area_um2_N=areas.area_um2_N, outline_um2_N=outlines.area_um2_N,
        grow_um=grow_um, reading=reading,
    )  # fmt: skip


def within(outlines: Outlines, section: Section | ImageSection) -> Outlines:
    """Those whose centre lies in the section. Raises `InputError` where there is none, or where centres coincide."""
    x_um_N, y_um_N = outlines.centre_um_Nx2.T
    inside_N = (x_um_N >= 0) & (x_um_N < section.width_um) & (y_um_N >= 0) & (y_um_N < section.height_um)
    if not len(outlines):
        raise InputError(f"{section.id}: no nucleus was found in its H&E; give outlines (--cells=FILE.geojson), or "
                         "predict bins")  # fmt: skip
    if not inside_N.any():
        raise InputError(
            f"{section.id}: none of {len(outlines)} outlines of cells lies in its {section.width_um:.0f} x "
            f"{section.height_um:.0f} µm; check their unit and where the section begins"
        )
    outlines = outlines.only(np.flatnonzero(inside_N))
    twice = first_repeated(*outlines.centre_um_Nx2.T)
    if twice is not None:
        raise InputError(f"{section.id}: outline {outlines.names[twice]!r} has the centre of another one; expected one "
                         "outline a cell: nuclei or cells, not both")  # fmt: skip
    return outlines


def areas_of(outlines: Outlines, section: Section | ImageSection, grow_um: float, bin_um: float = BIN_UM) -> CellAreas:
    """What the cells of these outlines cover, and of which bins of the section."""
    columns, rows = (max(1, int(extent / bin_um + 1e-6)) for extent in (section.width_um, section.height_um))
    tiles = cell_tiles(outlines, section.width_um, section.height_um, grow_um)
    return areas_in_bins(tiles, len(outlines), bin_um, columns, rows)


def rates_from_bins(areas: CellAreas, maps: GeneMaps) -> np.ndarray:
    """Rates of cells from those of bins, float32 [N, G]: Σ over bins of density times the area within.

    maps: the section's bins, of the side that `areas` was made for.
    """
    columns, rows = areas.columns, areas.overlap_um2_NxB.shape[1] // areas.columns
    column_B, row_B = (np.floor(place / maps.size_um).astype(int) for place in (maps.x_um_N, maps.y_um_N))
    # a bin that reaches a little beyond the section may be predicted too; the last whole one stands for it
    whole = np.flatnonzero((column_B < columns) & (row_B < rows))
    order = whole[np.argsort(row_B[whole] * columns + column_B[whole])]
    return (areas.overlap_um2_NxB @ maps.rates_NxG[order] / np.float32(maps.size_um**2)).astype(np.float32)
