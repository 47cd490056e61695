"""A table in a file of its suffix: parquet, or text with tabs or commas."""

import csv
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tario_jax.config import InputError
from tario_jax.predict.whole_output import whole_output

SEPARATORS = {".tsv": "\t", ".csv": ","}


def write_table(table: pa.Table, path: Path, about: dict[str, str]) -> None:
    """The file is absent or whole. about: of all of it, as metadata of parquet or '#' lines of text."""
    with whole_output(path) as partial:
        _write(table, path, partial, about)


def _write(table: pa.Table, path: Path, partial: Path, about: dict[str, str]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(
            table.replace_schema_metadata({f"tario.{name}": value for name, value in about.items()}), partial
        )
    elif path.suffix in SEPARATORS:
        separator = SEPARATORS[path.suffix]
        options = pyarrow.csv.WriteOptions(include_header=False, delimiter=separator, quoting_style="needed")
        with partial.open("wb") as file:
            file.write("".join(f"# {name}: {value}\n" for name, value in about.items()).encode())
            header = io.StringIO()
            csv.writer(header, delimiter=separator, lineterminator="\n").writerow(table.column_names)
            file.write(header.getvalue().encode())
            pyarrow.csv.write_csv(table, file, options)
    else:
        raise InputError(f"{path}: ends in {path.suffix!r}; expected .parquet, .tsv or .csv")
