"""Delimited text files through pyarrow, where every mistake in a file becomes one line."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from tario_jax.config import InputError

_BLOCK_BYTES = 1 << 24  # of text that is parsed at once


def one_file(folder: Path, *patterns: str, several: str = "put each slide into a folder of its own") -> Path:
    """The single file of `folder` that matches one of `patterns`; `several`: what to do where there are more.

    Raises `InputError` where there is none, or where the choice would be a guess.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected the vendor's export")
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"{folder}: no file like {' or '.join(patterns)}; expected the vendor's export")
    if len(found) == 2 and found[1].name == found[0].name + ".gz":
        several = "the second is the first compressed: remove one"
    raise InputError(f"{folder}: {len(found)} files like {patterns[0]} ({found[0].name}, {found[1].name}); expected "
                     f"one; {several}")  # fmt: skip


def header(path: Path, delimiter: str = ",") -> list[str]:
    """Names of the columns, as written."""
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            text = bytearray()
            while b"\n" not in text and (block := stream.read(1 << 16)):
                text += block
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        line = bytes(text).split(b"\n", 1)[0].decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError:
        raise InputError(f"{path}: its first line is not UTF-8; expected the names of columns; save it as "
                         "UTF-8") from None  # fmt: skip
    if not line.strip():
        raise InputError(f"{path}: empty file; expected a header line")
    return [name.strip().strip('"') for name in line.split(delimiter)]


def ends_within_a_line(path: Path) -> bool:
    """Whether the last line has no end, as where a file was cut short; a compressed one cannot be read then."""
    with path.open("rb") as file:
        if path.suffix == ".gz" or not file.seek(0, 2):
            return False
        file.seek(-1, 2)
        return file.read(1) not in b"\r\n"


def require_columns(path: Path, present: list[str], required: tuple[str, ...]) -> None:
    """Raises `InputError` for the first column that `path` lacks."""
    missing = [name for name in required if name not in present]
    if missing:
        shown = ", ".join(present[:12]) + (", …" if len(present) > 12 else "")
        raise InputError(f"{path}: no column {missing[0]!r}; found {shown}; expected {', '.join(required)}")
    twice = [name for name in required if present.count(name) > 1]
    if twice:
        raise InputError(f"{path}: column {twice[0]!r} stands twice; expected it once; remove one")


def read_columns(path: Path, types: dict[str, pa.DataType], delimiter: str = ",") -> dict[str, pa.ChunkedArray]:
    """The columns of `types`, in those types. An empty field is null.

    Raises `InputError` for a missing column, a value of another type (with its column and line) or a broken file.
    """
    names = header(path, delimiter)
    require_columns(path, names, tuple(types))
    table = read_table(path, names, {names.index(name): kind for name, kind in types.items()}, delimiter)
    return dict(zip(types, table.columns, strict=True))


def column_batches(
    path: Path, types: dict[str, pa.DataType], delimiter: str = ","
) -> Iterator[dict[str, pa.ChunkedArray]]:
    """As `read_columns`, some hundred thousand rows at a time: for files that are larger than memory."""
    names = header(path, delimiter)
    require_columns(path, names, tuple(types))
    positions = {names.index(name): kind for name, kind in types.items()}
    try:
        with csv.open_csv(path, *_options(names, positions, delimiter)) as reader:
            for batch in reader:
                yield dict(zip(types, pa.Table.from_batches([batch]).columns, strict=True))
    except pa.ArrowInvalid as error:
        if "Empty CSV file" not in str(error):  # a header and no row
            raise _invalid(path, names, str(error).splitlines()[0]) from None
    except OSError as error:
        raise _unreadable(path, error) from None


def read_table(path: Path, names: list[str], types: dict[int, pa.DataType], delimiter: str) -> pa.Table:
    """Columns by position, so that a header that holds a name twice does no harm. Columns come in `types`' order."""
    try:
        return csv.read_csv(path, *_options(names, types, delimiter))
    except pa.ArrowInvalid as error:
        raise _invalid(path, names, str(error).splitlines()[0]) from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _options(names: list[str], types: dict[int, pa.DataType], delimiter: str) -> tuple:
    by_position = [str(position) for position in range(len(names))]
    return (
        csv.ReadOptions(column_names=by_position, skip_rows=1, block_size=_BLOCK_BYTES),
        csv.ParseOptions(delimiter=delimiter),
        csv.ConvertOptions(
            column_types={str(position): kind for position, kind in types.items()},
            include_columns=[str(position) for position in types],
            strings_can_be_null=True,
            null_values=[""],  # NA may be a name; in a column of numbers it is refused
        ),
    )


def _invalid(path: Path, names: list[str], message: str) -> InputError:
    """pyarrow counts columns from 0 and calls them by position; the user knows them by name."""
    where, _, rest = message.partition(": ")
    number = where.rpartition("#")[2]
    if where.startswith("In CSV column") and number.isdigit() and int(number) < len(names):
        row = f" ({rest.split(':')[0].strip()})" if rest.startswith("Row") else ""
        if "invalid UTF8" in rest:
            return InputError(f"{path}: column {names[int(number)]!r} is not UTF-8{row}; save it as UTF-8")
        value = rest.rpartition("invalid value ")[2]
        return InputError(f"{path}: column {names[int(number)]!r} holds {value}{row}; expected a number")
    return InputError(f"{path}: not a table of {len(names)} columns: {message}; expected the vendor's file unchanged")


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read: {str(error).splitlines()[0]}; expected a text file, plain or gzip")


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A numeric column as float64, null as NaN."""
    return column.cast(pa.float64()).to_numpy()


def codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """A column of names as codes (int32, −1 for null) and the distinct names. Bytes are decoded as UTF-8."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    joined = column.unify_dictionaries().combine_chunks()
    if isinstance(joined, pa.ChunkedArray):
        joined = pa.concat_arrays(joined.chunks) if joined.num_chunks else pa.array([], column.type)
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in joined.dictionary.to_pylist()]
    return joined.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32), names


class Names:
    """Distinct names in the order in which they come, over any number of batches.

    `nothing`: names that stand for no name, such as that of no cell.
    """

    def __init__(self, nothing: frozenset[str] = frozenset()):
        self._nothing = nothing
        self._code: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._code)

    def __iter__(self) -> Iterator[str]:
        return iter(self._code)

    def codes(self, column: pa.ChunkedArray) -> np.ndarray:
        """Position of each row's name among the distinct ones, int32; −1 for null."""
        local_N, names = codes(column)
        code = [-1 if name in self._nothing else self._code.setdefault(name, len(self._code)) for name in names]
        return np.array([*code, -1], np.int32)[local_N]  # the last entry serves −1
