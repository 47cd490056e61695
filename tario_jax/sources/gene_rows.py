"""The genes of a vendor's matrix as a panel: symbols are not unique there, Ensembl ids are."""

import collections
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.panel import Panel, ensembl_id
from tario_jax.sources.ingested import IngestReport


def gene_panel(
    path: Path, section_id: str, symbols: Sequence[str], ids: Sequence[str], reason_R: Sequence[str],
    report: IngestReport,
) -> tuple[Panel, np.ndarray]:  # fmt: skip
    """(panel of the distinct symbols, sorted; int32 gene of each row, −1 where `reason_R` says why it is none).

    Rows of one symbol become one gene and are named in the report, which counts every row. Such a gene has no Ensembl
    id, unless all of its rows have the same. Raises `InputError` for a row without a symbol, or where no gene is left.
    """
    ids_of: dict[str, list[str]] = {}
    for symbol, gene_id, reason in zip(symbols, ids, reason_R, strict=True):
        if not reason:
            ids_of.setdefault(symbol.strip(), []).append(ensembl_id(gene_id))
    reasons = collections.Counter(reason for reason in reason_R if reason)
    if "" in ids_of:
        raise InputError(f"{path}: a gene ({ids_of[''][0] or 'without an id'}) has no symbol; expected one in each row")
    if not ids_of:
        raise InputError(f"{path}: holds no gene ({dict(reasons) or 'no row at all'}); expected gene expression")
    names = sorted(ids_of)
    several = [name for name in names if len(ids_of[name]) > 1]
    tally = report.open("genes", section_id, len(symbols))
    for reason, rows in sorted(reasons.items()):
        tally.drop(reason, rows)
    tally.drop("further row of the same symbol, summed", sum(len(ids_of[name]) - 1 for name in several))
    tally.close(len(names))
    if several:
        report.notes.append(f"{section_id}: {len(several)} symbols have several rows, summed: {', '.join(several[:8])}")
    gene_of = {name: position for position, name in enumerate(names)}
    gene_R = [-1 if reason else gene_of[symbol.strip()] for symbol, reason in zip(symbols, reason_R, strict=True)]
    meant = [next(iter(set(ids_of[name]))) if len(set(ids_of[name])) == 1 else "" for name in names]
    return Panel.of_ids(names, meant), np.array(gene_R, np.int32)


def whole_numbers(path: Path, value_E: np.ndarray) -> np.ndarray:
    """The values as int32. Raises `InputError` where one is no count."""
    if value_E.dtype.kind not in "iuf":
        raise InputError(f"{path}: holds counts of the kind {value_E.dtype}; expected numbers")
    wrong_E = ~((value_E >= 0) & (value_E < 2**31))
    if not np.issubdtype(value_E.dtype, np.integer):
        wrong_E |= value_E != np.rint(value_E)
    if wrong_E.any():
        raise InputError(f"{path}: holds {value_E[wrong_E][0]:g}; expected raw counts (whole numbers of at least 0), "
                         "not normalised values")  # fmt: skip
    return value_E.astype(np.int32, copy=False)
