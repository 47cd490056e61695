"""Galleries: maps of genes side by side, chosen by how well they are predicted and not by how they look."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.section import Detections
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate.bins import area_weights, grid_counts, grid_places, whole_bins
from tario_jax.evaluate.figures import Drawn
from tario_jax.evaluate.map_figures import GeneMap, Look, draw_maps
from tario_jax.evaluate.metrics import mean_defined, pearson_by_gene
from tario_jax.evaluate.scope import has_seen
from tario_jax.evaluate.score_file import ScoreTable
from tario_jax.panel import Panel
from tario_jax.predict.maps import GeneMaps, banner_of
from tario_jax.predict.predictor import Predictor
from tario_jax.predict.same_places import same_places

TOP_GENES = 1000  # by Moran's I: among them examples are looked for
R = (0.5, 0.3, 0.17)
_SEEN = "seen in training"


@dataclasses.dataclass(frozen=True)
class Example:
    """A gene in a section, and why it was taken."""

    section: str
    symbol: str
    why: str


def at_r(scores: ScoreTable, wanted: tuple[float, ...] = R) -> list[Example]:
    """For each r the gene and section whose r in counts is nearest to it, among the genes of highest Moran's I; each of
    another gene."""
    order = scores.order[:TOP_GENES]
    r_SxK = scores.r["model", "counts"][:, order]
    if not np.isfinite(r_SxK).any():
        raise InputError("gallery: no gene has a defined r in any section; there is nothing to choose from")
    found, taken = [], np.zeros(len(order), bool)
    for r in wanted:
        away_SxK = np.where(np.isfinite(r_SxK) & ~taken, np.abs(r_SxK - r), np.inf)
        if np.isinf(away_SxK).all():
            break  # more were asked for than there are genes
        section, gene = np.unravel_index(int(np.argmin(away_SxK)), away_SxK.shape)
        taken[gene] = True
        found.append(Example(scores.sections[section], scores.symbols[order[gene]], f"for an r near {r:g}"))
    return found


def best_median_worst(scores: ScoreTable) -> list[Example]:
    """The genes of highest, middle and lowest mean r among those of highest Moran's I, each where its r is its
    median."""
    order = scores.order[:TOP_GENES]
    mean_K = mean_defined(scores.r["model", "counts"][:, order])
    by_r = np.argsort(-np.where(np.isfinite(mean_K), mean_K, -np.inf), kind="stable")[: int(np.isfinite(mean_K).sum())]
    if not len(by_r):
        raise InputError("gallery: no gene has a defined r in any section; there is nothing to choose from")
    places = {"the best": by_r[0], "the median": by_r[(len(by_r) - 1) // 2], "the worst": by_r[-1]}
    among = f"of the {len(order):,} genes of highest Moran's I by mean r"
    return [Example(_middle_section(scores, order[k]), scores.symbols[order[k]], f"as {name} {among}")
            for name, k in places.items()]  # fmt: skip


def of_genes(scores: ScoreTable, symbols: tuple[str, ...]) -> list[Example]:
    """These genes, each where its r is its median."""
    for symbol in symbols:
        if symbol not in scores.symbols:
            known = ", ".join(scores.symbols[:5])
            raise InputError(f"--genes: {symbol!r} was not evaluated; expected some of {known} …")
    return [Example(_middle_section(scores, scores.symbols.index(symbol)), symbol, "by its name") for symbol in symbols]


def _middle_section(scores: ScoreTable, gene: int) -> str:
    r_S = scores.r["model", "counts"][:, gene]
    defined = np.flatnonzero(np.isfinite(r_S))
    by_r = defined[np.argsort(r_S[defined], kind="stable")] if len(defined) else np.array([0])
    return scores.sections[by_r[(len(by_r) - 1) // 2]]


class Gallery:
    """Draws examples of one corpus. Sections are predicted once a model and side of bins.

    read_um: side of the bins that are predicted, and summed up to those of `bin_um`; by default those.
    """

    def __init__(self, corpus: Corpus, bin_um: float, overlap: float, min_measured: float,
                 say: Callable[[str], None] = print, *, read_um: float | None = None):  # fmt: skip
        self._corpus, self._bin_um, self._overlap, self._say = corpus, bin_um, overlap, say
        self._min_measured, self._read_um = min_measured, bin_um if read_um is None else read_um
        self._maps: dict[tuple[str, str, float], GeneMaps] = {}  # of a section, of the genes that are drawn
        self._symbols: dict[str, None] = {}

    def will_draw(self, examples: list[Example]) -> None:
        """Their genes are kept of each section that is predicted from now on; of others it is predicted again."""
        self._symbols |= dict.fromkeys(example.symbol for example in examples)

    def triptychs(self, path: Path, predictor: Predictor, examples: list[Example], title: str) -> Drawn:
        """Detections, binned truth, prediction: a row an example."""
        return self._rows(path, title, examples, {"": predictor}, (self._bin_um,))

    def runs(self, path: Path, predictors: dict[str, Predictor], examples: list[Example], title: str) -> Drawn:
        """Detections, binned truth, and the prediction of each run, by name."""
        return self._rows(path, title, examples, predictors, (self._bin_um,))

    def resolutions(self, path: Path, predictor: Predictor, examples: list[Example], sides_um: tuple[float, ...],
                    title: str) -> Drawn:  # fmt: skip
        """Detections, and at each side of bins the prediction under the binned truth of the same bins."""
        return self._rows(path, title, examples, {"": predictor}, sides_um)

    def _rows(self, path, title, examples: list[Example], predictors: dict[str, Predictor],
              sides_um: tuple[float, ...]) -> Drawn:  # fmt: skip
        self.will_draw(examples)
        rows, seen = [], {}
        for example in examples:
            section = self._corpus.section(example.section)
            measured, predicted = [], []
            for side_um in sides_um:
                truth = self._measured(section, example.symbol, side_um)
                measured += [] if truth is None else [truth]
                predicted += [self._predicted(section, example.symbol, name, predictor, side_um, truth)
                              for name, predictor in predictors.items()]  # fmt: skip
            seen |= {f"{section.id}{f' by {name}' if name else ''}": None for name, predictor in predictors.items()
                     if has_seen(predictor.provenance, section)}  # fmt: skip
            head = f"{example.symbol} · {section.id} ({section.cohort})"
            look = self._look(section, example.symbol)
            if len(sides_um) > 1:  # truths above, predictions below
                rows += [(look, _headed(head, measured))] if measured else []
                rows.append((dataclasses.replace(look, dot_x_um_D=None, dot_y_um_D=None), _headed(head, predicted)))
            else:
                rows.append((look, _headed(head, measured + predicted)))
        why = "; ".join(f"{example.symbol} {example.why}" for example in examples)
        learnt = f" {_SEEN.capitalize()}, not held out: {', '.join(seen)}." if seen else ""
        banners = [banner_of(predictor.trained_on, self._corpus.kind) for predictor in predictors.values()]
        return draw_maps(path, title, rows, f"Chosen {why}. Each map has its own colour scale.{learnt}", max(banners))

    def _measured(self, section: Section, symbol: str, side_um: float) -> GeneMap | None:
        """None where there are no counts, or the assay did not see this gene: that is not zero expression."""
        if not (section.has_counts and section.measured_gene_G[self._gene(symbol)]):
            return None
        if section.has_spots:
            spots = section.spots
            values_N = spots.dense(len(section.measured_gene_G))[:, self._gene(symbol)]
            return GeneMap("measured, per spot", spots.x_um_N, spots.y_um_N, spots.pitch_um, "spots",
                           values_N.astype(float))  # fmt: skip
        x_um_N, y_um_N, columns, rows = _whole_bins(section, side_um)
        kept = np.flatnonzero(section.measured_share(x_um_N, y_um_N, side_um) >= self._min_measured - 1e-6)
        if not len(kept):
            raise InputError(f"section {section.id}: holds no bin of {side_um:g} µm that is measured to "
                             f"{self._min_measured:.0%}; take smaller bins, or another section")  # fmt: skip
        values_N = grid_counts(_of_gene(section, self._gene(symbol)), 1, columns, rows, side_um)[kept, 0]
        return GeneMap(f"measured, {side_um:g} µm", x_um_N[kept], y_um_N[kept], side_um, "square",
                       values_N.astype(float))  # fmt: skip

    def _predicted(self, section: Section, symbol: str, name: str, predictor: Predictor, side_um: float,
                   truth: GeneMap | None) -> GeneMap:  # fmt: skip
        if symbol not in predictor.panel.index:
            raise InputError(f"gene {symbol!r} is not in the model's panel of {len(predictor.panel)} genes")
        spots = section.has_spots
        read_um = self._read_um if side_um == self._bin_um else side_um
        key = (section.id, predictor.checkpoint + name, read_um)
        if key not in self._maps or symbol not in self._maps[key].panel.index:
            self._say(f"predict: {section.id}{f', {name}' if name else ''}, {read_um:g} µm")
            found = predictor.predict_section(section, tissue=self._corpus.kind, overlap=self._overlap,
                                              bin_um=None if spots else read_um)  # fmt: skip
            self._maps[key] = _only(found, [*self._symbols, symbol])
        maps = self._maps[key]
        x_um_N, y_um_N, values_N = maps.x_um_N, maps.y_um_N, maps.gene(symbol).astype(float)
        summed = not spots and read_um != side_um
        if summed:
            x_um_N, y_um_N, *_ = _whole_bins(section, side_um)
            values_N = area_weights((maps.x_um_N, maps.y_um_N), read_um, (x_um_N, y_um_N), side_um) @ values_N
        title = f"{name or 'predicted'}{'' if spots else f', {side_um:g} µm'}"
        title += f" from {read_um:g} µm" if summed else ""
        title += f", {_SEEN}" if has_seen(predictor.provenance, section) else ""
        if truth is not None:
            share_N = np.ones(len(values_N))
            if not spots:
                share_N = np.minimum(section.measured_share(x_um_N, y_um_N, side_um), 1.0)
            title += f" · r = {_r(truth, x_um_N, y_um_N, share_N * values_N):.2f}"
        pitch_um = section.placed_spots.pitch_um if spots else side_um
        return GeneMap(title, x_um_N, y_um_N, pitch_um, "spots" if spots else "square", values_N)

    def _look(self, section: Section, symbol: str) -> Look:
        dots = {}
        if section.has_detections:
            found = _of_gene(section, self._gene(symbol))
            dots = {"dot_x_um_D": found.x_um_D, "dot_y_um_D": found.y_um_D}
        return Look(section.he(), section.he_um_per_px, **dots)

    def _gene(self, symbol: str) -> int:
        if symbol not in self._corpus.panel.index:
            raise InputError(f"gene {symbol!r}: the corpus {self._corpus.root} did not measure it")
        return self._corpus.panel.index[symbol]


def _only(maps: GeneMaps, symbols: list[str]) -> GeneMaps:
    """The same of these genes alone: a corpus's sections are drawn one after the other."""
    known = [symbol for symbol in dict.fromkeys(symbols) if symbol in maps.panel.index]
    rates_NxG = maps.rates_NxG[:, maps.panel.positions(known)]
    return dataclasses.replace(maps, panel=Panel(tuple(known)), rates_NxG=rates_NxG, validation=None)


def _whole_bins(section: Section, side_um: float) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Centres of the bins that lie whole on the section, and how many columns and rows they are."""
    columns, rows = whole_bins(section, side_um)
    return *grid_places(columns, rows, side_um), columns, rows


def _of_gene(section: Section, gene: int) -> Detections:
    """The detections of one gene, as the only one of a panel."""
    found = section.all_detections()
    mine = found.gene_D == gene
    return Detections(found.x_um_D[mine], found.y_um_D[mine], np.zeros(int(mine.sum()), np.int32))


def _headed(head: str, maps: list[GeneMap]) -> list[GeneMap]:
    """The gene's name stands over its first map."""
    return [
        dataclasses.replace(one, title=f"{head}\n{one.title}" if k == 0 else one.title) for k, one in enumerate(maps)
    ]


def _r(truth: GeneMap, x_um_N: np.ndarray, y_um_N: np.ndarray, values_N: np.ndarray) -> float:
    """r over the places that both have."""
    at_N = same_places((x_um_N, y_um_N), (truth.x_um_N, truth.y_um_N))
    both_N = at_N >= 0
    return float(pearson_by_gene(truth.values_N[both_N, None], values_N[at_N[both_N], None])[0])
