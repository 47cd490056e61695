"""Genes in order, and their hash.

A panel is an ordered list of gene symbols. Its length is a value, never a constant; its hash travels with every
corpus, checkpoint, map and bundle, so that a rate is never read under another gene's name.
"""

import collections
import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from tario_jax.config import InputError

GENE_AXIS_MULTIPLE = 1024
_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d+)(?:\.\d+)?(_PAR_Y)?", re.ASCII)


def padded_genes(genes: int) -> int:
    """Length of the gene axis on a device: the next multiple of GENE_AXIS_MULTIPLE, whatever the mesh."""
    return -(-genes // GENE_AXIS_MULTIPLE) * GENE_AXIS_MULTIPLE


def ensembl_id(name: str) -> str:
    """The Ensembl gene id that `name` is, without its version; '' where it is none."""
    found = _ENSEMBL.fullmatch(name)
    return found[1] + (found[2] or "") if found else ""


@dataclasses.dataclass(frozen=True)
class Panel:
    """An ordered list of unique gene symbols, with their Ensembl ids where those are known.

    The hash is that of the symbols: ids tell which gene of a source is meant, they are no names of the panel.
    Raises `InputError` where a symbol is empty or stands twice, or an id is none or stands twice.
    """

    symbols: tuple[str, ...]
    # of each symbol, without versions, '' where unknown; none at all by default
    ensembl: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self):
        seen = set()
        for position, symbol in enumerate(self.symbols):
            if not symbol or symbol != symbol.strip():
                raise InputError(f"panel: gene {position} is {symbol!r}; expected a symbol without spaces around it")
            if symbol in seen:
                raise InputError(f"panel: gene {symbol!r} stands twice; sum or rename the duplicates before")
            seen.add(symbol)
        if self.ensembl and len(self.ensembl) != len(self.symbols):
            raise InputError(f"panel: {len(self.ensembl)} Ensembl ids of {len(self.symbols)} genes; expected one each")
        meant: dict[str, str] = {}
        for symbol, gene_id in zip(self.symbols, self.ensembl, strict=False):
            if gene_id and ensembl_id(gene_id) != gene_id:
                raise InputError(f"panel: gene {symbol!r} has the id {gene_id!r}; expected one like ENSG00000141510")
            if gene_id and meant.setdefault(gene_id, symbol) != symbol:
                raise InputError(f"panel: {gene_id} is the id of {meant[gene_id]!r} and of {symbol!r}; correct one")

    @classmethod
    def of_ids(cls, symbols: Iterable[str], ids: Iterable[str]) -> "Panel":
        """The panel of `symbols` with their ids; an id of several symbols says of none of them which gene is meant."""
        ids = [ensembl_id(gene_id) for gene_id in ids]
        held = collections.Counter(ids)
        known = tuple(gene_id if held[gene_id] == 1 else "" for gene_id in ids)
        return cls(tuple(symbols), known if any(known) else ())

    def __len__(self) -> int:
        return len(self.symbols)

    @functools.cached_property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the symbols, one a line."""
        return hashlib.sha256("\n".join(self.symbols).encode()).hexdigest()[:16]

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Position of each symbol."""
        return {symbol: position for position, symbol in enumerate(self.symbols)}

    def positions(self, symbols: Iterable[str]) -> np.ndarray:
        """Positions of `symbols` as int32; −1 for a symbol that is not in the panel."""
        return np.array([self.index.get(symbol, -1) for symbol in symbols], np.int32)

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        """The Ensembl id of each gene, also of one whose symbol is its id; '' where there is none."""
        known = self.ensembl or ("",) * len(self)
        return tuple(gene_id or ensembl_id(symbol) for symbol, gene_id in zip(self.symbols, known, strict=True))

    def to_text(self) -> str:
        """As a table of one column, `symbol`, or of two, `symbol` and `ensembl`, where ids are known."""
        if not self.ensembl:
            return "".join(f"{symbol}\n" for symbol in ("symbol", *self.symbols))
        rows = zip(("symbol", *self.symbols), ("ensembl", *self.ensembl), strict=True)
        return "".join(f"{symbol}\t{gene_id}\n" for symbol, gene_id in rows)

    @classmethod
    def from_text(cls, text: str, where: str) -> "Panel":
        """The panel of such a table; `where` is its place in messages.

        Versions of ids (the .12 of ENSG00000141510.12) are left off. Raises `InputError` for another header, or a row
        of another number of columns.
        """
        lines = text.removeprefix("\ufeff").splitlines()
        if not lines or lines[0] not in ("symbol", "symbol\tensembl"):
            raise InputError(f"{where}: first line is {lines[:1]}; expected the header 'symbol', or 'symbol' and "
                             "'ensembl' with a tab between them")  # fmt: skip
        if len(lines) == 1:
            raise InputError(f"{where}: holds a header and no gene; expected a symbol a line")
        if lines[0] == "symbol":
            return cls(tuple(lines[1:]))
        rows = [line.split("\t") for line in lines[1:]]
        for number, row in enumerate(rows, 2):
            if len(row) != 2:
                raise InputError(f"{where}: line {number} has {len(row)} columns; expected a symbol and an Ensembl id "
                                 "(or nothing) with a tab between them")  # fmt: skip
        return cls(tuple(row[0] for row in rows), tuple(ensembl_id(row[1]) or row[1] for row in rows))


class GeneMatch(NamedTuple):
    """Which gene of a panel each gene of another one, S, is."""

    position_S: np.ndarray  # int32, in the panel; −1 where it has none
    renamed: tuple[str, ...]  # in words: by their ids the same, under another symbol
    contradicted: tuple[str, ...]  # in words: under the same symbol another gene, by their ids


def match_genes(others: Panel, panel: Panel) -> GeneMatch:
    """By Ensembl id where both panels give one, else by symbol, letter by letter.

    A gene whose symbol is the panel's under another id is not taken for it.
    """
    by_id = {gene_id: position for position, gene_id in enumerate(panel.ids) if gene_id}
    position_S = np.full(len(others), -1, np.int32)
    renamed, contradicted = [], []
    for number, (symbol, gene_id) in enumerate(zip(others.symbols, others.ids, strict=True)):
        by_symbol = panel.index.get(symbol, -1)
        if gene_id in by_id:
            position_S[number] = by_id[gene_id]
            if panel.symbols[by_id[gene_id]] != symbol:
                renamed.append(f"{symbol} is {panel.symbols[by_id[gene_id]]} by {gene_id}")
        elif by_symbol >= 0 and gene_id and panel.ids[by_symbol]:
            contradicted.append(f"{symbol} is {gene_id}, in the panel {panel.ids[by_symbol]}")
        else:
            position_S[number] = by_symbol
    return GeneMatch(position_S, tuple(renamed), tuple(contradicted))
