"""Targets of a CosMx panel: which are genes, under which symbol, and which symbols were lost to a spreadsheet."""

import dataclasses
import re
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.panel import Panel

# Anchored and case-sensitive: NEGR1, NANOG and NANS are genes.
CONTROL = re.compile(r"^(NegPrb\d+|Negative\d+|SystemControl\d+|FalseCode\d*)$", re.ASCII)
_MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec"
# What a spreadsheet makes of MARCHF1, SEPTIN2, DEC1: which of them it was cannot be known.
DATE = re.compile(
    rf"^(\d{{1,2}}-({_MONTHS})(-\d{{2,4}})?|({_MONTHS})-\d{{1,4}}|\d{{4}}-\d\d-\d\d.*|\d{{1,2}}/\d{{1,2}}/\d{{2,4}})$",
    re.ASCII | re.IGNORECASE,
)
_SHOWN = 8


def read_symbol_map(path: Path) -> dict[str, str]:
    """New symbols by the vendor's: lines of old<TAB>new, with or without these two words as a header.

    Raises `InputError` for another form, or an old symbol with two new ones.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected lines of old<TAB>new") from None
    symbols: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        pair = [word.strip() for word in line.split("\t")]
        if not line.strip() or (number == 1 and pair == ["old", "new"]):
            continue
        if len(pair) != 2 or not all(pair):
            raise InputError(f"{path}: line {number} is {line[:60]!r}; expected old<TAB>new")
        if symbols.setdefault(*pair) != pair[1]:
            raise InputError(f"{path}: line {number} maps {pair[0]!r} to {pair[1]!r}, an earlier one to "
                             f"{symbols[pair[0]]!r}; expected one new symbol")  # fmt: skip
    if not symbols:
        raise InputError(f"{path}: maps nothing; expected lines of old<TAB>new")
    return symbols


@dataclasses.dataclass(frozen=True)
class Targets:
    """T targets of a slide: what each is, and its gene's position in the panel (−1: none)."""

    panel: Panel
    gene_T: np.ndarray
    control_T: np.ndarray
    date_T: np.ndarray
    notes: tuple[str, ...]


def sort_targets(path: Path, names: list[str], symbols: dict[str, str], map_path: Path | None) -> Targets:
    """Sorts a slide's targets; `symbols` replaces the vendor's where it names them. Raises `InputError`."""
    control_T = np.array([bool(CONTROL.match(name)) for name in names], bool)
    for name, control in zip(names, control_T, strict=True):
        if control and name in symbols:
            raise InputError(f"{map_path}: maps {name!r}, a negative or system control; expected genes; remove it")
    symbol_T = [symbols.get(name, name) for name in names]
    date_T = np.array([bool(DATE.match(symbol)) for symbol in symbol_T], bool) & ~control_T
    genes: dict[str, list[str]] = {}
    for name, symbol, out in zip(names, symbol_T, control_T | date_T, strict=True):
        if not out:
            genes.setdefault(symbol, []).append(name)
    if not genes:
        raise InputError(f"{path}: column 'target' holds no gene; found {names[:3]}")
    notes = []
    mapped = [name for name in names if name in symbols]
    if symbols:
        unused = sorted(set(symbols) - set(names))
        further = f"; it also names {len(unused)} that are not here: {_shown(unused)}" if unused else ""
        notes.append(f"{len(mapped)} targets were renamed as {map_path} says{further}")
    if dates := sorted(name for name, date in zip(names, date_T, strict=True) if date):
        notes.append(f"targets that are dates, dropped: {_shown(dates)}; ask for the raw export, or say which genes "
                     "they were by a symbol map (--symbol-map)")  # fmt: skip
    if joined := sorted(symbol for symbol, held in genes.items() if len(held) > 1):
        notes.append(f"{len(joined)} genes are several targets, which are summed: {_shown(joined)}")
    if several := sorted(symbol for symbol in genes if "/" in symbol):
        notes.append(f"{len(several)} targets name several genes and stay under the vendor's name: {_shown(several)}")
    panel = Panel(tuple(sorted(genes)))
    gene_T = np.where(control_T | date_T, -1, panel.positions(symbol_T)).astype(np.int32)
    return Targets(panel, gene_T, control_T, date_T, tuple(notes))


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
