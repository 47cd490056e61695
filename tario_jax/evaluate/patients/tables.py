"""Columns that are known of patients: from the tables of corpora, from a text file, and which cohort a row is of."""

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.read import Corpus
from tario_jax.evaluate.patients.store import EmbeddingStore

USUAL = ("cohort", "diagnosis", "EGFR", "KRAS", "STK11", "PTEN", "RBM10", "response", "site", "scanner")
UNKNOWN = ("", "nan", "none", "unknown", "na", "n/a")


def says_nothing(value: object) -> bool:
    """The one rule of what is unknown, for columns, cohorts and confounders alike."""
    return str(value).strip().lower() in UNKNOWN


def not_known(value_P: Sequence[str] | np.ndarray) -> np.ndarray:
    """bool [P]"""
    return np.array([says_nothing(value) for value in value_P], bool)


@dataclasses.dataclass(frozen=True)
class PatientTable:
    """A text file of patients, as `Corpus` has them. Made by `read_table`."""

    root: Path
    patients: tuple[dict[str, str], ...]
    lines: tuple[int, ...]  # of the file, where each row ends

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for name in self.patients[0] if name != "patient")


Table = Corpus | PatientTable


def read_table(path: Path) -> PatientTable:
    """A header, its first column `patient`; after it stands what separates columns: a tab, a comma or a semicolon.

    Raises `InputError` for what is no such table, is not UTF-8, or has a patient twice.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"--table={path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"--table={path}, line {line}: is not UTF-8; save it as UTF-8") from None
    first = text.split("\n", 1)[0].strip("\r")
    found = re.match(r'\s*("?)patient\1\s*?([\t,;])', first)
    if found is None:
        raise InputError(f"--table={path}, line 1: its columns are {first[:80]!r}; expected 'patient' first, then "
                         "others, with tabs or commas between")  # fmt: skip
    rows, lines = [], []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=found[2], strict=True)
    try:
        names = [name.strip() for name in next(reader)]
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append(reader.line_num)
                rows.append([cell.strip() for cell in cells])
    except csv.Error as error:
        raise InputError(f"--table={path}, line {reader.line_num}: is no row of a table: {error}") from None
    twice = next((name for name in names if not name or names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--table={path}, line 1: column {twice!r} "
                         + ("stands twice; remove one" if twice else "has no name; name it"))  # fmt: skip
    line_of: dict[str, int] = {}
    for line, cells in zip(lines, rows, strict=True):
        if len(cells) != len(names) or not cells[0]:
            what = f"{len(cells)} columns; expected {len(names)}" if cells[0] else "no patient; name one"
            raise InputError(f"--table={path}, line {line}: has {what}")
        if line_of.setdefault(cells[0], line) != line:
            raise InputError(f"--table={path}, line {line}: patient {cells[0]!r} stands on line {line_of[cells[0]]} "
                             "too; expected one row a patient")  # fmt: skip
    if not rows:
        raise InputError(f"--table={path}: holds no row but its header")
    return PatientTable(path, tuple(dict(zip(names, cells, strict=True)) for cells in rows), tuple(lines))


def table_of_file(path: Path | None, store: EmbeddingStore, say: Callable[[str], None]) -> list[PatientTable]:
    """That which `read_table` reads, if one is named; how many of its patients are not embedded is said. Raises
    `InputError` where none is."""
    if path is None:
        return []
    table, embedded = read_table(path), set(store.patient_of_section().values())
    absent = [row["patient"] for row in table.patients if row["patient"] not in embedded]
    if len(absent) == len(table.patients):
        known = ", ".join(sorted(embedded)[:3]) or "none"
        raise InputError(f"--table={path}: none of its {len(absent)} patients ({absent[0]}, …) is in {store.folder}; "
                         f"it has {known}, …; write their names as 'tario embed' found them")  # fmt: skip
    if absent:
        say(f"{path}: {len(absent)} of its {len(table.patients)} patients are not in {store.folder}")
    return [table]


def columns_of(tables: Sequence[Table], names: Sequence[str], patients: Sequence[str], *,
               cohort_P: np.ndarray | None = None, hint: str = "") -> dict[str, np.ndarray]:  # fmt: skip
    """str [P] of each column, "" where nothing is known. cohort: of the patients' rows of embeddings, where no table
    tells it; hint: what else may be done about a column that is not there.

    Raises `InputError` for a column that no table has, and where two tables differ in what they say of a patient.
    """
    value_of: dict[str, dict[str, str]] = {}
    known = set() if cohort_P is None else {"cohort"}
    for table in tables:
        for at, row in enumerate(table.patients):
            held = value_of.setdefault(row["patient"], {})
            known.update(row)
            for name, value in row.items():
                if not says_nothing(value) and held.setdefault(name, str(value)) != str(value):
                    raise InputError(f"{_place(table, at)}: patient {row['patient']!r} has {name} {str(value)!r}, and "
                                     f"{held[name]!r} in another table; give one of the two")  # fmt: skip
    for name in names:
        if name not in known:
            raise InputError(f"column {name!r}: is not in the table of patients; it has "
                             f"{', '.join(sorted(known)) or 'none'}{hint}")  # fmt: skip
    found = {name: np.array([value_of.get(patient, {}).get(name, "") for patient in patients], str)
             for name in names}  # fmt: skip
    if cohort_P is not None and "cohort" in found:
        own_P = np.where(not_known(cohort_P), "", cohort_P)
        found["cohort"] = np.where(found["cohort"] == "", own_P, found["cohort"])
    return found


def _place(table: Table, at: int) -> str:
    return f"{table.root}, line {table.lines[at]}" if isinstance(table, PatientTable) else str(table.root)


def usual_columns(tables: Sequence[Table], cohort_P: np.ndarray) -> tuple[str, ...]:
    """Those of USUAL that tell something of somebody, a row's cohort among them, and all of a text file."""
    known = {name for table in tables for row in table.patients for name, value in row.items()
             if not says_nothing(value)}  # fmt: skip
    known |= {"cohort"} if not not_known(cohort_P).all() else set()
    further = (name for table in tables if isinstance(table, PatientTable) for name in table.columns if name in known)
    return tuple(dict.fromkeys([*(name for name in USUAL if name in known), *further]))
