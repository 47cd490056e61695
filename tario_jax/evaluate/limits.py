"""How far a measurement, and any reader of the H&E, can come on virtual tissue: r(T, X) and r(V, X) by gene class.

r(T, X) is the ceiling of the measurement, r(V, X) that of every H&E model. Both are averaged over genes and sections,
in counts and composition, at each side of bins.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from tario_jax.config import EvaluateConfig, InputError
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate.bins import BINS_UM, grid_counts, grid_places, whole_bins
from tario_jax.evaluate.metrics import FORMS, correlations, mean_defined
from tario_jax.evaluate.moran import morans_i, neighbour_weights
from tario_jax.evaluate.section_bins import least_total
from tario_jax.virtual.genes import program
from tario_jax.virtual.section import truth_rates

TOP_GENES = 1000


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
            columns, rows = whole_bins(section, bin_um)
            counts_NxG = grid_counts(section.all_detections(), len(corpus.panel), columns, rows, bin_um)
            if bin_um == bins_um[0]:
                weights_NxN = neighbour_weights(*grid_places(columns, rows, bin_um), bin_um, "square")
                moran_SxG.append(morans_i(counts_NxG, weights_NxN))
            true, reachable = (t.reshape(columns * rows, -1) for t in truth_rates(section.truth, bin_um))
            total_N = counts_NxG.sum(1, dtype=np.float64)
            enough_N = total_N >= least_total(EvaluateConfig.min_total, bin_um, "square")
            by_limit = [correlations(counts_NxG, total_N, rates, rates.sum(1, dtype=np.float64), enough_N)
                        for rates in (true, reachable)]  # fmt: skip
            for form, pair in zip(FORMS, zip(*by_limit, strict=True), strict=True):
                r.setdefault((bin_um, form), []).append(np.stack(pair))
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
