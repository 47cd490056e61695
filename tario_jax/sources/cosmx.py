"""CosMx flat files: `*_tx_file.csv[.gz]` with its `*_fov_positions_file.csv[.gz]`. No H&E comes with them: it is a scan
of its own, and is given beside them."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from tario_jax.config import InputError
from tario_jax.corpus.section import DetectionBlocks, Detections, Registration, SectionData
from tario_jax.sources.alignment import Alignment, read_affine
from tario_jax.sources.beside import MEASURED_UM_PER_PX, HeBeside, extent_of
from tario_jax.sources.delimited import (
    Names,
    column_batches,
    ends_within_a_line,
    header,
    numbers,
    one_file,
    require_columns,
)
from tario_jax.sources.fov_survey import FovSurvey, cell_key, lost_genes, lost_many
from tario_jax.sources.fovs import Frame, place_fovs
from tario_jax.sources.ingested import Ingested, IngestReport, check_names
from tario_jax.sources.slide_files import opened_slide
from tario_jax.sources.targets import Targets, read_symbol_map, sort_targets

VENDOR_UM_PER_PX = 0.12028  # of the vendor's pages; earlier instruments had another
_NUMBERS = ("x_local_px", "y_local_px", "x_global_px", "y_global_px")
_TEXT = pa.dictionary(pa.int32(), pa.string())
_OPTIONAL = {"cell_ID": pa.int64(), "CellComp": _TEXT}


@dataclasses.dataclass(frozen=True)
class _Rows:
    """N rows of the tx file, in its order; FOV −1 is none, target −1 is none."""

    fov_N: np.ndarray
    local_px_Nx2: np.ndarray
    global_px_Nx2: np.ndarray
    target_N: np.ndarray
    cell_id_N: np.ndarray | None
    in_nucleus_N: np.ndarray | None
    placed_N: np.ndarray  # has an FOV and both places


class _TxFile:
    """The tx file. Its rows can be read any number of times; codes of targets stay the same."""

    def __init__(self, path: Path):
        self.path, self.targets = path, Names()
        present = header(path)
        require_columns(path, present, ("fov", *_NUMBERS, "target"))
        self._types = {"fov": pa.int32(), **dict.fromkeys(_NUMBERS, pa.float64()), "target": _TEXT}
        self._types |= {name: kind for name, kind in _OPTIONAL.items() if name in present}

    def rows(self) -> Iterator[_Rows]:
        for table in column_batches(self.path, self._types):
            fov_N = table["fov"].fill_null(-1).to_numpy()
            x_local, y_local, x_global, y_global = (numbers(table[name]) for name in _NUMBERS)
            local_px_Nx2, global_px_Nx2 = np.stack([x_local, y_local], 1), np.stack([x_global, y_global], 1)
            in_nucleus_N = None
            if "CellComp" in table:
                parts = Names()
                part_N = parts.codes(table["CellComp"])
                in_nucleus_N = np.array([*(part == "Nuclear" for part in parts), False])[part_N]
            yield _Rows(
                fov_N, local_px_Nx2, global_px_Nx2, self.targets.codes(table["target"]),
                table["cell_ID"].fill_null(0).to_numpy() if "cell_ID" in table else None, in_nucleus_N,
                (fov_N >= 0) & np.isfinite(local_px_Nx2).all(1) & np.isfinite(global_px_Nx2).all(1),
            )  # fmt: skip


def read_cosmx(
    path: str | Path,
    *,
    patient_id: str,
    cohort: str,
    section_id: str | None = None,
    um_per_px: float | None = None,
    symbol_map: str | Path | None = None,
    image: str | Path | None = None,
    alignment: str | Path | None = None,
    registration: Registration | None = None,
) -> Ingested:
    """Reads one slide's flat files (their folder, or the tx file) as one section, with an H&E where one is named.

    Detections are all rows with a place whose target is a gene. The vendor's global y points up: the section's points
    down, and its origin is the top left corner of the measured area, which is the union of the FOVs' observed extents
    (see `fovs`). µm per px: the flag, else the mm columns of the FOV positions, else the vendor's 0.12028, and the
    report says which. A target that names several genes (a slash) stays under the vendor's name and is reported;
    a symbol that a spreadsheet turned into a date is dropped and counted. `symbol_map` is a table old<TAB>new of what
    targets are to be called. `alignment` is a 3×3 affine from px of `image` to global px, y up; `registration` says
    how that H&E relates to the slide. Then the section is what both cover.

    The rows are read twice, in batches: once for targets, extents and account, once for the corpus. Raises
    `InputError` for a missing column, a value that is no number, local and global columns that contradict each other
    or the FOV positions, or an H&E that lies elsewhere.
    """
    path = Path(path)
    if path.is_dir():
        path = one_file(path, "*_tx_file.csv", "*_tx_file.csv.gz")
    elif not path.is_file():
        raise InputError(f"{path}: no such file or folder; expected the flat files or *_tx_file.csv")
    report = IngestReport("CosMx", str(path))
    stem = path.name.split("_tx_file")[0]
    section_id = section_id or stem
    check_names(section_id, patient_id, cohort)
    positions = one_file(path.parent, f"{stem}_fov_positions_file.csv", f"{stem}_fov_positions_file.csv.gz")
    map_path = None if symbol_map is None else Path(symbol_map)
    symbols = {} if map_path is None else read_symbol_map(map_path)
    he_in_px = _he_in_px(image, alignment, registration)
    file = _TxFile(path)
    seen = _survey(file, he_in_px)
    if ends_within_a_line(path):
        report.notes.append(f"{path.name}: its last line has no end; was the file cut short?")
    frame = place_fovs(path, positions, seen.fields, um_per_px, VENDOR_UM_PER_PX)
    report.notes.extend(frame.notes)
    targets = sort_targets(path, list(file.targets), symbols, map_path)
    origin_um, end_um = np.zeros(2), np.array([frame.width_um, frame.height_um])
    he = None
    if he_in_px is not None:
        he = _he_in_frame(he_in_px, frame)
        _check_under(seen, he_in_px)
        origin_um, end_um = he.common_extent(origin_um, end_um)
    kept = _account(seen, targets, report, section_id)
    quality = _quality(seen, targets, frame, report, section_id)

    def blocks() -> Iterator[Detections]:
        left = kept
        cell_keys = seen.fields.cell_keys
        gene_T = np.append(targets.gene_T, np.int32(-1))  # the last one serves target −1
        for rows in file.rows():
            keep_N = rows.placed_N & (gene_T[rows.target_N] >= 0)
            if he_in_px is not None:
                keep_N &= he_in_px.covers(rows.global_px_Nx2)
            left -= keep_N.sum()
            x_um_D, y_um_D = frame.to_um(rows.global_px_Nx2[keep_N])
            cell_D = None
            if rows.cell_id_N is not None:
                id_D = rows.cell_id_N[keep_N]
                cell_D = np.searchsorted(cell_keys, cell_key(rows.fov_N[keep_N], id_D)).astype(np.int32) + 1
                cell_D[id_D <= 0] = 0
            yield Detections(
                x_um_D - origin_um[0], y_um_D - origin_um[1], gene_T[rows.target_N[keep_N]],
                None if rows.in_nucleus_N is None else rows.in_nucleus_N[keep_N], cell_D,
            )  # fmt: skip
        if left:
            raise InputError(f"{path}: changed while it was read; run it again")

    def generate() -> Iterator[SectionData]:
        measured = frame.measured(MEASURED_UM_PER_PX, origin_um, end_um)
        with extent_of(he, origin_um, end_um) as extent:
            yield SectionData(
                section_id, patient_id, cohort,
                **extent,
                detections=DetectionBlocks(blocks),
                measured=measured if he is None else measured & he.covered(origin_um, end_um),
                registration=registration or "none",
                quality=quality,
            )  # fmt: skip

    return Ingested(targets.panel, generate(), 1, report)


def _he_in_px(image, alignment, registration: Registration | None) -> HeBeside | None:
    """The H&E in global px, y up: µm per px is not known before the rows are read."""
    if image is None and alignment is None:
        if registration is not None:
            raise InputError(f"--registration={registration}: says how an H&E relates to the slide; name one too "
                             "(--image, --alignment)")  # fmt: skip
        return None
    if image is None or alignment is None:
        raise InputError(f"{image or alignment}: an H&E needs --image and --alignment, a 3×3 affine from its px to "
                         "global px; give both")  # fmt: skip
    if registration is None:
        raise InputError(f"{image}: nothing says how this H&E relates to the slide; give --registration="
                         "same_section_after, same_section_before or adjacent")  # fmt: skip
    image, alignment = Path(image), Path(alignment)
    affine = read_affine(alignment)
    if not np.linalg.det(affine):
        raise InputError(f"{alignment}: its affine has no inverse; expected H&E px to global px")
    with opened_slide(image) as file:
        width_px, height_px = file.levels[0].width_px, file.levels[0].height_px
    return HeBeside(image, Alignment(alignment, affine, 1.0, frame="global px"), width_px, height_px)


def _he_in_frame(he_in_px: HeBeside, frame: Frame) -> HeBeside:
    """The same in the section's µm, y down. Raises `InputError` for a scale that no H&E has, or that it contradicts."""
    left, top = frame.box_px_Fx4[:, 0].min(), frame.box_px_Fx4[:, 3].max()
    to_frame = np.array([[1, 0, -left], [0, -1, top], [0, 0, 1]]) @ he_in_px.alignment.affine
    aligned = dataclasses.replace(he_in_px.alignment, affine=to_frame, pixel_um=frame.um_per_px)
    return HeBeside.at(he_in_px.path, aligned.checked())


@dataclasses.dataclass
class _Seen:
    """What the first pass gathers. T targets, and one more at the end for rows without one."""

    fields: FovSurvey
    placed_T: np.ndarray
    lost_T: np.ndarray  # without a place
    beyond_T: np.ndarray  # with a place, but not under the H&E


def _survey(file: _TxFile, he_in_px: HeBeside | None) -> _Seen:
    fields = FovSurvey()
    counts_3xT = np.zeros((3, 1), np.int64)
    for rows in file.rows():
        placed_N = rows.placed_N
        fields.add(rows.fov_N[placed_N], rows.local_px_Nx2[placed_N], rows.global_px_Nx2[placed_N],
                   rows.target_N[placed_N], None if rows.cell_id_N is None else rows.cell_id_N[placed_N])  # fmt: skip
        beyond_N = np.zeros(len(placed_N), bool) if he_in_px is None else ~he_in_px.covers(rows.global_px_Nx2)
        targets = len(file.targets)
        grown = np.zeros((3, targets + 1), np.int64)
        grown[:, : counts_3xT.shape[1] - 1], grown[:, -1] = counts_3xT[:, :-1], counts_3xT[:, -1]
        code_N = np.where(rows.target_N < 0, targets, rows.target_N)
        for row, which_N in enumerate((placed_N, ~placed_N, placed_N & beyond_N)):
            grown[row] += np.bincount(code_N[which_N], minlength=targets + 1)
        counts_3xT = grown
    if not counts_3xT.any():
        raise InputError(f"{file.path}: no rows; expected transcripts")
    return _Seen(fields, *counts_3xT)


def _check_under(seen: _Seen, he_in_px: HeBeside) -> None:
    """Raises `InputError` where most rows are not under the H&E."""
    placed, beyond = seen.placed_T.sum(), seen.beyond_T.sum()
    if beyond <= 0.5 * placed:
        return
    (left, low), (right, high) = he_in_px.extent_um  # of 1 µm per px: these are px
    across, up = ((seen.fields.low_Fx7[:, axis].min(), seen.fields.high_Fx7[:, axis].max()) for axis in (2, 3))
    raise InputError(
        f"{he_in_px.alignment.path}: puts the H&E at global px x {left:.6g} to {right:.6g}, y {low:.6g} to {high:.6g}, "
        f"where {1 - beyond / placed:.0%} of the rows are (x {across[0]:.6g} to {across[1]:.6g}, y {up[0]:.6g} to "
        f"{up[1]:.6g}); expected the affine from H&E px to global px, whose y points up; is it turned over?"
    )


def _account(seen: _Seen, targets: Targets, report: IngestReport, section_id: str) -> int:
    """Fills the report: each row is kept or dropped for one reason. Returns how many are kept."""
    everything = int((seen.placed_T + seen.lost_T).sum())
    tally = report.open("detections", section_id, everything)
    placed_T = seen.placed_T[:-1]
    tally.drop("without a place, FOV or target", seen.lost_T.sum() + seen.placed_T[-1])
    tally.drop("negative or system control, not a gene", placed_T[targets.control_T].sum())
    tally.drop("symbol turned into a date by a spreadsheet", placed_T[targets.date_T].sum())
    gene_T = ~(targets.control_T | targets.date_T)
    tally.drop("outside the H&E", seen.beyond_T[:-1][gene_T].sum())
    kept = int((placed_T - seen.beyond_T[:-1])[gene_T].sum())
    tally.close(kept)
    genes = report.open("genes", section_id, len(gene_T))
    genes.drop("negative or system control", targets.control_T.sum())
    genes.drop("symbol turned into a date by a spreadsheet", targets.date_T.sum())
    genes.drop("another target of a gene", gene_T.sum() - len(targets.panel))
    genes.close(len(targets.panel))
    report.notes.extend(targets.notes)
    return kept


def _quality(seen: _Seen, targets: Targets, frame: Frame, report: IngestReport, section_id: str) -> dict[str, float]:
    """Figures that stay with the section; of fields that lost many genes, the share by field."""
    counts_FxT = seen.fields.by_target(len(targets.gene_T))
    share_F = lost_genes(counts_FxT[:, targets.gene_T >= 0])
    flagged = {int(fov): float(share) for fov, share, many in zip(seen.fields.fovs, share_F, lost_many(share_F),
                                                                  strict=True) if many}  # fmt: skip
    if flagged:
        worst = sorted(flagged, key=flagged.get, reverse=True)
        shown = ", ".join(f"{fov} ({flagged[fov]:.0%})" for fov in worst[:8]) + (", …" if len(worst) > 8 else "")
        report.notes.append(
            f"{len(flagged)} of {len(seen.fields)} FOVs lost many genes (fewer than a tenth of what the slide's median "
            f"FOV lets expect): {shown}; look at the vendor's FOV quality, and export again without them if it agrees"
        )
    tally = report.tally("detections", section_id)
    return {
        "control_detections": float((seen.placed_T + seen.lost_T)[:-1][targets.control_T].sum()),
        "control_features": float(targets.control_T.sum()),
        "detections_dropped": float(sum(tally.dropped.values())),
        "fovs": float(len(frame.box_px_Fx4)),
        "fov_width_um": frame.fov_px[0] * frame.um_per_px,
        "fov_height_um": frame.fov_px[1] * frame.um_per_px,
        "um_per_px": frame.um_per_px,
        "um_per_px_is_assumed": float(frame.assumed),
    } | {f"lost_genes_of_fov_{fov}": share for fov, share in flagged.items()}
