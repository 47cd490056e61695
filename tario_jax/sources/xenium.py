"""Xenium: transcripts.parquet, experiment.xenium and an H&E OME-TIFF with its alignment."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from tario_jax.config import InputError
from tario_jax.corpus.section import Detections, SectionData
from tario_jax.panel import Panel
from tario_jax.sources.alignment import Alignment, read_alignment, resample
from tario_jax.sources.delimited import codes, numbers, one_file, require_columns
from tario_jax.sources.images import read_ome_tiff
from tario_jax.sources.ingested import Ingested, IngestReport

# Anchored and case-sensitive: a gene that merely begins with the same letters stays.
CONTROL = re.compile(
    r"^(NegControlProbe|NegControlCodeword|BLANK|UnassignedCodeword|DeprecatedCodeword|antisense)_", re.ASCII
)
_COLUMNS = ("feature_name", "x_location", "y_location", "qv")
_OPTIONAL = ("cell_id", "overlaps_nucleus", "is_gene")
_NO_CELL = {"-1", "0", "UNASSIGNED", ""}
_MEASURED_UM_PER_PX = 4.0


@dataclasses.dataclass(frozen=True)
class _Transcripts:
    """Every row of transcripts.parquet; T rows."""

    path: Path
    x_um_T: np.ndarray
    y_um_T: np.ndarray
    qv_T: np.ndarray
    feature_T: np.ndarray  # codes of `features`
    features: list[str]
    control_F: np.ndarray
    not_gene_T: np.ndarray | None
    in_nucleus_T: np.ndarray | None
    cell_T: np.ndarray | None


def read_xenium(
    folder: str | Path,
    *,
    patient_id: str,
    cohort: str,
    section_id: str | None = None,
    min_qv: float = 20.0,
) -> Ingested:
    """Reads one Xenium output folder with its H&E as one section.

    Detections are transcripts of genes with qv ≥ `min_qv` that lie under the H&E; the panel is the genes found, sorted.
    The section's frame is the vendor's µm frame (y already points down) with its origin at the top left corner of the
    common extent of detections and H&E; the H&E is resampled into it, bilinearly, at its own µm per px. The measured
    area is that extent where the H&E covers it: the box around all rows of the file stands for the imaged area.

    Raises `InputError` for a missing file or column, places that are not µm of this run (px, mm, swapped), an alignment
    that contradicts the image, or an image that cannot be read.
    """
    folder = Path(folder)
    report = IngestReport("Xenium", str(folder))
    section_id = section_id or folder.resolve().name
    pixel_um = _pixel_um(one_file(folder, "experiment.xenium"))
    alignment = read_alignment(one_file(folder, "*imagealignment.csv", "*alignment*.csv"), pixel_um)
    he_path = one_file(folder, "*he_image.ome.tif", "*he_image.ome.tiff")
    transcripts = _read_transcripts(one_file(folder, "transcripts.parquet"))
    if alignment.note:
        report.notes.append(alignment.note)
    kept_T, gene_F, panel = _select(transcripts, min_qv, report, section_id)

    def generate() -> Iterator[SectionData]:
        yield _section(transcripts, kept_T, gene_F, he_path, alignment, report, (section_id, patient_id, cohort))

    return Ingested(panel, generate(), 1, report)


def _pixel_um(path: Path) -> float:
    try:
        value = json.loads(path.read_text())["pixel_size"]
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"{path}: not JSON; expected the vendor's file unchanged") from None
    except KeyError:
        raise InputError(f"{path}: no 'pixel_size'; expected µm per px of the morphology image") from None
    if not isinstance(value, int | float) or not 0.05 <= value <= 1:
        raise InputError(f"{path}: 'pixel_size' is {value!r}; expected µm per px of 0.05 to 1, such as 0.2125")
    return float(value)


def _read_transcripts(path: Path) -> _Transcripts:
    try:
        present = parquet.read_schema(path).names
        require_columns(path, present, _COLUMNS)
        columns = [*_COLUMNS, *(name for name in _OPTIONAL if name in present)]
        table = parquet.read_table(path, columns=columns, read_dictionary=["feature_name"])
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read as parquet: {reason}; expected the vendor's file unchanged") from None
    if not table.num_rows:
        raise InputError(f"{path}: no rows; expected transcripts")
    for name in _COLUMNS[1:]:
        kind = table.schema.field(name).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise InputError(f"{path}: column {name!r} is {kind}; expected numbers")
    kind = table.schema.field("feature_name").type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(test(value) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary,
                                        pa.types.is_large_binary)):  # fmt: skip
        raise InputError(f"{path}: column 'feature_name' is {value}; expected gene symbols")
    feature_T, features = codes(table["feature_name"])
    not_gene_T = ~_flag(table, "is_gene") if "is_gene" in present else None
    return _Transcripts(
        path=path,
        x_um_T=numbers(table["x_location"]),
        y_um_T=numbers(table["y_location"]),
        qv_T=numbers(table["qv"]),
        feature_T=feature_T,
        features=features,
        control_F=np.array([bool(CONTROL.match(name)) for name in features], bool),
        not_gene_T=not_gene_T,
        in_nucleus_T=_flag(table, "overlaps_nucleus") if "overlaps_nucleus" in present else None,
        cell_T=_cells(table["cell_id"]) if "cell_id" in present else None,
    )


def _flag(table: pa.Table, name: str) -> np.ndarray:
    return table[name].cast(pa.int8()).fill_null(0).to_numpy() != 0


def _cells(column: pa.ChunkedArray) -> np.ndarray:
    """Cell ids, text or number, as 1, 2, …; 0 for a transcript in no cell."""
    cell_T, names = codes(column)
    number = np.zeros(len(names) + 1, np.int32)  # the last entry serves code −1
    inside = [position for position, name in enumerate(names) if name not in _NO_CELL]
    number[inside] = np.arange(1, len(inside) + 1)
    return number[cell_T]


def _select(
    transcripts: _Transcripts, min_qv: float, report: IngestReport, section_id: str
) -> tuple[np.ndarray, np.ndarray, Panel]:
    """(rows that are kept so far, panel position of each feature or −1, panel). Each row is dropped for one reason."""
    tally = report.open("detections", section_id, len(transcripts.feature_T))
    control_T = transcripts.control_F[transcripts.feature_T]
    if transcripts.not_gene_T is not None:
        control_T = control_T | transcripts.not_gene_T
    nameless_T = transcripts.feature_T < 0
    keep_T = np.ones(len(control_T), bool)
    for reason, bad_T in (
        ("without a place, name or qv", nameless_T | ~np.isfinite(transcripts.x_um_T + transcripts.y_um_T
                                                                  + transcripts.qv_T)),
        ("negative control, not a gene", control_T),
        (f"qv below {min_qv:g}", transcripts.qv_T < min_qv),
    ):  # fmt: skip
        bad_T = bad_T & keep_T
        tally.drop(reason, bad_T.sum())
        keep_T &= ~bad_T
    if not keep_T.any():
        top = np.nanmax(transcripts.qv_T)
        raise InputError(
            f"{transcripts.path}: no gene with qv >= {min_qv:g} (highest {top:.3g}); is column 'qv' what it says?"
        )
    found = np.unique(transcripts.feature_T[keep_T])
    panel = Panel(tuple(sorted(transcripts.features[position] for position in found)))
    genes = report.open("genes", section_id, len(transcripts.features))
    genes.drop("negative control or never seen with that qv", len(transcripts.features) - len(panel))
    genes.close(len(panel))
    return keep_T, panel.positions(transcripts.features), panel


def _section(
    transcripts: _Transcripts,
    kept_T: np.ndarray,
    gene_F: np.ndarray,
    he_path: Path,
    alignment: Alignment,
    report: IngestReport,
    identity: tuple[str, str, str],
) -> SectionData:
    he, stated_um_per_px = read_ome_tiff(he_path)
    if stated_um_per_px is not None and not 0.95 < stated_um_per_px / alignment.um_per_px < 1.05:
        raise InputError(
            f"{alignment.path}: gives {alignment.um_per_px:.4g} µm per px of H&E, but {he_path.name} says "
            f"{stated_um_per_px:.4g}; expected the affine from H&E px to morphology px; is it the inverse?"
        )
    height_px, width_px = he.shape[:2]
    corners_um_4x2 = alignment.to_um(np.array([[0, 0], [width_px, 0], [width_px, height_px], [0, height_px]], float))
    place_um_Tx2 = np.stack([transcripts.x_um_T, transcripts.y_um_T], 1)
    inside_T = _under_he(place_um_Tx2, alignment, width_px, height_px)
    _check_units(transcripts, place_um_Tx2, inside_T, alignment, (width_px, height_px), corners_um_4x2)

    finite_T = np.isfinite(place_um_Tx2).all(1)
    origin_um = np.maximum(place_um_Tx2[finite_T].min(0), corners_um_4x2.min(0))
    end_um = np.minimum(place_um_Tx2[finite_T].max(0), corners_um_4x2.max(0))
    tally = report.tally("detections", identity[0])
    tally.drop("outside the H&E", (kept_T & ~inside_T).sum())
    keep_T = kept_T & inside_T
    tally.close(keep_T.sum())
    he_section = resample(he, alignment, origin_um, end_um)
    control_T = transcripts.control_F[transcripts.feature_T]
    detections = Detections(
        x_um_D=transcripts.x_um_T[keep_T] - origin_um[0],
        y_um_D=transcripts.y_um_T[keep_T] - origin_um[1],
        gene_D=gene_F[transcripts.feature_T[keep_T]],
        in_nucleus_D=None if transcripts.in_nucleus_T is None else transcripts.in_nucleus_T[keep_T],
        cell_D=None if transcripts.cell_T is None else transcripts.cell_T[keep_T],
    )
    return SectionData(
        *identity,
        width_um=float(end_um[0] - origin_um[0]),
        height_um=float(end_um[1] - origin_um[1]),
        he_um_per_px=alignment.um_per_px,
        he=he_section,
        detections=detections,
        measured=_measured(alignment, origin_um, end_um, width_px, height_px),
        measured_um_per_px=_MEASURED_UM_PER_PX,
        registration="same_section_after",
        quality={
            "control_detections": float(control_T.sum()),
            "control_features": float(transcripts.control_F.sum()),
            "detections_dropped": float(sum(tally.dropped.values())),
            "vendor_origin_x_um": float(origin_um[0]),
            "vendor_origin_y_um": float(origin_um[1]),
        },
    )


def _under_he(place_um_Nx2: np.ndarray, alignment: Alignment, width_px: int, height_px: int) -> np.ndarray:
    he_px_Nx2 = alignment.to_he_px(place_um_Nx2)
    return ((he_px_Nx2 >= 0) & (he_px_Nx2 <= (width_px, height_px))).all(1)  # False for NaN


def _check_units(
    transcripts: _Transcripts,
    place_um_Tx2: np.ndarray,
    inside_T: np.ndarray,
    alignment: Alignment,
    size_px: tuple[int, int],
    corners_um_4x2: np.ndarray,
) -> None:
    """Raises `InputError` where most places are not under the H&E, with the cause where one explains it."""
    if inside_T.mean() >= 0.5:
        return
    causes = {
        "they look swapped": place_um_Tx2[:, ::-1],
        f"they look like px of {alignment.pixel_um:g} µm": place_um_Tx2 * alignment.pixel_um,
        "they look like mm": place_um_Tx2 * 1000,
    }
    share = {cause: _under_he(place, alignment, *size_px).mean() for cause, place in causes.items()}
    cause = max(share, key=share.get)
    why = cause if share[cause] >= 0.5 else "are alignment and transcripts of one run?"
    (left, top), (right, bottom) = corners_um_4x2.min(0), corners_um_4x2.max(0)
    low, high = np.nanmin(place_um_Tx2, 0), np.nanmax(place_um_Tx2, 0)
    raise InputError(
        f"{transcripts.path}: columns 'x_location' ({low[0]:.5g} to {high[0]:.5g}), 'y_location' ({low[1]:.5g} to "
        f"{high[1]:.5g}) put {1 - inside_T.mean():.0%} of the transcripts outside the H&E (x {left:.5g} to "
        f"{right:.5g}, y {top:.5g} to {bottom:.5g} µm); expected µm of this run; {why}"
    )


def _measured(
    alignment: Alignment, origin_um: np.ndarray, end_um: np.ndarray, width_px: int, height_px: int
) -> np.ndarray | None:
    """bool [rows, columns]: the common extent where H&E covers it; None where that is all of it."""
    columns, rows = np.ceil((end_um - origin_um) / _MEASURED_UM_PER_PX).astype(int)
    y, x = np.mgrid[:rows, :columns]
    centre_um = origin_um + (np.stack([x, y], -1).reshape(-1, 2) + 0.5) * _MEASURED_UM_PER_PX
    # the last row and column reach beyond the extent: their centres are held inside it
    covered = _under_he(np.minimum(centre_um, end_um), alignment, width_px, height_px).reshape(rows, columns)
    return None if covered.all() else covered
