"""The rows of Xenium's transcripts.parquet or transcripts.csv.gz, versions 1 to 3 of its software, batch by batch."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from tario_jax.config import InputError
from tario_jax.sources.delimited import Names, column_batches, header, numbers, one_file, require_columns

# Anchored and case-sensitive: a gene that merely begins with the same letters stays.
CONTROL = re.compile(
    r"^(NegControlProbe|NegControlCodeword|BLANK|UnassignedCodeword|DeprecatedCodeword|antisense)_", re.ASCII
)
_COLUMNS = ("feature_name", "x_location", "y_location", "qv")
_FLAGS = ("cell_id", "overlaps_nucleus")
_FIELD = "fov_name"  # since version 1.3
_CATEGORIES = ("is_gene", "codeword_category")  # since version 2
_NO_CELL = frozenset({"-1", "0", "UNASSIGNED", ""})
_BATCH_ROWS = 1 << 20
_READ_BYTES = 1 << 22  # of a column at once: a row group may be the whole file


@dataclasses.dataclass(frozen=True)
class XeniumRows:
    """N rows of the file, in its order."""

    place_um_Nx2: np.ndarray
    qv_N: np.ndarray
    feature_N: np.ndarray  # codes of `XeniumFile.features`, −1 for no name
    control_N: np.ndarray
    in_nucleus_N: np.ndarray | None
    cell_N: np.ndarray | None  # 1, 2, … in the order in which they come; 0 in no cell
    field_N: np.ndarray | None  # codes of fields of view, in the order in which they come; −1 in none


class XeniumFile:
    """A file of transcripts. Its rows can be read any number of times; codes of features, cells and
    fields of view stay the same.

    Raises `InputError` for a missing file or column, or a column of another type.
    """

    def __init__(self, folder: Path):
        whole = folder / "transcripts.parquet"
        self.path = whole if whole.is_file() else one_file(folder, whole.name, "transcripts.csv.gz", "transcripts.csv")
        self.features = Names()
        self._cells, self._fields = Names(_NO_CELL), Names(frozenset({""}))
        self._is_parquet = self.path.suffix == ".parquet"
        schema = self._schema() if self._is_parquet else None
        self._present = schema.names if schema else header(self.path)
        require_columns(self.path, self._present, _COLUMNS)
        if schema:  # before the file is opened: a column that cannot be a dictionary would not be found then
            _check_types(self.path, schema)

    def rows(self, *, flags: bool = False, fields: bool = False) -> Iterator[XeniumRows]:
        """flags: cells and nuclei too, where the file gives them; fields: fields of view, likewise."""
        category = next((name for name in _CATEGORIES if name in self._present), None)
        names = [*_COLUMNS, *([category] if category else [])]
        optional = (*(_FLAGS if flags else ()), *((_FIELD,) if fields else ()))
        names += [name for name in optional if name in self._present]
        for table in self._parquet_batches(names) if self._is_parquet else self._csv_batches(names):
            feature_N = self._codes(self.features, table, "feature_name", "gene symbols")
            written = next((name for name in self.features if name.startswith(("b'", 'b"'))), None)
            if written is not None:  # its controls would be taken for genes
                raise InputError(f"{self.path}: column 'feature_name' holds {written}, bytes as Python writes them; "
                                 "expected gene symbols; export it again, or decode the column")  # fmt: skip
            control_F = np.array([*(bool(CONTROL.match(name)) for name in self.features), False])
            control_N = control_F[feature_N]
            if category == "is_gene":
                control_N |= ~_true(table[category])
            elif category:
                control_N |= ~_is_gene(table[category])
            yield XeniumRows(
                np.stack([numbers(table["x_location"]), numbers(table["y_location"])], 1),
                numbers(table["qv"]), feature_N, control_N,
                _true(table["overlaps_nucleus"]) if "overlaps_nucleus" in names else None,
                self._cells.codes(table["cell_id"]) + np.int32(1) if "cell_id" in names else None,
                self._codes(self._fields, table, _FIELD, "names") if _FIELD in names else None,
            )  # fmt: skip

    def _codes(self, names: Names, table: dict[str, pa.ChunkedArray], column: str, expected: str) -> np.ndarray:
        try:
            return names.codes(table[column])
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: column {column!r} holds {error.object!r}, which is not UTF-8; "
                             f"expected {expected}") from None  # fmt: skip

    def _schema(self) -> pa.Schema:
        try:
            return parquet.read_schema(self.path)
        except (pa.ArrowInvalid, OSError) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> InputError:
        reason = str(error).splitlines()[0]
        return InputError(f"{self.path}: cannot be read as parquet: {reason}; expected the vendor's file unchanged")

    def _parquet_batches(self, names: list[str]) -> Iterator[dict[str, pa.ChunkedArray]]:
        dictionaries = [name for name in ("feature_name", "cell_id", _FIELD) if name in names]
        with parquet.ParquetFile(self.path, read_dictionary=dictionaries, buffer_size=_READ_BYTES) as file:
            try:
                # one reader over all groups would hold the buffers of each until its end
                for group in range(file.num_row_groups):
                    for batch in file.iter_batches(_BATCH_ROWS, [group], columns=names):
                        table = pa.Table.from_batches([batch])
                        yield {name: table[name] for name in names}
            except (pa.ArrowInvalid, OSError) as error:
                raise self._unreadable(error) from None

    def _csv_batches(self, names: list[str]) -> Iterator[dict[str, pa.ChunkedArray]]:
        text = pa.dictionary(pa.int32(), pa.string())
        types = {"feature_name": text, "cell_id": text, _FIELD: text, "codeword_category": text, "is_gene": pa.bool_(),
                 "overlaps_nucleus": pa.bool_()}  # fmt: skip
        return column_batches(self.path, {name: types.get(name, pa.float64()) for name in names})


def _check_types(path: Path, schema: pa.Schema) -> None:
    for name in _COLUMNS[1:]:
        kind = schema.field(name).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise InputError(f"{path}: column {name!r} is {kind}; expected numbers")
    kind = schema.field("feature_name").type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(test(value) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary,
                                        pa.types.is_large_binary)):  # fmt: skip
        raise InputError(f"{path}: column 'feature_name' is {value}; expected gene symbols")
    for name, expected, fits in (
        ("overlaps_nucleus", "0 and 1", _is_flag), ("is_gene", "true and false", _is_flag),
        ("codeword_category", "words", lambda kind: not _is_flag(kind)),
        ("cell_id", "names or numbers", lambda kind: not pa.types.is_nested(kind)),
        (_FIELD, "names or numbers", lambda kind: not pa.types.is_nested(kind)),
    ):  # fmt: skip
        if name in schema.names and not fits(schema.field(name).type):
            raise InputError(f"{path}: column {name!r} is {schema.field(name).type}; expected {expected}")


def _is_flag(kind: pa.DataType) -> bool:
    return pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or kind == pa.null()


def _true(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.float64()).fill_null(0).to_numpy() != 0


def _is_gene(column: pa.ChunkedArray) -> np.ndarray:
    """Of codeword_category: predesigned_gene and custom_gene, as against controls and unassigned codewords."""
    categories = Names()
    category_N = categories.codes(column)
    return np.array([*(name.endswith("_gene") for name in categories), False])[category_N]
