"""Visium HD: squares of 2, 8 or 16 µm without gaps, as detections whose places are known to one square."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.section import DetectionBlocks, Detections, SectionData
from tario_jax.sources.beside import MEASURED_UM_PER_PX
from tario_jax.sources.ingested import Ingested, IngestReport, check_names
from tario_jax.sources.picture import Picture
from tario_jax.sources.spaceranger import (
    Matrix,
    Positions,
    choose_picture,
    fit_lattice,
    place_of_barcodes,
    read_matrix,
    read_positions,
    read_scale_factors,
    run_name,
)

SQUARES_UM = (2, 8, 16)


def read_visium_hd(
    folder: str | Path, *, patient_id: str, cohort: str, section_id: str | None = None, image: str | Path | None = None,
    square_um: int = 2,
) -> Ingested:  # fmt: skip
    """Reads one output folder (`outs`, or its `binned_outputs`) as one section, by its squares of `square_um`.

    Each count of a square in tissue is one detection, so that bins of any size are counted from it, and totals are
    conserved. Where in its square a transcript lay is not known: it is put anywhere in it, each detection at a place of
    its own and the same at every ingest. (At the squares' centres, bins would hold now 16 and now 25 of them, and all
    genes a pattern of that.) The section says so in its `place_precision_um`, the side of the square, and bins of less
    than twice that are refused when it is read. The measured area is that of the squares in tissue. Panel and H&E are
    as in `visium`; µm per px is the file's `microns_per_pixel`, and the squares must be `square_um` apart by it.

    Raises `InputError` for a missing or unreadable file, values that are no counts, or files of different runs.
    """
    folder = Path(folder)
    squares = _squares(folder, square_um)
    report = IngestReport("Visium HD", str(folder))
    section_id = section_id or run_name(folder)
    check_names(section_id, patient_id, cohort)
    spatial = squares / "spatial"
    factors = read_scale_factors(spatial, "microns_per_pixel", "bin_size_um")
    um_per_px = factors["microns_per_pixel"]
    if factors["bin_size_um"] != square_um:
        raise InputError(f"{spatial / 'scalefactors_json.json'}: 'bin_size_um' is {factors['bin_size_um']:g}; expected "
                         f"{square_um}, as the folder is called")  # fmt: skip
    positions = read_positions(spatial)
    affine, fitted_um_per_px = fit_lattice(positions, (square_um, square_um))
    if not 0.99 < fitted_um_per_px / um_per_px < 1.01:
        raise InputError(
            f"{positions.path}: squares lie {square_um / fitted_um_per_px:.4g} px apart, which are "
            f"{square_um * um_per_px / fitted_um_per_px:.3g} µm at microns_per_pixel = {um_per_px:.4g}; expected "
            f"{square_um}; are the files of one run?"
        )
    picture = choose_picture(spatial, image, um_per_px, section_id, report)
    matrix = read_matrix(squares, section_id, report)
    report.notes.append(f"{section_id}: squares of {square_um} µm: a place is known to one square, and bins of less "
                        f"than {2 * square_um} µm are refused")  # fmt: skip

    identity = section_id, patient_id, cohort
    quality = {"he_is_preview": 1.0} if image is None else {}
    sections = _sections(matrix, positions, picture, affine, square_um, identity, report, quality)
    return Ingested(matrix.panel, sections, 1, report)


def _squares(folder: Path, square_um: int) -> Path:
    if square_um not in SQUARES_UM:
        raise InputError(f"--square-um={square_um}: expected one of {', '.join(map(str, SQUARES_UM))}")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected Space Ranger's output")
    outer = folder / "binned_outputs" if (folder / "binned_outputs").is_dir() else folder
    found = outer / f"square_{square_um:03d}um"
    if not found.is_dir():
        there = [side for side in SQUARES_UM if (outer / f"square_{side:03d}um").is_dir()]
        fix = f"--square-um={there[0]} reads what is there" if there else "is it a Visium HD output?"
        raise InputError(f"{outer}: no folder {found.name}; {fix}")
    return found


def _sections(
    matrix: Matrix, positions: Positions, picture: Picture, affine: np.ndarray, square_um: int,
    identity: tuple[str, str, str], report: IngestReport, quality: dict[str, float],
) -> Iterator[SectionData]:  # fmt: skip
    """The one section. Its H&E and counts are read from the files until the next one is asked for."""
    kept, row_N, squares = place_of_barcodes(matrix, positions, "squares", identity[0], report)
    fullres_xy_Nx2 = positions.pixel_xy_Px2[row_N]
    with picture.cut(fullres_xy_Nx2) as (he, corner_px_2, inside_N):
        squares.drop("outside the image", np.sum(~inside_N))
        squares.close(inside_N.sum())
        matrix.counts.drop("squares outside the image", matrix.total_B[kept[~inside_N]].sum())
        place_um_Nx2 = picture.to_um(fullres_xy_Nx2[inside_N], corner_px_2).astype(np.float32)
        height_um, width_um = he.height_px * picture.um_per_px, he.width_px * picture.um_per_px
        sides_um_2x2 = square_um * affine[:2] * picture.per_fullres * picture.um_per_px
        detections = _Counts(matrix, kept[inside_N], place_um_Nx2, sides_um_2x2, np.array([width_um, height_um]))
        matrix.counts.close(len(detections))
        measured = _in_tissue(positions, picture, affine, square_um, corner_px_2, width_um, height_um)
        del positions, fullres_xy_Nx2, row_N, kept  # hundreds of MB that are not needed while the section is written
        yield SectionData(
            *identity,
            width_um=width_um,
            height_um=height_um,
            he_um_per_px=picture.um_per_px,
            he=he,
            detections=DetectionBlocks(detections.blocks),
            measured=measured,
            measured_um_per_px=MEASURED_UM_PER_PX,
            registration="same_section_before",
            quality={
                "place_precision_um": float(square_um),
                "squares_dropped": float(sum(squares.dropped.values())),
                "counts_dropped": float(sum(matrix.counts.dropped.values())),
                **picture.origin(corner_px_2),
            } | quality,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Counts:
    """The counts of N barcodes, rising, as detections that are spread over each one's square."""

    matrix: Matrix
    barcode_N: np.ndarray
    place_um_Nx2: np.ndarray  # the square's centre
    sides_um_2x2: np.ndarray  # (x, y) of a square's sides
    extent_um_2: np.ndarray  # of the section, beyond which nothing is put

    def __len__(self) -> int:
        return int(self.matrix.total_B[self.barcode_N].sum())

    def blocks(self) -> Iterator[Detections]:
        before = 0
        for barcodes, indptr, gene_E, count_E in self.matrix.blocks():
            here = slice(*np.searchsorted(self.barcode_N, (barcodes.start, barcodes.stop)))
            place_B = np.full(barcodes.stop - barcodes.start, -1, np.int64)
            place_B[self.barcode_N[here] - barcodes.start] = np.arange(here.start, here.stop)
            place_E = np.repeat(place_B, np.diff(indptr))
            kept_E = place_E >= 0
            place_um_Dx2 = self.place_um_Nx2[np.repeat(place_E[kept_E], count_E[kept_E])]
            place_um_Dx2 += ((_spread(before, len(place_um_Dx2)) - 0.5) @ self.sides_um_2x2).astype(np.float32)
            np.clip(place_um_Dx2, 0, np.nextafter(self.extent_um_2.astype(np.float32), 0), out=place_um_Dx2)
            before += len(place_um_Dx2)
            yield Detections(place_um_Dx2[:, 0], place_um_Dx2[:, 1], np.repeat(gene_E[kept_E], count_E[kept_E]))


def _spread(before: int, number: int) -> np.ndarray:
    """Two numbers in [0, 1) for each of so many detections after the first `before`, whatever the blocks: [D, 2]."""
    odd = before % 2  # a step of the counter is four numbers, of two detections
    generator = np.random.Generator(np.random.Philox(key=2).advance(before // 2))
    return generator.random((number + odd, 2))[odd:]


def _in_tissue(
    positions: Positions, picture: Picture, affine: np.ndarray, square_um: int, corner_px_2: np.ndarray,
    width_um: float, height_um: float,
) -> np.ndarray:  # fmt: skip
    """bool [rows, columns]: whether the middle of each cell of the mask lies in a square in tissue."""
    lowest = positions.array_xy_Px2.min(0)
    grid = np.zeros(positions.array_xy_Px2.max(0) - lowest + 1, bool)
    grid[tuple((positions.array_xy_Px2 - lowest).T)] = positions.in_tissue_P
    columns, rows = (int(np.ceil(extent / MEASURED_UM_PER_PX)) for extent in (width_um, height_um))
    mask = np.zeros((rows, columns), bool)
    to_array = np.linalg.inv(affine[:2]) / square_um
    x_um = (np.arange(columns) + 0.5) * MEASURED_UM_PER_PX
    for row in range(rows):
        middle_um = np.column_stack([x_um, np.full(columns, (row + 0.5) * MEASURED_UM_PER_PX)])
        fullres_xy = (middle_um / picture.um_per_px + corner_px_2) / picture.per_fullres
        square = np.rint((fullres_xy - affine[2]) @ to_array).astype(np.int64) - lowest
        there = ((square >= 0) & (square < grid.shape)).all(1)
        mask[row, there] = grid[tuple(square[there].T)]
    return mask
