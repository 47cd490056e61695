"""Scores of gene sets: how much of a bin's expression is of a set's genes, against the rest of its slide."""

import dataclasses
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.panel import Panel
from tario_jax.predict.map_store import MapStore

CELL_TYPES = Path(__file__).with_name("cell_types.gmt")  # markers, each set with its source
_PER = 1e4  # detections, to which a bin's rates are scaled before their logarithm
_LEAST_DEVIATION = 1e-6


@dataclasses.dataclass(frozen=True)
class Signature:
    """A named set of genes of a panel."""

    name: str
    positions: np.ndarray  # in the panel
    missing: tuple[str, ...] = ()  # that the panel has not
    kind: str = "gene set"  # or cell type


def read_gmt(path: Path, panel: Panel) -> list[Signature]:
    """Sets of a GMT file: a line each, name, description and symbols, with tabs between them.

    Raises `InputError` for a file that is none, a name that stands twice, and where no set has a gene of the panel.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected gene sets in a GMT file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read ({type(error).__name__}); expected a GMT file: text with tabs"
        ) from None
    found: dict[str, Signature] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, *rest = line.split("\t")
        name = name.strip()
        symbols = list(dict.fromkeys(symbol.strip() for symbol in rest[1:] if symbol.strip()))
        if not name or not symbols:
            raise InputError(f"{path}, line {number}: {line[:60]!r}; expected name, description and symbols, with tabs "
                             "between them")  # fmt: skip
        if name in found:
            raise InputError(f"{path}, line {number}: set {name!r} stands twice; rename one")
        known = [symbol for symbol in symbols if symbol in panel.index]
        found[name] = Signature(name, np.array([panel.index[symbol] for symbol in known], int),
                                tuple(symbol for symbol in symbols if symbol not in panel.index))  # fmt: skip
    if not found:
        raise InputError(f"{path}: holds no gene set; expected name, description and symbols in each line")
    if not any(len(one.positions) for one in found.values()):
        raise InputError(f"{path}: none of its genes is among the {len(panel)} of the maps; expected symbols as "
                         f"{', '.join(panel.symbols[:3])}")  # fmt: skip
    return list(found.values())


def cell_types(panel: Panel) -> list[Signature]:
    """Markers of cell types of which the panel has some. Their scores say where a type is more than elsewhere on the
    slide, not how many of its cells there are."""
    markers = {symbol for line in CELL_TYPES.read_text().splitlines() for symbol in line.split("\t")[2:]}
    if not markers & set(panel.symbols):
        return []
    found = [one for one in read_gmt(CELL_TYPES, panel) if len(one.positions)]
    return [dataclasses.replace(one, kind="cell type") for one in found]


def scores(store: MapStore, signatures: list[Signature]) -> np.ndarray:
    """Score of each set at each bin, float32 [N, sets]; NaN for a set without a gene of the panel.

    The mean over its genes of the bin's log2(1 + detections per 10,000), each gene in deviations from its mean over the
    slide's bins: a gene that is everywhere alike says nothing, a strong one no more than a weak one.
    """
    used = sorted({int(gene) for one in signatures for gene in one.positions})
    place = {gene: at for at, gene in enumerate(used)}
    members = [np.array([place[int(gene)] for gene in one.positions], int) for one in signatures]
    sums_NxS = np.zeros((len(store), len(signatures)), np.float64)
    step = max(1, (64 << 20) // (8 * max(1, len(store))))  # genes at once
    for first in range(0, len(used), step):
        some = np.array(used[first : first + step])
        log_Nxg = np.log2(1.0 + _PER * store.genes(some).astype(np.float64) / store.total_N[:, None])
        deviation_g = log_Nxg.std(0)
        z_Nxg = (log_Nxg - log_Nxg.mean(0)) / np.where(deviation_g > _LEAST_DEVIATION, deviation_g, np.inf)
        for number, of_set in enumerate(members):
            inside = of_set[(of_set >= first) & (of_set < first + step)] - first
            sums_NxS[:, number] += z_Nxg[:, inside].sum(1)
    sizes = np.array([len(of_set) for of_set in members], float)
    return (sums_NxS / np.where(sizes > 0, sizes, np.nan)).astype(np.float32)
