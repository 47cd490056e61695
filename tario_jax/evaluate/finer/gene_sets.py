"""Sets of genes that means are taken over, and those means with their intervals over patients."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tario_jax.config import DataConfig
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate.bins import grid_counts, grid_places, whole_bins
from tario_jax.evaluate.intervals import Resampling, interval, weighted_mean
from tario_jax.evaluate.metrics import mean_defined
from tario_jax.evaluate.moran import morans_i, neighbour_weights
from tario_jax.evaluate.ranking import RANKED_BIN_UM
from tario_jax.predict.gene_validation import SPLIT_BY_SECTION
from tario_jax.virtual.genes import program

RANKED_SECTIONS = 12


def rank_by_moran(sections: Sequence[Section], genes: int) -> np.ndarray:
    """Mean Moran's I of each gene's counts in 36 µm bins over at most 12 sections, evenly chosen, float64 [G]."""
    chosen = list(sections)[:: max(1, -(-len(sections) // RANKED_SECTIONS))]
    found = []
    for section in chosen:
        columns, rows = whole_bins(section, RANKED_BIN_UM)
        counts_NxG = grid_counts(section.all_detections(), genes, columns, rows, RANKED_BIN_UM)
        places = grid_places(columns, rows, RANKED_BIN_UM)
        measured_N = section.measured_share(*places, RANKED_BIN_UM) >= DataConfig.min_measured - 1e-6
        weights = neighbour_weights(*(place[measured_N] for place in places), RANKED_BIN_UM, "square")
        found.append(morans_i(counts_NxG[measured_N], weights))
    return mean_defined(np.stack(found))


def gene_sets(moran_G: np.ndarray, top_genes: int, corpus: Corpus, in_corpus: np.ndarray) -> dict[str, np.ndarray]:
    """Positions of the genes of highest Moran's I, as "top", and on virtual tissue those of each class, all rising.

    moran_G: NaN where it is not defined; in_corpus: positions of the same genes in the corpus's panel, [G].
    """
    ranked = np.nan_to_num(moran_G, nan=-np.inf)
    order = np.argsort(-ranked, kind="stable")
    sets = {"top": np.sort(order[: min(top_genes, int(np.isfinite(moran_G).sum()))])}
    if corpus.kind == "virtual":
        class_G = program(len(corpus.panel) < len(program().panel)).class_G[in_corpus]
        sets |= {str(name): np.flatnonzero(class_G == name) for name in dict.fromkeys(class_G.tolist())}
    return {name: chosen for name, chosen in sets.items() if len(chosen)}


@dataclasses.dataclass(frozen=True)
class SetMean:
    """Mean r over a set of genes, each its mean over sections, and the same in every sample of a bootstrap.

    samples_B: None with fewer than two patients: resampling one says nothing of others.
    """

    mean: float
    samples_B: np.ndarray | None

    @classmethod
    def of(cls, r_SxG: np.ndarray, genes: np.ndarray, resampling: Resampling) -> "SetMean":
        """r by section and gene; genes: positions of those in the set."""
        mean = mean_defined(mean_defined(r_SxG[:, genes]))
        samples_BxG = weighted_mean(r_SxG[:, genes], resampling.weights_BxS)
        return cls.known(float(mean), mean_defined(samples_BxG.T), resampling)

    @classmethod
    def known(cls, mean: float, samples_B: np.ndarray, resampling: Resampling) -> "SetMean":
        """Of a mean and samples that are worked out already."""
        return cls(mean, samples_B if resampling.patients >= 2 else None)

    @classmethod
    def change(cls, r_SxG: np.ndarray, from_SxG: np.ndarray, genes: np.ndarray, resampling: Resampling) -> "SetMean":
        """From one r to the other, over the pairs of gene and section that both are defined for."""
        both_SxG = np.isfinite(r_SxG) & np.isfinite(from_SxG)
        after, before = (cls.of(np.where(both_SxG, r, np.nan), genes, resampling) for r in (r_SxG, from_SxG))
        return after - before

    def __sub__(self, other: "SetMean") -> "SetMean":
        """Paired: the same patients are drawn on both sides."""
        if self.samples_B is None or other.samples_B is None:
            return SetMean(self.mean - other.mean, None)
        return SetMean(self.mean - other.mean, self.samples_B - other.samples_B)

    def to_dict(self) -> dict[str, float | None]:
        low, high = (None, None) if self.samples_B is None else interval(self.samples_B)
        return {"mean": self.mean, "low": low, "high": high}


def split_told(result: dict) -> list[str]:
    """The line of a run whose sections were split, not its patients; else none."""
    return [SPLIT_BY_SECTION] if result["split_by"] == "section" else []


def of_patients(result: dict) -> str:
    """On what a table stands, and what its brackets are."""
    brackets = "[95 % patient bootstrap]" if result["patients"] >= 2 else "no intervals: they need two patients"
    return f"{len(result['sections'])} sections of {result['patients']} patients; {brackets}"


def with_interval(entry: dict[str, float | None] | None, form: str = ".3f") -> str:
    """A mean and its interval for people; the mean alone where there is no interval."""
    if entry is None:
        return "-"
    interval_said = "" if entry["low"] is None else f" [{entry['low']:{form}}, {entry['high']:{form}}]"
    return f"{entry['mean']:{form}}{interval_said}"
