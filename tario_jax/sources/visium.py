"""Visium: Space Ranger's output folder with spots of 55 µm at a pitch of 100 µm, and the H&E that it was given."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.section import SectionData
from tario_jax.sources.ingested import Ingested, IngestReport, check_names
from tario_jax.sources.spaceranger import (
    choose_picture,
    fit_lattice,
    place_of_barcodes,
    read_matrix,
    read_positions,
    read_scale_factors,
    run_name,
)
from tario_jax.sources.spot_table import SpotTable

DIAMETER_UM = 55.0
# of array coordinates: a row holds every second column, so that neighbours are 100 µm apart, all six
STEP_UM = (50.0, 50.0 * 3**0.5)
# `spot_diameter_fullres` stands for a theoretical spot of 65 µm in Space Ranger's documents, of 55 µm elsewhere
_STATED_DIAMETERS_UM = (65.0, 55.0)


def read_visium(
    folder: str | Path, *, patient_id: str, cohort: str, section_id: str | None = None, image: str | Path | None = None
) -> Ingested:
    """Reads one output folder (`outs`, its `spatial` inside or all files side by side) as one section of spots.

    Spots are those in tissue. The panel is all genes that the matrix has rows for, whether or not one was seen, by
    symbol and sorted, with their Ensembl ids; rows of one symbol are summed. `image` is the H&E that Space Ranger was
    given, in full resolution; without it, its reduced picture is stored, and the report says so. µm per px is the
    pitch of 100 µm over the pitch in px, fitted to all spots, and `spot_diameter_fullres` must agree with it.

    Raises `InputError` for a missing or unreadable file, values that are no counts, or files of different runs.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected Space Ranger's output")
    if (folder / "binned_outputs").is_dir():
        raise InputError(f"{folder}: holds binned_outputs, which is Visium HD; read it with --source=visium_hd")
    report = IngestReport("Visium", str(folder))
    section_id = section_id or run_name(folder)
    check_names(section_id, patient_id, cohort)
    spatial = folder / "spatial" if (folder / "spatial").is_dir() else folder
    positions = read_positions(spatial)
    affine, um_per_px = fit_lattice(positions, STEP_UM)
    stated_px = read_scale_factors(spatial, "spot_diameter_fullres")["spot_diameter_fullres"]
    stated_um = min(_STATED_DIAMETERS_UM, key=lambda diameter: abs(stated_px * um_per_px - diameter))
    if not 0.95 < stated_px * um_per_px / stated_um < 1.05:
        raise InputError(
            f"{spatial / 'scalefactors_json.json'}: 'spot_diameter_fullres' is {stated_px:.4g} px, which is "
            f"{stated_px * um_per_px:.3g} µm by the pitch of {positions.path.name} (100 µm are {100 / um_per_px:.4g} "
            "px); expected 65 or 55 µm; are the files of one run?"
        )
    report.notes.append(
        f"{section_id}: {um_per_px:.4g} µm per px of the full image, from the spots' pitch of 100 µm; "
        f"spot_diameter_fullres, taken for {stated_um:g} µm, gives {stated_um / stated_px:.4g}"
    )
    if np.linalg.det(affine[:2]) < 0:
        report.notes.append(f"{section_id}: the image mirrors the array of spots; right only if it was scanned so, "
                            "and not if px columns were swapped: see tario check")  # fmt: skip
    picture = choose_picture(spatial, image, um_per_px, section_id, report)
    matrix = read_matrix(folder, section_id, report)
    kept, row_N, spots = place_of_barcodes(matrix, positions, "spots", section_id, report)

    def generate() -> Iterator[SectionData]:
        table = SpotTable(
            tuple(matrix.barcode_B.names(kept).to_pylist()), positions.pixel_xy_Px2[row_N],
            positions.array_xy_Px2[row_N], DIAMETER_UM, *matrix.of(kept), spots, matrix.counts,
        )  # fmt: skip
        quality = {"he_is_preview": 1.0} if image is None else {}
        yield from table.sections((section_id, patient_id, cohort), picture, len(matrix.panel), quality=quality)

    return Ingested(matrix.panel, generate(), 1, report)
