"""Columns of the tables of patients of one corpus or several."""

from collections.abc import Sequence

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.read import Corpus

USUAL = ("cohort", "diagnosis", "EGFR", "KRAS", "STK11", "PTEN", "RBM10", "response", "site", "scanner")


def columns_of(corpora: Sequence[Corpus], names: Sequence[str], patients: Sequence[str], *,
               hint: str = "") -> dict[str, np.ndarray]:  # fmt: skip
    """str [P] of each column, "" where nothing is known. hint: what else may be done about one that is not there.

    Raises `InputError` for a column that no table has, and where two tables differ in what they say of a patient.
    """
    table_of: dict[str, dict[str, str]] = {}
    for corpus in corpora:
        for row in corpus.patients:
            held = table_of.setdefault(row["patient"], {})
            for name, value in row.items():
                if held.setdefault(name, value) != value:
                    raise InputError(f"patient {row['patient']!r}: has {name} {held[name]!r} in one table, and "
                                     f"{value!r} in that of {corpus.root}; give one of the two")  # fmt: skip
    known = sorted({name for row in table_of.values() for name in row})
    for name in names:
        if name not in known:
            raise InputError(f"column {name!r}: is not in the table of patients; it has {', '.join(known) or 'none'}"
                             + hint)  # fmt: skip
    return {name: np.array([str(table_of.get(patient, {}).get(name) or "") for patient in patients]) for name in names}


def usual_columns(corpora: Sequence[Corpus]) -> tuple[str, ...]:
    """Those of USUAL that tell something of somebody."""
    known = {name for corpus in corpora for row in corpus.patients for name, value in row.items() if value}
    return tuple(name for name in USUAL if name in known)
