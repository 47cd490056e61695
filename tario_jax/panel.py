"""Genes in order, and their hash.

A panel is an ordered list of gene symbols. Its length is a value, never a constant; its hash travels with every
corpus, checkpoint, map and bundle, so that a rate is never read under another gene's name.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable

import numpy as np

from tario_jax.config import InputError

GENE_AXIS_MULTIPLE = 1024


def padded_genes(genes: int) -> int:
    """Length of the gene axis on a device: the next multiple of GENE_AXIS_MULTIPLE, whatever the mesh."""
    return -(-genes // GENE_AXIS_MULTIPLE) * GENE_AXIS_MULTIPLE


@dataclasses.dataclass(frozen=True)
class Panel:
    """An ordered list of unique gene symbols.

    Raises `InputError` where a symbol is empty or stands twice.
    """

    symbols: tuple[str, ...]

    def __post_init__(self):
        seen = set()
        for position, symbol in enumerate(self.symbols):
            if not symbol or symbol != symbol.strip():
                raise InputError(f"panel: gene {position} is {symbol!r}; expected a symbol without spaces around it")
            if symbol in seen:
                raise InputError(f"panel: gene {symbol!r} stands twice; sum or rename the duplicates before")
            seen.add(symbol)

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

    def to_text(self) -> str:
        """As a table of one column, `symbol`."""
        return "".join(f"{symbol}\n" for symbol in ("symbol", *self.symbols))

    @classmethod
    def from_text(cls, text: str, where: str) -> "Panel":
        """The panel of such a table; `where` is its place in messages. Raises `InputError` for another header."""
        lines = text.splitlines()
        if not lines or lines[0] != "symbol":
            raise InputError(f"{where}: first line is {lines[:1]}; expected the header 'symbol'")
        return cls(tuple(lines[1:]))
