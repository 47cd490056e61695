"""CosMx flat files: `*_tx_file.csv[.gz]` with its `*_fov_positions_file.csv[.gz]`. No H&E comes with them."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from tario_jax.config import InputError
from tario_jax.corpus.section import Detections, SectionData
from tario_jax.panel import Panel
from tario_jax.sources.delimited import codes, header, numbers, one_file, read_columns, require_columns
from tario_jax.sources.fovs import Frame, place_fovs
from tario_jax.sources.ingested import Ingested, IngestReport

# Anchored and case-sensitive: NEGR1, NANOG and NANS are genes.
CONTROL = re.compile(r"^(NegPrb\d+|Negative\d+|SystemControl\d+|FalseCode\d*)$", re.ASCII)
_MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec"
# What a spreadsheet makes of MARCHF1, SEPTIN2, DEC1: which of them it was cannot be known.
DATE = re.compile(rf"^(\d{{1,2}}-({_MONTHS})|({_MONTHS})-\d{{1,4}}|\d{{4}}-\d\d-\d\d.*)$", re.ASCII | re.IGNORECASE)
VENDOR_UM_PER_PX = 0.12028  # of the vendor's pages; earlier instruments had another
_NUMBERS = ("x_local_px", "y_local_px", "x_global_px", "y_global_px")
_MEASURED_UM_PER_PX = 4.0


@dataclasses.dataclass(frozen=True)
class _Transcripts:
    """Every row of the tx file; T rows. x_local, y_local, x_global, y_global are px."""

    path: Path
    fov_T: np.ndarray
    local_px_Tx2: np.ndarray
    global_px_Tx2: np.ndarray
    target_T: np.ndarray  # codes of `targets`
    targets: list[str]
    cell_T: np.ndarray | None
    in_nucleus_T: np.ndarray | None


def read_cosmx(
    path: str | Path,
    *,
    patient_id: str,
    cohort: str,
    section_id: str | None = None,
    um_per_px: float | None = None,
) -> Ingested:
    """Reads one slide's flat files (their folder, or the tx file) as one section without H&E.

    Detections are all rows with a place whose target is a gene. The vendor's global y points up: the section's points
    down, and its origin is the top left corner of the measured area, which is the union of the FOVs' observed extents
    (see `fovs`). µm per px: the flag, else the mm columns of the FOV positions, else the vendor's 0.12028, and the
    report says which. A target that names several genes (a slash) stays under the vendor's name and is reported;
    a symbol that a spreadsheet turned into a date is dropped and counted.

    Raises `InputError` for a missing column, a value that is no number, local and global columns that contradict each
    other or the FOV positions.
    """
    path = Path(path)
    if path.is_dir():
        path = one_file(path, "*_tx_file.csv", "*_tx_file.csv.gz")
    elif not path.is_file():
        raise InputError(f"{path}: no such file or folder; expected the flat files or *_tx_file.csv")
    report = IngestReport("CosMx", str(path))
    stem = path.name.split("_tx_file")[0]
    section_id = section_id or stem
    positions = one_file(path.parent, f"{stem}_fov_positions_file.csv", f"{stem}_fov_positions_file.csv.gz")
    transcripts = _read_transcripts(path)
    placed_T = np.isfinite(transcripts.local_px_Tx2).all(1) & np.isfinite(transcripts.global_px_Tx2).all(1)
    placed_T &= transcripts.fov_T >= 0
    frame = place_fovs(
        path,
        positions,
        transcripts.fov_T[placed_T],
        transcripts.local_px_Tx2[placed_T],
        transcripts.global_px_Tx2[placed_T],
        um_per_px,
        VENDOR_UM_PER_PX,
    )
    report.notes.extend(frame.notes)
    keep_T, gene_F, panel = _select(transcripts, placed_T, report, section_id)

    def generate() -> Iterator[SectionData]:
        yield _section(transcripts, keep_T, gene_F, frame, (section_id, patient_id, cohort))

    return Ingested(panel, generate(), 1, report)


def _read_transcripts(path: Path) -> _Transcripts:
    present = header(path)
    require_columns(path, present, ("fov", *_NUMBERS, "target"))
    types: dict[str, pa.DataType] = {"fov": pa.int32(), **dict.fromkeys(_NUMBERS, pa.float64())}
    types["target"] = pa.dictionary(pa.int32(), pa.string())
    if "cell_ID" in present:
        types["cell_ID"] = pa.int64()
    if "CellComp" in present:
        types["CellComp"] = pa.dictionary(pa.int32(), pa.string())
    table = read_columns(path, types)
    if not len(table["fov"]):
        raise InputError(f"{path}: no rows; expected transcripts")
    fov_T = table["fov"].fill_null(-1).to_numpy().astype(np.int32)
    target_T, targets = codes(table["target"])
    in_nucleus_T = None
    if "CellComp" in table:
        part_T, parts = codes(table["CellComp"])
        in_nucleus_T = np.array([*(part == "Nuclear" for part in parts), False])[part_T]
    x_local, y_local, x_global, y_global = (numbers(table[name]) for name in _NUMBERS)
    return _Transcripts(
        path=path,
        fov_T=fov_T,
        local_px_Tx2=np.stack([x_local, y_local], 1),
        global_px_Tx2=np.stack([x_global, y_global], 1),
        target_T=target_T,
        targets=targets,
        cell_T=_cells(fov_T, table["cell_ID"]) if "cell_ID" in table else None,
        in_nucleus_T=in_nucleus_T,
    )


def _cells(fov_T: np.ndarray, column: pa.ChunkedArray) -> np.ndarray:
    """Numbers 1, 2, … of the cells of the slide: cell_ID is unique only inside its FOV. 0 is no cell."""
    id_T = column.fill_null(0).to_numpy()
    inside_T = id_T > 0
    cell_T = np.zeros(len(id_T), np.int32)
    key_T = fov_T[inside_T].astype(np.int64) << 32 | id_T[inside_T]
    cell_T[inside_T] = np.unique(key_T, return_inverse=True)[1] + 1
    return cell_T


def _select(
    transcripts: _Transcripts, placed_T: np.ndarray, report: IngestReport, section_id: str
) -> tuple[np.ndarray, np.ndarray, Panel]:
    """(rows that are kept, panel position of each target or −1, panel). Each row is dropped for one reason."""
    control_F = _matching(CONTROL, transcripts.targets)
    date_F = _matching(DATE, transcripts.targets)
    nameless_T = transcripts.target_T < 0
    keep_T = np.ones(len(placed_T), bool)
    tally = report.open("detections", section_id, len(placed_T))
    for reason, bad_T in (
        ("without a place, FOV or target", ~placed_T | nameless_T),
        ("negative or system control, not a gene", control_F[transcripts.target_T]),
        ("symbol turned into a date by a spreadsheet", date_F[transcripts.target_T]),
    ):
        bad_T = bad_T & keep_T
        tally.drop(reason, bad_T.sum())
        keep_T &= ~bad_T
    tally.close(keep_T.sum())
    gene = [name for name, out in zip(transcripts.targets, control_F[:-1] | date_F[:-1], strict=True) if not out]
    if not gene:
        raise InputError(f"{transcripts.path}: column 'target' holds no gene; found {transcripts.targets[:3]}")
    genes = report.open("genes", section_id, len(transcripts.targets))
    genes.drop("negative or system control", control_F.sum())
    genes.drop("symbol turned into a date by a spreadsheet", (date_F & ~control_F).sum())
    genes.close(len(gene))
    dates = [name for name, out in zip(transcripts.targets, date_F[:-1], strict=True) if out]
    if dates:
        report.notes.append(f"targets that are dates, dropped: {', '.join(sorted(dates)[:8])}; ask for the raw export")
    several = sorted(name for name in gene if "/" in name)
    if several:
        report.notes.append(
            f"{len(several)} targets name several genes and stay under the vendor's name: {', '.join(several[:8])}"
        )
    panel = Panel(tuple(sorted(gene)))
    return keep_T, panel.positions(transcripts.targets), panel


def _matching(pattern: re.Pattern, names: list[str]) -> np.ndarray:
    """Whether each name matches; one more False at the end serves code −1."""
    return np.array([*(bool(pattern.match(name)) for name in names), False])


def _section(
    transcripts: _Transcripts, keep_T: np.ndarray, gene_F: np.ndarray, frame: Frame, identity: tuple[str, str, str]
) -> SectionData:
    x_um_D, y_um_D = frame.to_um(transcripts.global_px_Tx2[keep_T])
    return SectionData(
        *identity,
        width_um=frame.width_um,
        height_um=frame.height_um,
        detections=Detections(
            x_um_D=x_um_D,
            y_um_D=y_um_D,
            gene_D=gene_F[transcripts.target_T[keep_T]],
            in_nucleus_D=None if transcripts.in_nucleus_T is None else transcripts.in_nucleus_T[keep_T],
            cell_D=None if transcripts.cell_T is None else transcripts.cell_T[keep_T],
        ),
        measured=frame.measured(_MEASURED_UM_PER_PX),
        measured_um_per_px=_MEASURED_UM_PER_PX,
        registration="none",
        quality={
            "control_detections": float(_matching(CONTROL, transcripts.targets)[transcripts.target_T].sum()),
            "control_features": float(_matching(CONTROL, transcripts.targets).sum()),
            "detections_dropped": float(len(keep_T) - keep_T.sum()),
            "fovs": float(len(frame.box_px_Fx4)),
            "um_per_px": frame.um_per_px,
            "um_per_px_is_assumed": float(frame.assumed),
        },
    )
