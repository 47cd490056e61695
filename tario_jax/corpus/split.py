"""Who trains, who validates, who is held out.

A patient on two sides is an error. Only `by="section"`, said out loud in the config, allows it, and every result says
so.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from tario_jax.config import InputError, SplitConfig
from tario_jax.corpus.read import Corpus, Section

SIDES = ("train", "validation", "held_out")


@dataclasses.dataclass(frozen=True)
class Split:
    """Sections by side."""

    by: str  # "patient" or "section"
    train: tuple[Section, ...]
    validation: tuple[Section, ...]
    held_out: tuple[Section, ...]


def split_corpus(corpus: Corpus, config: SplitConfig) -> Split:
    """Splits by the config's lists, or by the corpus's `split.tsv` where they are empty.

    Raises `InputError` where a patient (or section) is unknown, stands on two sides, or a side is empty.
    """
    lists = {side: getattr(config, side) for side in SIDES}
    where = "config.split"
    if not any(lists.values()):
        path = corpus.root / "split.tsv"
        where = str(path)
        if config.by == "section":
            raise InputError("config.split: by='section' needs its lists train and held_out")
        lists = read_split(path)
    unit = config.by
    known = {getattr(section, "id" if unit == "section" else "patient") for section in corpus.sections}
    assigned = _assign(lists, where, unit, known)
    sides: dict[str, list[Section]] = {side: [] for side in SIDES}
    for section in corpus.sections:
        side = assigned.get(section.id if unit == "section" else section.patient)
        if side is not None:
            sides[side].append(section)
    for side in ("train", "held_out"):
        if not sides[side]:
            raise InputError(f"{where}: no section is on the side {side!r}; expected at least one")
    return Split(unit, *(tuple(sides[side]) for side in SIDES))


def read_split(path: Path) -> dict[str, list[str]]:
    """Reads `split.tsv` (columns patient, split); a patient on two lines with different sides stays on both."""
    if not path.exists():
        raise InputError(f"{path}: no such file; write one with the columns patient and split, or set config.split")
    lines = path.read_text().splitlines()
    if not lines or lines[0].split("\t") != ["patient", "split"]:
        raise InputError(f"{path}: first line is {lines[:1]}; expected 'patient<TAB>split'")
    lists: dict[str, list[str]] = {side: [] for side in SIDES}
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if len(cells) != 2 or cells[1] not in SIDES:
            raise InputError(
                f"{path}, line {number}: {line!r}; expected a patient, a tab and one of {', '.join(SIDES)}"
            )
        lists[cells[1]].append(cells[0])
    return lists


def _assign(lists: dict[str, Iterable[str]], where: str, unit: str, known: set[str]) -> dict[str, str]:
    assigned: dict[str, str] = {}
    for side, names in lists.items():
        for name in names:
            if name not in known:
                raise InputError(f"{where}: {unit} {name!r} is not in the corpus; it holds {sorted(known)[:5]}")
            if assigned.setdefault(name, side) != side:
                raise InputError(
                    f"{where}: {unit} {name!r} is in {assigned[name]!r} and in {side!r}; expected one side"
                )
    return assigned
