"""Spatial Transcriptomics (ST) as deposited with her2st: one H&E image, one table of counts, one table of spots.

A section NAME is three files: `NAME.jpg` (or png, tif), `NAME.tsv[.gz]` with spots as rows named `XxY` after their
array coordinates and genes as columns, and `NAME_selection.tsv` with x, y, new_x, new_y, pixel_x, pixel_y, selected.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from tario_jax.config import InputError
from tario_jax.corpus.section import PLAUSIBLE_UM_PER_PX, SectionData, Spots
from tario_jax.panel import Panel
from tario_jax.sources.delimited import codes, header, numbers, read_columns, read_table
from tario_jax.sources.images import image_size_px, read_rgb
from tario_jax.sources.ingested import Ingested, IngestReport, Tally
from tario_jax.sources.picture import MARGIN_UM, box_around
from tario_jax.sources.spot_table import summed

_IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
_SPOT_COLUMNS = ("x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected")


@dataclasses.dataclass
class _Section:
    """One section before its image is read. Counts are COO: spot_E, gene_E (of the panel, −1 = left out), count_E."""

    name: str
    image: Path
    um_per_px: float
    box_px: tuple[int, int, int, int]
    pixel_xy_Nx2: np.ndarray
    array_xy_Nx2: np.ndarray
    names_N: list[str]
    symbols: list[str]  # measured, distinct
    spot_E: np.ndarray
    gene_E: np.ndarray
    count_E: np.ndarray
    spots: Tally
    counts: Tally


def read_spots(
    folder: str | Path,
    *,
    patients: tuple[tuple[str, str], ...] | tuple[tuple[str, str, str], ...],
    sections: tuple[str, ...] = (),
    pitch_um: float = 200.0,
    diameter_um: float = 100.0,
    min_spot_total: int = 1,
    min_gene_total: int = 1,
) -> Ingested:
    """Reads the sections of `folder`, or those named.

    `patients` names whose section is whose, by the letters that a section's name starts with: (letters, cohort), where
    the letters are the patient's id, or (letters, patient, cohort). The panel is the union of the sections' genes with
    at least `min_gene_total` counts over all of them, sorted. µm per px is `pitch_um` over the pitch in px, fitted to
    all spots (array coordinates to pixels; the two axes may differ by 3 %, their geometric mean counts). The H&E is
    cut to the spots with a margin of 300 µm, and its top left corner is the section's origin.

    Raises `InputError` for a missing or unreadable file, a missing column, a value that is not a count, a spot that
    stands twice, pixels that are not of this image, or a section without a patient.
    """
    folder = Path(folder)
    for flag, value_um in (("--pitch-um", pitch_um), ("--diameter-um", diameter_um)):
        if not 1 <= value_um <= 1000:
            raise InputError(f"{flag}={value_um:g}: expected 1 to 1000 µm")
    if diameter_um > pitch_um:
        raise InputError(f"--diameter-um={diameter_um:g}: spots would overlap at a pitch of {pitch_um:g} µm; expected "
                         "less than --pitch-um")  # fmt: skip
    report = IngestReport("spots (ST)", str(folder))
    names = _section_names(folder, sections)
    owners = {name: _owner(folder, name, patients) for name in names}
    read = [_read_section(folder, name, pitch_um, report) for name in names]
    panel = _panel(read, min_gene_total, folder, report)
    for section in read:
        _drop_small_spots(section, min_spot_total, folder)

    def generate() -> Iterator[SectionData]:
        for section in read:
            yield _finish(section, *owners[section.name], panel, diameter_um)

    return Ingested(panel, generate(), len(read), report)


def _section_names(folder: Path, wanted: tuple[str, ...]) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected NAME.jpg, NAME.tsv.gz and NAME_selection.tsv in it")
    present = sorted(path.name.removesuffix("_selection.tsv") for path in folder.glob("*_selection.tsv"))
    if not present:
        raise InputError(f"{folder}: no file NAME_selection.tsv; expected the spot file of each section")
    missing = sorted(set(wanted) - set(present))
    if missing:
        raise InputError(f"{folder}: no section {missing[0]!r}; found {', '.join(present)}")
    return sorted(set(wanted)) if wanted else present


def _owner(folder: Path, name: str, patients: tuple[tuple[str, ...], ...]) -> tuple[str, str]:
    """(patient, cohort) of the longest letters that `name` starts with; P10 does not start with P1."""
    fitting = [row for row in patients if row[0] and name.startswith(row[0])
               and not (row[0][-1].isdigit() and name[len(row[0]) :][:1].isdigit())]  # fmt: skip
    if not fitting:
        known = ", ".join(row[0] for row in patients) or "none"
        raise InputError(f"{folder}: section {name!r} has no patient (given: {known}); name one: splits go by patient")
    row = max(fitting, key=lambda one: len(one[0]))
    return (row[0], row[1]) if len(row) == 2 else (row[1], row[2])


def _one_of(folder: Path, name: str, suffixes: tuple[str, ...]) -> Path:
    found = [folder / f"{name}{suffix}" for suffix in suffixes if (folder / f"{name}{suffix}").is_file()]
    if len(found) != 1:
        raise InputError(f"{folder}: {len(found)} files {name}{{{','.join(suffixes)}}}; expected exactly one")
    return found[0]


def _read_section(folder: Path, name: str, pitch_um: float, report: IngestReport) -> _Section:
    image = _one_of(folder, name, _IMAGES)
    width_px, height_px = image_size_px(image)
    counts_path = _one_of(folder, name, (".tsv", ".tsv.gz"))
    spots_path = folder / f"{name}_selection.tsv"
    table = read_columns(spots_path, dict.fromkeys(_SPOT_COLUMNS, pa.float64()), "\t")
    spot = {column: numbers(table[column]) for column in _SPOT_COLUMNS}
    for column in _SPOT_COLUMNS:
        if not np.isfinite(spot[column]).all():
            raise InputError(f"{spots_path}: column {column!r} has an empty value, or one that is infinite; expected a "
                             "number in each row")  # fmt: skip
    for column in ("x", "y"):
        whole_N = (np.abs(spot[column]) < 2**31) & (spot[column] == np.rint(spot[column]))
        if not whole_N.all():
            raise InputError(f"{spots_path}: column {column!r} holds {spot[column][~whole_N][0]:g}; expected whole "
                             f"numbers, after which the rows of {counts_path.name} are named")  # fmt: skip
    array_xy_Nx2 = np.stack([spot["x"], spot["y"]], 1).astype(np.int32)
    row_of = {f"{x}x{y}": row for row, (x, y) in enumerate(array_xy_Nx2.tolist())}
    if len(row_of) < len(array_xy_Nx2):
        raise InputError(f"{spots_path}: {len(array_xy_Nx2) - len(row_of)} spots stand twice; expected each x, y once")
    pixel_xy_Nx2 = np.stack([spot["pixel_x"], spot["pixel_y"]], 1)
    um_per_px = _um_per_px(spots_path, spot, pitch_um)
    inside_N = ((pixel_xy_Nx2 >= 0) & (pixel_xy_Nx2 < (width_px, height_px))).all(1)
    if inside_N.mean() < 0.5:
        raise InputError(
            f"{spots_path}: columns 'pixel_x', 'pixel_y' put {np.sum(~inside_N)} of {len(inside_N)} spots outside "
            f"{image.name} ({width_px} x {height_px} px); expected pixels of this image; is it another size or section?"
        )

    row_names, symbols, spot_E, gene_E, count_E = _read_counts(counts_path, report)
    known_R = np.array([row_of.get(row, -1) for row in row_names], np.int64)
    if (known_R < 0).all():
        raise InputError(
            f"{counts_path}: row {row_names[0]!r} and all others are not in {spots_path.name}; "
            "expected rows named XxY after its columns x and y"
        )
    spots = report.open("spots", name, len(row_names))
    counts = report.open("counts", name, count_E.sum())
    keep_R = np.ones(len(row_names), bool)
    for reason, bad_R in (
        (f"not in {spots_path.name}", known_R < 0),
        ("not selected (outside the tissue)", (known_R >= 0) & (spot["selected"][known_R] == 0)),
        ("outside the image", (known_R >= 0) & ~inside_N[known_R]),
    ):
        bad_R &= keep_R
        spots.drop(reason, bad_R.sum())
        counts.drop(f"spot {reason}", count_E[bad_R[spot_E]].sum())
        keep_R &= ~bad_R
    uncounted = sorted(set(row_of) - set(row_names))
    if uncounted:
        report.notes.append(f"{name}: spots of the spot file without a row of counts: {', '.join(uncounted[:8])}")
    kept_E = keep_R[spot_E]
    new_row_R = np.cumsum(keep_R) - 1
    kept_spot = known_R[keep_R]
    if not len(kept_spot):
        raise InputError(f"{spots_path}: no spot is left ({spots.dropped}); expected spots within the image")
    box_px = box_around(pixel_xy_Nx2[kept_spot], MARGIN_UM / um_per_px, width_px, height_px)
    return _Section(
        name, image, um_per_px, box_px, pixel_xy_Nx2[kept_spot], array_xy_Nx2[kept_spot],
        [row for row, keep in zip(row_names, keep_R, strict=True) if keep],
        symbols, new_row_R[spot_E[kept_E]], gene_E[kept_E], count_E[kept_E], spots, counts,
    )  # fmt: skip


def _um_per_px(path: Path, spot: dict[str, np.ndarray], pitch_um: float) -> float:
    """pitch_um over the pitch in px: sqrt(|det A|) of the affine A from (new_x, new_y) to (pixel_x, pixel_y).

    Fitted twice, the second time without the tenth of spots that lie farthest, so one misplaced spot does no harm.
    """
    design = np.stack([spot["new_x"], spot["new_y"], np.ones_like(spot["new_x"])], 1)
    target = np.stack([spot["pixel_x"], spot["pixel_y"]], 1)
    if len(design) < 6 or np.linalg.matrix_rank(design - design.mean(0)) < 2:
        raise InputError(f"{path}: {len(design)} spots; expected at least 6, not in one line, to find µm per px")
    affine = np.linalg.lstsq(design, target, rcond=None)[0]
    miss_N = np.linalg.norm(target - design @ affine, axis=1)
    core = miss_N <= np.quantile(miss_N, 0.9)
    affine = np.linalg.lstsq(design[core], target[core], rcond=None)[0]
    pitch_px = np.linalg.norm(affine[:2], axis=1)  # along new_x, along new_y
    typical_px = np.median(np.linalg.norm(target - design @ affine, axis=1))
    if not 0.97 < pitch_px[0] / pitch_px[1] < 1.03 or typical_px > 0.2 * pitch_px.mean():
        raise InputError(
            f"{path}: columns 'pixel_x', 'pixel_y' do not follow 'new_x', 'new_y' (pitch {pitch_px[0]:.1f} and "
            f"{pitch_px[1]:.1f} px, half of the spots off by {typical_px:.1f} px or more); expected a square array; "
            "are columns swapped?"
        )
    if np.linalg.det(affine[:2]) < 0:
        raise InputError(
            f"{path}: the pixels mirror the array (determinant of 'new_x', 'new_y' to 'pixel_x', 'pixel_y' is "
            "negative); expected both to run right and down; are 'pixel_x' and 'pixel_y' swapped?"
        )
    um_per_px = pitch_um / float(np.sqrt(np.prod(pitch_px)))
    low_um, high_um = PLAUSIBLE_UM_PER_PX
    if not low_um <= um_per_px <= high_um:
        raise InputError(
            f"{path}: {um_per_px:.3g} µm per px (pitch {pitch_um:g} µm over {np.sqrt(np.prod(pitch_px)):.4g} px); "
            f"expected {low_um} to {high_um}; is pixel_x in pixels of the full image, and pitch_um right?"
        )
    return um_per_px


def _read_counts(path: Path, report: IngestReport) -> tuple[list[str], list[str], np.ndarray, np.ndarray, np.ndarray]:
    """(row names, distinct symbols, and COO entries row_E, symbol_E, count_E). Columns of one symbol are summed."""
    names = header(path, "\t")
    if len(names) < 2:
        raise InputError(f"{path}: {len(names)} columns; expected a column of spot names and one for each gene")
    empty = [position for position, name in enumerate(names[1:], 2) if not name]
    if empty:
        raise InputError(f"{path}: column {empty[0]} has no gene name; expected a symbol in the header")
    types = {position: pa.string() if position == 0 else pa.float64() for position in range(len(names))}
    table = read_table(path, names, types, "\t")
    row_N, row_names = codes(table.column(0))
    if not row_names:
        raise InputError(f"{path}: holds no spot; expected a row for each")
    if len(row_names) < len(row_N) or (row_N < 0).any():
        raise InputError(f"{path}: {len(row_N)} rows but {len(row_names)} spot names; expected each spot once")
    counts_NxC = np.stack([numbers(column) for column in table.columns[1:]], 1)
    wrong = ~((counts_NxC >= 0) & (counts_NxC < 2**31) & (counts_NxC == np.rint(counts_NxC)))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise InputError(
            f"{path}: column {names[column + 1]!r}, row {row_names[row]!r} holds {counts_NxC[row, column]:g}; "
            "expected raw counts (whole numbers of at least 0), not normalised values"
        )
    symbols = list(dict.fromkeys(names[1:]))
    position = {symbol: index for index, symbol in enumerate(symbols)}
    column_symbol = np.array([position[name] for name in names[1:]], np.int32)
    if len(symbols) < len(names) - 1:
        twice = sorted(symbol for symbol in symbols if names.count(symbol) > 1)
        report.notes.append(f"{path.name}: {len(twice)} symbols have several columns, summed: {', '.join(twice[:8])}")
    row_E, column_E = np.nonzero(counts_NxC)
    return row_names, symbols, row_E, column_symbol[column_E], counts_NxC[row_E, column_E].astype(np.int64)


def _panel(read: list[_Section], min_gene_total: int, folder: Path, report: IngestReport) -> Panel:
    """The panel, and each section's entries renumbered to it."""
    symbols = sorted(set().union(*(section.symbols for section in read)))
    index = {symbol: position for position, symbol in enumerate(symbols)}
    total_G = np.zeros(len(symbols), np.int64)
    for section in read:
        to_union = np.array([index[symbol] for symbol in section.symbols], np.int32)
        section.gene_E = to_union[section.gene_E]
        np.add.at(total_G, section.gene_E, section.count_E)
    keep_G = total_G >= min_gene_total
    if not keep_G.any():
        raise InputError(f"{folder}: no gene has {min_gene_total} counts; lower min_gene_total")
    panel = Panel(tuple(symbol for symbol, keep in zip(symbols, keep_G, strict=True) if keep))
    to_panel = np.where(keep_G, np.cumsum(keep_G) - 1, -1).astype(np.int32)
    genes = report.open("genes", "", len(symbols))
    genes.drop(f"fewer than {min_gene_total} counts over all sections", (~keep_G).sum())
    genes.close(len(panel))
    for section in read:
        section.gene_E = to_panel[section.gene_E]
        out = section.gene_E < 0
        section.counts.drop(f"gene with fewer than {min_gene_total} counts", section.count_E[out].sum())
        section.spot_E, section.gene_E, section.count_E = (
            entries[~out] for entries in (section.spot_E, section.gene_E, section.count_E)
        )
    return panel


def _drop_small_spots(section: _Section, min_spot_total: int, folder: Path) -> None:
    total_N = np.bincount(section.spot_E, section.count_E, len(section.names_N)).astype(np.int64)
    keep_N = total_N >= min_spot_total
    if not keep_N.any():
        raise InputError(f"{folder}: no spot of {section.name} has {min_spot_total} counts; lower min_spot_total")
    section.spots.drop(f"fewer than {min_spot_total} counts", (~keep_N).sum())
    section.counts.drop(f"spot with fewer than {min_spot_total} counts", total_N[~keep_N].sum())
    keep_E = keep_N[section.spot_E]
    section.spot_E = (np.cumsum(keep_N) - 1)[section.spot_E[keep_E]]
    section.gene_E, section.count_E = section.gene_E[keep_E], section.count_E[keep_E]
    section.pixel_xy_Nx2, section.array_xy_Nx2 = section.pixel_xy_Nx2[keep_N], section.array_xy_Nx2[keep_N]
    section.names_N = [name for name, keep in zip(section.names_N, keep_N, strict=True) if keep]
    section.spots.close(len(section.names_N))
    section.counts.close(section.count_E.sum())


def _finish(section: _Section, patient_id: str, cohort: str, panel: Panel, diameter_um: float) -> SectionData:
    he = read_rgb(section.image, section.box_px)
    left, top, right, bottom = section.box_px
    place_um_Nx2 = (section.pixel_xy_Nx2 - (left, top)) * section.um_per_px
    # columns of one symbol meet here
    indptr, gene_E, count_E = summed(section.spot_E, section.gene_E, section.count_E, len(section.names_N),
                                     len(panel))  # fmt: skip
    measured_gene_G = np.zeros(len(panel), bool)
    position_S = panel.positions(section.symbols)
    measured_gene_G[position_S[position_S >= 0]] = True
    spots = Spots(
        x_um_N=place_um_Nx2[:, 0],
        y_um_N=place_um_Nx2[:, 1],
        diameter_um=diameter_um,
        indptr=indptr,
        gene_E=gene_E,
        count_E=count_E,
        name_N=tuple(section.names_N),
        array_xy_Nx2=section.array_xy_Nx2,
    )
    return SectionData(
        section_id=section.name,
        patient_id=patient_id,
        cohort=cohort,
        width_um=(right - left) * section.um_per_px,
        height_um=(bottom - top) * section.um_per_px,
        he_um_per_px=section.um_per_px,
        he=he,
        spots=spots,
        measured_gene_G=measured_gene_G,
        registration="same_section_before",
        quality={
            "spots_dropped": float(sum(section.spots.dropped.values())),
            "counts_dropped": float(sum(section.counts.dropped.values())),
            "he_origin_x_px": float(left),
            "he_origin_y_px": float(top),
        },
    )
