"""Xenium: transcripts.parquet, experiment.xenium and, where it is there, an H&E with its alignment."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.section import DetectionBlocks, Detections, Registration, SectionData, check_sides
from tario_jax.panel import Panel
from tario_jax.sources.alignment import read_alignment
from tario_jax.sources.beside import MEASURED_UM_PER_PX, HeBeside, extent_of
from tario_jax.sources.delimited import one_file
from tario_jax.sources.fovs import within_boxes
from tario_jax.sources.gene_panel import read_gene_panel
from tario_jax.sources.ingested import Ingested, IngestReport, check_names
from tario_jax.sources.xenium_fields import FieldBoxes
from tario_jax.sources.xenium_rows import CONTROL, XeniumFile, XeniumRows

_IMAGES = tuple(f"*he_{name}.{ending}" for name in ("image.ome", "image", "unaligned_image.ome")
                for ending in ("tif", "tiff"))  # fmt: skip
_ALIGNMENTS = ("*imagealignment.csv", "*alignment*.csv")
_MOST_UNNAMED = 0.01  # of the rows: beyond, fields of view do not say what was imaged
_OF_HE, _OF_FLUORESCENCE = "*he_imagealignment.csv", "if_imagealignment.csv"


def read_xenium(
    folder: str | Path,
    *,
    patient_id: str,
    cohort: str,
    section_id: str | None = None,
    image: str | Path | None = None,
    alignment: str | Path | None = None,
    registration: Registration | None = None,
    min_qv: float = 20.0,
) -> Ingested:
    """Reads one Xenium output folder as one section, with the H&E of the folder or that of `image` and `alignment`.

    Detections are transcripts of genes with qv ≥ `min_qv` that lie under the H&E; the panel is the genes of
    gene_panel.json, or where there is none the genes found, sorted. The section's frame is the vendor's µm frame (y
    already points down) with its origin at the top left corner of the common extent of detections and H&E; the H&E is
    resampled into it, bilinearly, at its own µm per px. The measured area is what the fields of view imaged (the boxes
    around the rows of each fov_name, see `FieldBoxes`) and the H&E covers; where the file names no fields, the box
    around all of its rows stands for them, and the report says so. Without an H&E the report says so too.

    The transcripts are read twice, in batches: once for panel, extent and account, once for the corpus. Raises
    `InputError` for a missing file or column, places that are not µm of this run (px, mm, swapped), an alignment that
    contradicts the image, or an image that cannot be read.
    """
    folder = Path(folder)
    report = IngestReport("Xenium", str(folder))
    section_id = section_id or folder.resolve().name
    check_names(section_id, patient_id, cohort)
    pixel_um = _pixel_um(one_file(folder, "experiment.xenium"))
    file = XeniumFile(folder)
    he = _he(folder, image, alignment, pixel_um, report)
    if he is None and registration is not None:
        raise InputError(f"--registration={registration}: says how an H&E relates to the section, and {folder} holds "
                         "none; name one too (--image, --alignment)")  # fmt: skip
    selection = _Selection(file, min_qv, he, _genes(folder))
    seen = _survey(selection, report, section_id)
    panel = _panel(selection, seen, report, section_id)
    gene_F = panel.positions(file.features)

    def blocks() -> Iterator[Detections]:
        left = seen.kept
        for rows in file.rows(flags=True):
            keep_N = selection.keep(rows)
            left -= keep_N.sum()
            x_um_D, y_um_D = (rows.place_um_Nx2[keep_N] - origin_um).T
            in_nucleus_D, cell_D = (None if flag is None else flag[keep_N] for flag in (rows.in_nucleus_N, rows.cell_N))
            yield Detections(x_um_D, y_um_D, gene_F[rows.feature_N[keep_N]], in_nucleus_D, cell_D)
        if left:
            raise InputError(f"{file.path}: changed while it was read; run it again")

    origin_um, end_um = seen.low_um, seen.high_um
    if he is not None:
        origin_um, end_um = he.common_extent(origin_um, end_um)
    check_sides(str(file.path), *(end_um - origin_um))
    imaged = _imaged(seen.fields, origin_um, end_um, report)

    def generate() -> Iterator[SectionData]:
        measured = imaged if he is None else imaged & he.covered(origin_um, end_um)
        with extent_of(he, origin_um, end_um) as extent:
            yield SectionData(
                section_id, patient_id, cohort,
                **extent,
                detections=DetectionBlocks(blocks),
                measured=None if measured.all() else measured,
                registration="none" if he is None else registration or "same_section_after",
                quality=seen.quality(file) | {
                    "vendor_origin_x_um": float(origin_um[0]),
                    "vendor_origin_y_um": float(origin_um[1]),
                },
            )  # fmt: skip

    return Ingested(panel, generate(), 1, report)


def _pixel_um(path: Path) -> float:
    try:
        value = json.loads(path.read_text())["pixel_size"]
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"{path}: not JSON; expected the vendor's file unchanged") from None
    except (KeyError, TypeError, IndexError):
        raise InputError(f"{path}: no 'pixel_size'; expected µm per px of the morphology image") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.05 <= value <= 1:
        raise InputError(f"{path}: 'pixel_size' is {value!r}; expected µm per px of 0.05 to 1, such as 0.2125")
    return float(value)


def _he(folder: Path, image, alignment, pixel_um: float, report: IngestReport) -> HeBeside | None:
    """The H&E that was named, or that of the folder; None where there is none."""

    if image is None and not any(True for pattern in _IMAGES for _ in folder.glob(pattern)):
        if alignment is not None:
            raise InputError(f"{alignment}: an alignment without its H&E; name the image too (--image)")
        lonely = [path for path in sorted(folder.glob(_ALIGNMENTS[0])) if not path.name.endswith(_OF_FLUORESCENCE)]
        if lonely:
            raise InputError(f"{lonely[0]}: an alignment, but no H&E like {' or '.join(_IMAGES[::2])} beside it; name "
                             "the image (--image), or take the alignment away to do without")  # fmt: skip
        report.notes.append(f"no H&E: {folder} holds none like {_IMAGES[0]} and none was named (--image, --alignment)")
        return None
    image = one_file(folder, *_IMAGES, several="name it with --image") if image is None else Path(image)
    if alignment is None:  # of several of one run that of the H&E is meant
        of_he = len(list(folder.glob(_OF_HE))) == 1
        alignment = one_file(folder, *((_OF_HE,) if of_he else _ALIGNMENTS), several="name that of the H&E with "
                             "--alignment")  # fmt: skip
    alignment = Path(alignment)
    aligned = read_alignment(alignment, pixel_um)
    if aligned.note:
        report.notes.append(aligned.note)
    return HeBeside.at(image, aligned)


def _imaged(fields: FieldBoxes, origin_um: np.ndarray, end_um: np.ndarray, report: IngestReport) -> np.ndarray:
    """bool [rows, columns] of the extent at `MEASURED_UM_PER_PX`: px that a field of view covers."""
    unnamed = f"{fields.unnamed:,} of {fields.rows:,} rows name no field of view"
    if not len(fields) or fields.unnamed > _MOST_UNNAMED * fields.rows:
        why = unnamed if len(fields) else "no field of view is named"
        report.notes.append(f"{why} (column fov_name): the box around all rows counts as measured, and so do holes in "
                            "it")  # fmt: skip
        low_um_Fx2, high_um_Fx2 = origin_um[None], end_um[None]
    else:
        if fields.unnamed:
            report.notes.append(f"{unnamed}: where no other row's field lies they are not counted as measured")
        low_um_Fx2, high_um_Fx2 = fields.grown()
    imaged = within_boxes(low_um_Fx2, high_um_Fx2, MEASURED_UM_PER_PX, origin_um, end_um)
    if not imaged.all():
        report.notes.append(f"{len(fields)} fields of view leave {1 - imaged.mean():.1%} of the section out, which "
                            "counts as unmeasured")  # fmt: skip
    return imaged


def _genes(folder: Path) -> tuple[dict[str, str], int] | None:
    path = folder / "gene_panel.json"
    return read_gene_panel(path) if path.is_file() else None


@dataclasses.dataclass
class _Selection:
    """Which rows are kept."""

    file: XeniumFile
    min_qv: float
    he: HeBeside | None
    gene_panel: tuple[dict[str, str], int] | None

    def reasons(self, rows: XeniumRows) -> Iterator[tuple[str, np.ndarray]]:
        """Why rows are dropped, and which: the first reason of a row counts."""
        whole_N = np.isfinite(rows.place_um_Nx2).all(1) & np.isfinite(rows.qv_N)
        yield "without a place, name or qv", ~whole_N | (rows.feature_N < 0)
        yield "negative control, not a gene", rows.control_N
        if self.gene_panel is not None:
            known_F = np.array([*(name in self.gene_panel[0] for name in self.file.features), True])
            yield "not a gene of gene_panel.json", ~known_F[rows.feature_N]
        yield f"qv below {self.min_qv:g}", rows.qv_N < self.min_qv
        if self.he is not None:
            yield "outside the H&E", ~self.he.covers(rows.place_um_Nx2)

    def keep(self, rows: XeniumRows) -> np.ndarray:
        return ~np.any([bad_N for _, bad_N in self.reasons(rows)], axis=0)


@dataclasses.dataclass
class _Seen:
    """What the first pass gathers: sums and extremes."""

    kept: int
    dropped: int
    low_um: np.ndarray
    high_um: np.ndarray
    total_F: np.ndarray  # rows by feature
    good_F: np.ndarray  # of these, genes with a place and the qv, under the H&E or not
    fields: FieldBoxes

    def quality(self, file: XeniumFile) -> dict[str, float]:
        control_F = np.array([bool(CONTROL.match(name)) for name in file.features], bool)
        return {
            "control_detections": float(self.total_F[control_F].sum()),
            "control_features": float(control_F.sum()),
            "detections_dropped": float(self.dropped),
        }


def _survey(selection: _Selection, report: IngestReport, section_id: str) -> _Seen:
    """Raises `InputError` where nothing is kept, or where most places are not under the H&E."""
    file, he = selection.file, selection.he
    tally = report.open("detections", section_id, 0)
    low_um, high_um = np.full(2, np.inf), np.full(2, -np.inf)
    total_F, good_F = np.zeros(0, np.int64), np.zeros(0, np.int64)
    fields = FieldBoxes()
    kept = under = 0
    top_qv = -np.inf
    for rows in file.rows(fields=True):
        tally.read += len(rows.qv_N)
        left_N = np.ones(len(rows.qv_N), bool)
        good_N = left_N
        for reason, bad_N in selection.reasons(rows):
            if reason == "outside the H&E":
                good_N, under = left_N, under + int((~bad_N).sum())
            tally.drop(reason, (bad_N & left_N).sum())
            left_N = left_N & ~bad_N
        good_N = left_N if he is None else good_N
        kept += int(left_N.sum())
        if rows.field_N is not None:
            fields.add(rows.field_N, rows.place_um_Nx2)
        place_um_Nx2 = rows.place_um_Nx2[np.isfinite(rows.place_um_Nx2).all(1)]
        low_um = np.minimum(low_um, place_um_Nx2.min(0, initial=np.inf))
        high_um = np.maximum(high_um, place_um_Nx2.max(0, initial=-np.inf))
        top_qv = max(top_qv, np.max(rows.qv_N, where=np.isfinite(rows.qv_N), initial=-np.inf))
        total_F, good_F = (
            _longer(before_F, len(file.features)) + np.bincount(code, minlength=len(file.features))
            for before_F, code in ((total_F, rows.feature_N[rows.feature_N >= 0]), (good_F, rows.feature_N[good_N]))
        )
    if not tally.read:
        raise InputError(f"{file.path}: no rows; expected transcripts")
    if not good_F.any():
        if top_qv >= selection.min_qv:
            dropped = ", ".join(f"{reason}: {rows:,}" for reason, rows in tally.dropped.items())
            raise InputError(f"{file.path}: none of {tally.read:,} detections is left ({dropped}); are these files of "
                             "one run?")  # fmt: skip
        raise InputError(f"{file.path}: no gene with qv >= {selection.min_qv:g} (highest {top_qv:.3g}); is column "
                         "'qv' what it says?")  # fmt: skip
    if he is not None and under < 0.5 * tally.read:
        raise _misplaced(file, he, tally.read, under, low_um, high_um)
    tally.close(kept)
    return _Seen(kept, sum(tally.dropped.values()), low_um, high_um, total_F, good_F, fields)


def _longer(count_F: np.ndarray, length: int) -> np.ndarray:
    return np.pad(count_F, (0, length - len(count_F)))


def _panel(selection: _Selection, seen: _Seen, report: IngestReport, section_id: str) -> Panel:
    if selection.gene_panel is not None:
        ensembl, targets = selection.gene_panel
        symbols = sorted(ensembl)
        panel = Panel.of_ids(symbols, (ensembl[symbol] for symbol in symbols))
        genes = report.open("genes", section_id, targets)
        genes.drop("control or a second target of its gene in gene_panel.json", targets - len(panel))
        identified = sum(map(bool, panel.ensembl))
        report.notes.append(f"gene_panel.json: {len(panel)} genes were measured, {identified} with an Ensembl id, "
                            f"{int((seen.good_F > 0).sum())} were found")  # fmt: skip
    else:
        panel = Panel(tuple(sorted(name for name, good in zip(selection.file.features, seen.good_F, strict=True)
                                   if good)))  # fmt: skip
        genes = report.open("genes", section_id, len(selection.file.features))
        genes.drop("negative control or never seen with that qv", len(selection.file.features) - len(panel))
    genes.close(len(panel))
    return panel


def _misplaced(
    file: XeniumFile, he: HeBeside, number: int, under: int, low_um: np.ndarray, high_um: np.ndarray
) -> InputError:
    """Most places are not under the H&E: with the cause where one explains it."""
    pixel_um = he.alignment.pixel_um
    causes = {
        "they look swapped": lambda place_Nx2: place_Nx2[:, ::-1],
        f"they look like px of {pixel_um:g} µm": lambda place_Nx2: place_Nx2 * pixel_um,
        "they look like mm": lambda place_Nx2: place_Nx2 * 1000,
    }
    explained = dict.fromkeys(causes, 0)
    for rows in file.rows():
        for cause, change in causes.items():
            explained[cause] += int(he.covers(change(rows.place_um_Nx2)).sum())
    cause = max(explained, key=explained.get)
    why = cause if explained[cause] >= 0.5 * number else "are alignment and transcripts of one run?"
    (left, top), (right, bottom) = he.extent_um
    return InputError(
        f"{file.path}: columns 'x_location' ({low_um[0]:.5g} to {high_um[0]:.5g}), 'y_location' ({low_um[1]:.5g} to "
        f"{high_um[1]:.5g}) put {1 - under / number:.0%} of the transcripts outside the H&E (x {left:.5g} to "
        f"{right:.5g}, y {top:.5g} to {bottom:.5g} µm); expected µm of this run; {why}"
    )
