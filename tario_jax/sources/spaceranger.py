"""What Space Ranger writes for Visium and Visium HD alike: matrix, positions, scale factors and pictures."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from tario_jax.config import InputError
from tario_jax.panel import Panel
from tario_jax.sources.barcodes import Barcodes
from tario_jax.sources.delimited import require_columns
from tario_jax.sources.gene_rows import gene_panel, whole_numbers
from tario_jax.sources.images import reason_of
from tario_jax.sources.ingested import IngestReport, Tally
from tario_jax.sources.picture import Picture
from tario_jax.sources.slide_files import opened_slide

_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
_EXPRESSION = "Gene Expression"
_FEATURES = ("id", "name", "feature_type")
_REDUCED = "tissue_hires_image.png"
_SIZE_OFF_PX = 3  # of the reduced picture, whose sides are rounded
_OUTPUTS = ("outs", "binned_outputs", "spatial", "")
_ENTRIES = 1 << 22  # of a matrix that are read at once
_BARCODES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Positions:
    """Every spot or square of the slide, in tissue or not; P rows."""

    path: Path
    barcode_P: Barcodes
    in_tissue_P: np.ndarray  # bool
    array_xy_Px2: np.ndarray  # int32: column, row
    pixel_xy_Px2: np.ndarray  # float64, px of the full-resolution image


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Counts of genes as they stand in the file, by barcode; B barcodes, R features, G genes of `panel`.

    The counts themselves stay in the file: they are read block by block, any number of times.
    """

    path: Path
    barcode_B: Barcodes
    panel: Panel
    indptr: np.ndarray  # int64 [B + 1], of the file's entries
    gene_R: np.ndarray  # int32, position in the panel; −1 for what is no gene
    total_B: np.ndarray  # int64, counts of genes
    counts: Tally  # what was read, and dropped as no gene

    def blocks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
        """(barcodes, their indptr, gene, count) of some hundred thousand barcodes at a time, in the file's order.

        Several entries of a barcode may be of one gene. Raises `InputError` where the file cannot be read.
        """
        for barcodes, indptr, row_E, count_E in _entries(self.path, self.indptr):
            gene_E = self.gene_R[row_E]
            kept_E = gene_E >= 0
            yield barcodes, np.concatenate([[0], np.cumsum(kept_E)])[indptr], gene_E[kept_E], count_E[kept_E]

    def of(self, barcodes_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(indptr, gene, count) of these barcodes, in memory."""
        blocks = list(self.blocks())
        size_B = np.concatenate([np.diff(indptr) for _, indptr, *_ in blocks])
        gene_E, count_E = (np.concatenate([block[part] for block in blocks]) for part in (2, 3))
        start_B = np.cumsum(size_B) - size_B
        indptr = np.concatenate([[0], np.cumsum(size_B[barcodes_N])])
        entry_E = np.arange(indptr[-1]) + np.repeat(start_B[barcodes_N] - indptr[:-1], size_B[barcodes_N])
        return indptr, gene_E[entry_E], count_E[entry_E]


def _entries(path: Path, indptr: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
    """(barcodes, their indptr from 0, feature, count) of the file, at most about `_ENTRIES` at a time."""
    import h5py

    first, barcodes = 0, len(indptr) - 1
    try:
        with h5py.File(path) as file:
            matrix = file["matrix"]
            while first < barcodes:
                end = max(first + 1, int(np.searchsorted(indptr, indptr[first] + _ENTRIES, side="right")) - 1)
                part = slice(int(indptr[first]), int(indptr[end]))
                count_E = whole_numbers(path, matrix["data"][part])
                yield slice(first, end), indptr[first : end + 1] - part.start, matrix["indices"][part], count_E
                first = end
    except (OSError, KeyError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be read: {reason_of(error)}; expected Space Ranger's file unchanged")


def read_positions(folder: Path) -> Positions:
    """`tissue_positions.parquet`, `.csv` (with a header) or `tissue_positions_list.csv` (without) of a folder.

    Raises `InputError` where there is none or several, a column is missing, or a barcode stands twice.
    """
    names = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) != 1:
        raise InputError(f"{folder}: {len(found)} files of {', '.join(names)}; expected one")
    path = found[0]
    numbers = dict(zip(_COLUMNS[1:], (pa.int8(), pa.int32(), pa.int32(), pa.float64(), pa.float64()), strict=True))
    found: dict[str, list[np.ndarray]] = {name: [] for name in numbers}

    def barcodes() -> Iterator[pa.Array]:
        """Of one batch after the other, whose numbers are kept meanwhile."""
        for batch in _position_batches(path):
            empty = [name for name in _COLUMNS if batch[name].null_count]
            if empty:
                raise InputError(f"{path}: column {empty[0]!r} has an empty value; expected one in each row")
            for name, kind in numbers.items():
                found[name].append(batch[name].cast(kind, safe=False).to_numpy(zero_copy_only=False))
            yield batch["barcode"].cast(pa.string())

    try:
        barcode_P = Barcodes(barcodes())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise InputError(f"{path}: cannot be read: {str(error).splitlines()[0]}; expected the columns "
                         f"{', '.join(_COLUMNS)} unchanged") from None  # fmt: skip
    pa.default_memory_pool().release_unused()  # of the strings: hundreds of MB of a whole slide of Visium HD
    twice = barcode_P.repeated()
    if not len(barcode_P):
        raise InputError(f"{path}: holds no row; expected one for each spot or square")
    if twice:
        raise InputError(f"{path}: {twice} of {len(barcode_P)} barcodes stand twice; expected each once")
    in_tissue_P, row_P, column_P, down_P, right_P = (np.concatenate(found.pop(name)) for name in numbers)
    pixel_xy_Px2 = np.stack([right_P, down_P], 1)
    if not np.isfinite(pixel_xy_Px2).all():
        raise InputError(f"{path}: column 'pxl_row_in_fullres' or 'pxl_col_in_fullres' holds no number; expected px")
    return Positions(path, barcode_P, in_tissue_P != 0, np.stack([column_P, row_P], 1), pixel_xy_Px2)


def _position_batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        with parquet.ParquetFile(path) as file:
            require_columns(path, file.schema_arrow.names, _COLUMNS)
            yield from file.iter_batches(_BARCODES, columns=list(_COLUMNS))
        return
    with path.open("rb") as file:  # what the file is called does not tell whether it has a header
        first_row = file.readline().decode("utf-8-sig", "replace").strip().replace('"', "").split(",")
    has_header = first_row[0] == "barcode"
    if has_header:
        require_columns(path, first_row, _COLUMNS)
    table = csv.read_csv(
        path, csv.ReadOptions(column_names=first_row if has_header else _COLUMNS, skip_rows=int(has_header)),
        convert_options=csv.ConvertOptions(column_types={"barcode": pa.string()}, include_columns=_COLUMNS),
    )  # fmt: skip
    yield from table.to_batches()


def run_name(folder: Path) -> str:
    """What a section is called by default: the folder of the run, since all runs call their output `outs`."""
    path = folder.resolve()
    return next((part.name for part in (path, *path.parents) if part.name not in _OUTPUTS), path.name)


def read_scale_factors(folder: Path, *names: str) -> dict[str, float]:
    """Numbers of `scalefactors_json.json` by name. Raises `InputError` where one of `names` is missing or not > 0."""
    path = folder / "scalefactors_json.json"
    try:
        factors = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected Space Ranger's scale factors") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"{path}: not JSON; expected Space Ranger's file unchanged") from None
    for name in names:
        value = factors.get(name) if isinstance(factors, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise InputError(f"{path}: {name!r} is {value!r}; expected a number above 0")
    return factors


def fit_lattice(positions: Positions, step_um: tuple[float, float]) -> tuple[np.ndarray, float]:
    """The affine from array coordinates times `step_um` to px, float64 [3, 2], and µm per px: 1 / sqrt(|det|).

    Raises `InputError` where the pixels do not follow the array, or it cannot be told.
    """
    thinned = slice(None, None, max(1, len(positions.array_xy_Px2) // 200_000))
    array_xy_Tx2, target = positions.array_xy_Px2[thinned], positions.pixel_xy_Px2[thinned]
    design = np.column_stack([array_xy_Tx2 * step_um, np.ones(len(array_xy_Tx2))])
    if len(design) < 3 or np.linalg.matrix_rank(design - design.mean(0)) < 2:
        raise InputError(f"{positions.path}: {len(design)} places; expected at least 3, not in one line")
    affine = np.linalg.lstsq(design, target, rcond=None)[0]
    scale = np.linalg.svd(affine[:2], compute_uv=False)
    miss_px = float(np.median(np.linalg.norm(target - design @ affine, axis=1)))
    if scale[1] < 0.97 * scale[0] or miss_px > 0.2 * max(step_um) * scale[0]:
        raise InputError(
            f"{positions.path}: columns 'pxl_row_in_fullres', 'pxl_col_in_fullres' do not follow 'array_row', "
            f"'array_col' ({scale[0]:.4g} and {scale[1]:.4g} px per µm, half of the places off by {miss_px:.3g} px or "
            "more); expected one lattice; are columns swapped?"
        )
    return affine, 1 / float(np.sqrt(np.prod(scale)))


def choose_picture(
    folder: Path, image: str | Path | None, um_per_px: float, section_id: str, report: IngestReport
) -> Picture:
    """The full-resolution image that was named, else Space Ranger's hires picture, which the report then says."""
    if image is not None:
        if not Path(image).is_file():
            raise InputError(f"--image={image}: no such file; expected the H&E that Space Ranger was given")
        with opened_slide(Path(image)) as file:
            stated_um, size_px = file.other_scale(um_per_px), file.levels[0].shape[1::-1]
            report.notes += [f"{section_id}: {note}" for note in file.notes]
        if stated_um is not None:
            raise InputError(
                f"--image={image}: says {stated_um:.4g} µm per px, the places of {folder} are px of {um_per_px:.4g}; "
                "expected the image that Space Ranger was given, in its resolution; name that one, or take the scale "
                "out of the file where it is wrong"
            )
        _check_size(folder, Path(image), size_px)
        return Picture(Path(image), um_per_px)
    path = folder / _REDUCED
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the full-resolution H&E with --image=FILE")
    per_fullres = read_scale_factors(folder, "tissue_hires_scalef")["tissue_hires_scalef"]
    report.notes.append(
        f"{section_id}: H&E is Space Ranger's reduced picture {path.name} at {um_per_px / per_fullres:.3g} µm per px, "
        f"not the scan at {um_per_px:.3g}; give the scan with --image=FILE"
    )
    return Picture(path, um_per_px / per_fullres, per_fullres)


def _check_size(folder: Path, image: Path, size_px: tuple[int, int]) -> None:
    """Raises `InputError` where Space Ranger's reduced picture, if it is there, is of an image of another size."""
    path = folder / _REDUCED
    if not path.is_file():
        return
    per_fullres = read_scale_factors(folder, "tissue_hires_scalef")["tissue_hires_scalef"]
    with opened_slide(path) as file:
        given_px = [side / per_fullres for side in file.levels[0].shape[1::-1]]
    off = max(abs(side * per_fullres - given * per_fullres) for side, given in zip(size_px, given_px, strict=True))
    if off > _SIZE_OFF_PX:
        raise InputError(f"--image={image}: is of {size_px[0]} × {size_px[1]} px; Space Ranger was given one of about "
                         f"{given_px[0]:.0f} × {given_px[1]:.0f}, by {path} and its scale; name that one")  # fmt: skip


def read_matrix(folder: Path, section_id: str, report: IngestReport) -> Matrix:
    """`filtered_feature_bc_matrix.h5`, else `raw_feature_bc_matrix.h5`, of a folder.

    Genes are the file's symbols, sorted; rows of one symbol are one gene, which then has no single Ensembl id. What is
    no gene (antibodies and other captures, probes that the vendor withdrew) is dropped and counted.
    Raises `InputError` for a missing or unreadable file, another format, or a value that is not a count.
    """
    paths = [folder / f"{name}_feature_bc_matrix.h5" for name in ("filtered", "raw")]
    path = next((one for one in paths if one.is_file()), None)
    if path is None:
        raise InputError(f"{folder}: no {paths[0].name} and no {paths[1].name}; expected Space Ranger's h5 matrix")
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: needs h5py; pip install 'tario-jax[io]'") from None
    try:
        with h5py.File(path) as file:
            if "matrix" not in file or any(f"features/{name}" not in file["matrix"] for name in _FEATURES):
                raise InputError(f"{path}: holds {', '.join(list(file)[:4])} but no 'matrix' with features; expected "
                                 "the h5 of Space Ranger (or Cell Ranger 3 and newer)")  # fmt: skip
            matrix = file["matrix"]
            ids, symbols, kinds = (matrix[f"features/{name}"].asstr()[:].tolist() for name in _FEATURES)
            barcode_B, indptr = Barcodes(_barcodes(matrix["barcodes"])), matrix["indptr"][:].astype(np.int64)
            entries = len(matrix["data"])
            _check_form(path, len(barcode_B), ids, symbols, kinds, indptr, len(matrix["indices"]), entries)
    except (OSError, KeyError, pa.ArrowInvalid, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise _unreadable(path, error) from None
    reason_R = np.array([_no_gene(gene_id, kind) for gene_id, kind in zip(ids, kinds, strict=True)], object)
    counts = report.open("counts", section_id, 0)
    panel, gene_R = gene_panel(path, section_id, symbols, ids, reason_R, report)
    by_row_R, total_B = np.zeros(len(ids), np.int64), np.zeros(len(barcode_B), np.int64)
    for barcodes, starts, row_E, count_E in _entries(path, indptr):
        if len(row_E) and not 0 <= row_E.min() <= row_E.max() < len(ids):
            raise InputError(f"{path}: holds 'indices' from {row_E.min()} to {row_E.max()} for {len(ids)} features; "
                             "expected Space Ranger's file unchanged")  # fmt: skip
        by_row_R += np.bincount(row_E, count_E, len(ids)).astype(np.int64)
        of_genes_E = np.where(gene_R[row_E] >= 0, count_E, 0)
        total_B[barcodes] = np.diff(np.concatenate([[0], np.cumsum(of_genes_E, dtype=np.int64)])[starts])
    counts.read = int(by_row_R.sum())
    for reason in sorted(set(reason_R) - {""}):
        counts.drop(reason, by_row_R[reason_R == reason].sum())
    return Matrix(path, barcode_B, panel, indptr, gene_R, total_B, counts)


def _barcodes(stored: Any) -> Iterator[pa.Array]:
    """A million at a time: as objects of Python all of a slide's would take gigabytes."""
    for first in range(0, len(stored), _BARCODES):
        yield pa.array(stored[first : first + _BARCODES].astype(object), pa.binary()).cast(pa.string())


def _check_form(path: Path, barcodes: int, ids, symbols, kinds, indptr: np.ndarray, rows: int, entries: int) -> None:
    """Raises `InputError` where parts of a matrix do not fit each other, as in a file that was cut and mended."""
    wrong = None
    if not barcodes or not entries:
        wrong = f"{barcodes} barcodes and {entries} counts"
    elif not len(ids) == len(symbols) == len(kinds):
        wrong = f"{len(ids)} ids, {len(symbols)} names and {len(kinds)} types of features"
    elif len(indptr) != barcodes + 1 or indptr[0] or indptr[-1] != entries or (np.diff(indptr) < 0).any():
        wrong = f"'indptr' of {len(indptr)} values up to {indptr[-1:]} for {barcodes} barcodes and {entries} counts"
    elif rows != entries:
        wrong = f"{rows} 'indices' for {entries} counts"
    if wrong:
        raise InputError(f"{path}: holds {wrong}; expected Space Ranger's file unchanged")


def _no_gene(gene_id: str, kind: str) -> str:
    if kind != _EXPRESSION:
        return f"feature type {kind}, not a gene"
    return "probe that the vendor withdrew" if gene_id.startswith("DEPRECATED_") else ""


def place_of_barcodes(
    matrix: Matrix, positions: Positions, what: str, section_id: str, report: IngestReport
) -> tuple[np.ndarray, np.ndarray, Tally]:
    """(barcodes in tissue, their rows in the positions, their tally); all others are dropped and counted.

    `what` names them in the report, spots or squares. Its tally stays open, as that of the counts.
    """
    twice = matrix.barcode_B.repeated()
    if twice:
        raise InputError(f"{matrix.path}: {twice} of {len(matrix.barcode_B)} barcodes stand twice; expected each once")
    row_B = matrix.barcode_B.places_in(positions.barcode_P)
    if (row_B < 0).all():
        first = matrix.barcode_B.names(np.arange(1))[0].as_py()
        raise InputError(f"{matrix.path}: barcode {first!r} and all others are not in {positions.path.name}; expected "
                         "the files of one run")  # fmt: skip
    tally = report.open(what, section_id, len(row_B))
    keep_B = np.ones(len(row_B), bool)
    for reason, bad_B in (
        (f"not in {positions.path.name}", row_B < 0),
        ("not in tissue", (row_B >= 0) & ~positions.in_tissue_P[row_B]),
    ):
        tally.drop(reason, bad_B.sum())
        matrix.counts.drop(f"{what} {reason}", matrix.total_B[bad_B].sum())
        keep_B &= ~bad_B
    if not keep_B.any():
        raise InputError(f"{positions.path}: no barcode of {matrix.path.name} is in tissue; expected 'in_tissue' = 1")
    uncounted = int(positions.in_tissue_P.sum() - keep_B.sum())
    if uncounted:
        report.notes.append(f"{section_id}: {uncounted} {what} in tissue have no counts in {matrix.path.name}")
    kept = np.flatnonzero(keep_B)
    return kept, row_B[kept], tally
