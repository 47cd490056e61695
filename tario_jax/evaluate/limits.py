"""How far a measurement, and any reader of the H&E, can come on virtual tissue: r(T, X) and r(V, X) by gene class.

r(T, X) is the ceiling of the measurement, r(V, X) that of every H&E model. Both are averaged over genes and sections,
in counts and composition, at each side of bins.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate.bins import grid_counts, grid_places
from tario_jax.evaluate.metrics import composition, expected_composition, mean_defined, pearson_by_gene
from tario_jax.evaluate.moran import morans_i, neighbour_weights
from tario_jax.virtual.genes import program
from tario_jax.virtual.section import truth_rates

BINS_UM = (36.0, 18.0, 9.0)
FORMS = ("counts", "composition")
TOP_GENES = 1000
MIN_TOTAL = 20  # counts of a bin of 36 µm in the composition form; in proportion for smaller ones
GENES_AT_ONCE = 2048


@dataclasses.dataclass(frozen=True)
class Limits:
    """Mean r by [bins][form][class] → (r(T, X), r(V, X), genes); `top`: the genes of highest Moran's I."""

    sections: tuple[str, ...]
    by_bin: dict[float, dict[str, dict[str, tuple[float, float, int]]]]

    def to_dict(self) -> dict[str, Any]:
        entries = {
            f"{bin_um:g}": {
                form: {name: {"true": t, "reachable": v, "share": v / t if t > 0 else None, "genes": genes}
                       for name, (t, v, genes) in classes.items()}
                for form, classes in forms.items()
            }
            for bin_um, forms in self.by_bin.items()
        }  # fmt: skip
        return {"sections": list(self.sections), "limits": entries, "table": self.table()}

    def table(self) -> str:
        heads = [f"{form}, {bin_um:g} µm" for bin_um in self.by_bin for form in FORMS]
        lines = [
            f"limits over {len(self.sections)} sections: r(T, X) of a measurement, r(V, X) of any H&E model, ratio",
            f"{'class':<16}{'genes':>7}" + "".join(f"  {head:>19}" for head in heads),
        ]
        for name in next(iter(self.by_bin.values()))["counts"]:
            cells, number = [], 0
            for forms in self.by_bin.values():
                for form in FORMS:
                    true, reachable, number = forms[form][name]
                    share = f"{reachable / true:.2f}" if true > 0.005 else "-"
                    cells.append(f"  {true:>7.3f}{reachable:>7.3f}{share:>5}")
            lines.append(f"{name:<16}{number:>7,}" + "".join(cells))
        return "\n".join(lines)


def measure_limits(corpus: Corpus, sections: list[Section], say: Callable[[str], None] = print,
                   bins_um: tuple[float, ...] = BINS_UM) -> Limits:  # fmt: skip
    """The limits on these sections of a virtual corpus. Raises `InputError` for real tissue."""
    if corpus.kind != "virtual" or not sections or any(section.truth is None for section in sections):
        raise InputError(f"corpus {corpus.root}: limits need virtual tissue; this is {corpus.kind} tissue")
    genes = program(len(corpus.panel) < len(program().panel))
    moran_SxG = []
    r: dict[tuple[float, str], list[np.ndarray]] = {}
    for number, section in enumerate(sections, 1):
        for bin_um in bins_um:
            side = int(section.width_um / bin_um + 1e-6)
            counts_NxG = grid_counts(section.all_detections(), len(corpus.panel), side, side, bin_um)
            if bin_um == bins_um[0]:
                weights_NxN = neighbour_weights(*grid_places(side, side, bin_um), bin_um, "square")
                moran_SxG.append(morans_i(counts_NxG, weights_NxN))
            true, reachable = (t.reshape(side * side, -1) for t in truth_rates(section.truth, bin_um))
            for form, pair in _correlations(counts_NxG, true, reachable, bin_um).items():
                r.setdefault((bin_um, form), []).append(pair)
        say(f"limits: {number}/{len(sections)} sections")
    moran_G = np.nan_to_num(mean_defined(np.stack(moran_SxG)), nan=-1.0)
    classes = {"top": np.argsort(-moran_G)[: min(TOP_GENES, len(moran_G))]}
    classes |= {name: genes.genes_of(name) for name in dict.fromkeys(genes.class_G.tolist())}
    by_bin: dict[float, dict[str, dict[str, tuple[float, float, int]]]] = {}
    for (bin_um, form), pairs in r.items():
        mean_2xG = mean_defined(np.stack(pairs))
        by_bin.setdefault(bin_um, {})[form] = {
            name: (*(float(v) for v in mean_defined(mean_2xG[:, chosen].T)), len(chosen))
            for name, chosen in classes.items()
        }
    return Limits(tuple(section.id for section in sections), by_bin)


def _correlations(counts_NxG: np.ndarray, true_NxG: np.ndarray, reachable_NxG: np.ndarray,
                  bin_um: float) -> dict[str, np.ndarray]:  # fmt: skip
    """r(T, X) and r(V, X) of every gene by form, float64 [2, G]; NaN where a gene's counts are constant."""
    total_N = counts_NxG.sum(1, dtype=np.float64)
    kept_N = total_N >= max(1.0, MIN_TOTAL * (bin_um / BINS_UM[0]) ** 2)
    r = {form: np.empty((2, counts_NxG.shape[1])) for form in FORMS}
    totals = [rates.sum(1, dtype=np.float64) for rates in (true_NxG, reachable_NxG)]
    for first in range(0, counts_NxG.shape[1], GENES_AT_ONCE):
        some = slice(first, first + GENES_AT_ONCE)
        composed_NxG = composition(counts_NxG[kept_N, some], total_N[kept_N])
        for k, rates in enumerate((true_NxG, reachable_NxG)):
            r["counts"][k, some] = pearson_by_gene(counts_NxG[:, some], rates[:, some])
            expected = expected_composition(rates[kept_N, some], totals[k][kept_N])
            r["composition"][k, some] = pearson_by_gene(composed_NxG, expected)
    return r
