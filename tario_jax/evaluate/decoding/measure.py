"""Ways of decoding beside each other: one-shot, generation in K steps, and prediction from measured counts.

On held-out sections, one after the other: a small file of each is kept, so a job that is started again goes on where it
ended, and its tables are those of a job that was not.
"""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.config import GENERATED_ORDERS, InputError
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate.decoding.section import (
    CONDITIONS,
    ONE_SHOT,
    Measures,
    Subject,
    measure_given,
    measure_steps,
    read_truth,
    spread_of,
)
from tario_jax.evaluate.decoding.spread import POISSON, Spread
from tario_jax.evaluate.intervals import Resampling, Scores, interval, patient_resampling, resample
from tario_jax.evaluate.metrics import mean_defined
from tario_jax.evaluate.moran import morans_i, neighbour_weights
from tario_jax.evaluate.ranking import RANKED_BIN_UM
from tario_jax.evaluate.scope import split_by_of, spread_over
from tario_jax.evaluate.uncertainty import sections_to_fit
from tario_jax.predict.condition import entries_of_window
from tario_jax.predict.generate import Steps, refuse_one_shot
from tario_jax.predict.maps import banner_of
from tario_jax.predict.predictor import Predictor
from tario_jax.virtual.genes import program
from tario_jax.whole_file import UNREADABLE, write_whole

_VERSION = 8  # of what is kept of a section
_RANKED_ON = 12  # sections whose measured counts rank the genes
_LEAST_GENES = 3  # of a class that is told apart
_SCORES = ("counts_r", "composition_r")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is compared. Raises `InputError` for what is unknown.

    steps: K of generation, each in each of the orders; 1, one-shot, is always among them. given: names of `CONDITIONS`.
    """

    steps: tuple[int, ...] = (1, 4, 16, 64)
    samples: int = 8
    orders: tuple[str, ...] = ("random",)
    given: tuple[str, ...] = ()
    bin_um: float = 36.0
    overlap: float = 0.5
    min_total: int = 20  # 36 µm bins (others by area) with fewer counts have no part in composition, and are counted
    bootstraps: int = 1000
    seed: int = 0

    def __post_init__(self):
        unknown = [name for name in self.given if name not in CONDITIONS]
        if unknown:
            raise InputError(f"--given: holds {unknown[0]!r}; expected some of {', '.join(CONDITIONS)}")
        for order in self.orders:
            if order not in GENERATED_ORDERS:
                raise InputError(f"--order: holds {order!r}; expected some of {', '.join(GENERATED_ORDERS)}")
        self.ways()

    def ways(self) -> dict[str, Steps]:
        """Each way of generating by its name, one-shot first."""
        found = {ONE_SHOT: Steps(1, self.samples, seed=self.seed)}
        for order in self.orders:
            for groups in self.steps:
                if not Steps(groups, order=order).one_shot:
                    name = f"{groups or 'all'} steps, {order}"
                    found[name] = Steps(groups, self.samples, order, self.seed)
        return found


def measure_decoding(
    predictor: Predictor, corpus: Corpus, sections: list[Section], genes: np.ndarray, asked: Asked, folder: Path, *,
    fitted_on: list[Section] = (), chosen: str = "as given", say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """Every way that is asked for on these sections, scored on these genes (positions in the model's panel).

    Writes folder/sections/<id>.npz section by section. fitted_on: sections of validation, around whose rates counts are
    seen to scatter (spread.py); without any, distributions are Poisson. chosen: how the genes were, in words. Raises
    `InputError` where the folder holds sections that were measured otherwise, and for a model that reads no contents.
    """
    if len(asked.ways()) > 1 or asked.given:
        refuse_one_shot(predictor, "decoding")
    if not sections or not len(genes):
        raise InputError(f"decoding: {len(sections)} sections and {len(genes)} genes to score; expected some of both")
    stamp = json.dumps([_VERSION, dataclasses.asdict(asked), genes.tolist(), corpus.seal, predictor.panel.hash,
                        predictor.checkpoint])  # fmt: skip
    held = folder / "sections"
    held.mkdir(parents=True, exist_ok=True)
    # of any of the sections: one compiled program for all of them
    capacity = entries_of_window(predictor, sections, asked.bin_um) if asked.given else 0
    spreads = _spreads(predictor, corpus, list(fitted_on), genes, asked, folder / "spreads.npz", stamp, say)
    of_sections = []
    for number, section in enumerate(sections, 1):
        path = held / f"{section.id}.npz"
        measures = _read(path, stamp)
        if measures is None:
            _write(path, stamp, _measure(predictor, corpus, section, genes, asked, capacity, spreads))
            measures = _read(path, stamp)
            section.close()
            say(f"decoding: {number}/{len(sections)} sections")
        of_sections.append(measures)
    report = {"chosen": chosen} | _report(predictor, corpus, sections, genes, asked, of_sections)
    for way, spread in spreads.items():
        report["ways"][way]["spread"] = spread._asdict()
    return report


def genes_by_moran(predictor: Predictor, corpus: Corpus, sections: list[Section], top: int) -> np.ndarray:
    """Positions of the genes of highest mean Moran's I of the counts in bins of 36 µm (or spots) of some of these
    sections, best first: int [at most top]."""
    every = np.arange(len(predictor.panel))
    found = []
    for section in spread_over(sections, _RANKED_ON):
        truth = read_truth(section, corpus, predictor, every, RANKED_BIN_UM)
        section.close()
        weights_NxN = neighbour_weights(truth.x_um_N, truth.y_um_N, truth.pitch_um, truth.layout)
        found.append(morans_i(np.nan_to_num(truth.counts_Nxg), weights_NxN))
    moran_G = mean_defined(np.stack(found))
    order = np.argsort(-np.where(np.isfinite(moran_G), moran_G, -np.inf), kind="stable")
    return order[: min(top, int(np.isfinite(moran_G).sum()))]


def _spreads(predictor: Predictor, corpus: Corpus, sections: list[Section], genes: np.ndarray, asked: Asked, path: Path,
             stamp: str, say: Callable[[str], None]) -> dict[str, Spread]:  # fmt: skip
    """Of each way of generating, fitted once."""
    sections = sections_to_fit(sections)
    if not sections:
        return dict.fromkeys(asked.ways(), POISSON)
    stamp = json.dumps([stamp, [section.id for section in sections]])
    kept = _read(path, stamp)
    if kept is None:
        kept = {}
        for way, steps in asked.ways().items():
            spread = spread_of(predictor, corpus, sections, genes, steps, bin_um=asked.bin_um, overlap=asked.overlap)
            kept[way] = np.array(spread)
            say(f"decoding: scatter of counts around {way}, from {len(sections)} sections of validation")
        _write(path, stamp, kept)
    return {way: Spread(*(float(value) for value in kept[way])) for way in asked.ways()}


def _measure(predictor: Predictor, corpus: Corpus, section: Section, genes: np.ndarray, asked: Asked, capacity: int,
             spreads: dict[str, Spread]) -> Measures:  # fmt: skip
    truth = read_truth(section, corpus, predictor, genes, asked.bin_um)
    bin_um = None if section.has_spots else asked.bin_um
    subject = Subject(predictor, corpus, section, truth, genes, bin_um, asked.overlap, asked.min_total)
    found = {"measured/moran": truth.spread(truth.counts_Nxg), "measured/bins": np.float64(len(truth)),
             "measured/below": np.float64((~truth.enough(asked.min_total)).sum())}  # fmt: skip
    for way, steps in asked.ways().items():
        measures = measure_steps(subject, steps, spreads[way])
        found |= {f"{way}/{name}": value for name, value in measures.items()}
    if asked.given:
        one_shot = predictor.predict_section(section, tissue=corpus.kind, bin_um=bin_um, overlap=asked.overlap)
        for name in asked.given:
            measures = measure_given(subject, CONDITIONS[name], one_shot, capacity)
            found |= {f"given {name}/{key}": value for key, value in measures.items()}
    return found


def _write(path: Path, stamp: str, measures: Measures) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, stamp=np.array(stamp), **measures)
    write_whole(path, content.getvalue())


def _read(path: Path, stamp: str) -> Measures | None:
    """None where the file is absent or torn: the section is measured anew."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as held:
            values = {name: held[name] for name in held.files}
            found = str(values.pop("stamp"))
    except UNREADABLE:
        return None
    if found != stamp:
        raise InputError(f"{path}: was measured with other options, genes or another checkpoint; give another "
                         "--out, or delete its folder")  # fmt: skip
    return values


def _report(predictor: Predictor, corpus: Corpus, sections: list[Section], genes: np.ndarray, asked: Asked,
            of_sections: list[Measures]) -> dict[str, Any]:  # fmt: skip
    patient_S = [section.patient for section in sections]
    rng = np.random.default_rng(asked.seed)
    resampling = patient_resampling(patient_S, asked.bootstraps, rng) if len(set(patient_S)) > 1 else None
    gathered = Gathered(of_sections, resampling)
    symbols = [predictor.panel.symbols[gene] for gene in genes]
    classes = gene_classes(symbols) if corpus.kind == "virtual" else {}
    ways = {way: gathered.way(way, classes) for way in asked.ways()}
    given = {name: gathered.given(f"given {name}", classes) for name in asked.given}
    return {
        "sections": len(sections), "patients": len(set(patient_S)), "genes": len(genes), "symbols": symbols,
        "bins": int(gathered.number("measured/bins").sum()),
        "bins_below_min_total": int(gathered.number("measured/below").sum()),
        "corpus_kind": corpus.kind, "corpus_seal": corpus.seal,
        "banner": banner_of(predictor.trained_on, corpus.kind),
        "split_by": split_by_of(predictor.provenance, corpus),
        "trained_on": predictor.trained_on, "panel_hash": predictor.panel.hash,
        "asked": dataclasses.asdict(asked), "interval": "patient bootstrap" if resampling else None,
        "moran_measured": gathered.mean("measured/moran"), "classes": {name: len(own) for name, own in classes.items()},
        "ways": ways, "given": given,
        "seconds": {way: float(np.median(gathered.number(f"{way}/seconds"))) for way in ways},
    }  # fmt: skip


def gene_classes(symbols: list[str]) -> dict[str, np.ndarray]:
    """Positions among these genes of each class of virtual genes that has enough of them, by the class."""
    whole = program()
    class_of = dict(zip(whole.panel.symbols, whole.class_G, strict=True))
    named = np.array([class_of.get(symbol, "") for symbol in symbols])
    found = {str(name): np.flatnonzero(named == name) for name in sorted(set(named.tolist()) - {""})}
    return {name: own for name, own in found.items() if len(own) >= _LEAST_GENES}


@dataclasses.dataclass(frozen=True)
class Gathered:
    """The measures of all sections; differences are paired: of the same sections, genes and draws of patients."""

    of_sections: list[Measures]
    resampling: Resampling | None  # None of one patient

    def by_gene(self, key: str) -> np.ndarray:
        """[S, g]."""
        return np.stack([measures[key] for measures in self.of_sections])

    def number(self, key: str) -> np.ndarray:
        """One number a section, [S]."""
        return np.array([float(measures[key]) for measures in self.of_sections])

    def mean(self, key: str, of_genes: np.ndarray | slice = slice(None)) -> float | None:
        """Over genes, of the means over sections."""
        return _plain(_mean(mean_defined(self.by_gene(key)[:, of_genes])))

    def way(self, way: str, classes: dict[str, np.ndarray]) -> dict[str, Any]:
        """All measures of a way of generating, and what it gains over one-shot."""
        names = [key.removeprefix(f"{way}/") for key in self.of_sections[0] if key.startswith(f"{way}/")]
        found: dict[str, Any] = {name: self.mean(f"{way}/{name}") for name in names if name != "seconds"}
        if way != ONE_SHOT:
            found["gain"] = {name: self.gain(f"{way}/{name}", f"{ONE_SHOT}/{name}") for name in (*_SCORES, "crps")}
        found["classes"] = {
            name: self._scores(f"{way}/", own, f"{ONE_SHOT}/" if way != ONE_SHOT else None)
            for name, own in classes.items()
        }
        return found

    def given(self, name: str, classes: dict[str, np.ndarray]) -> dict[str, Any]:
        """r of the model, of one-shot and of the nearest given bins on what was asked, and the model's gains."""
        whos = [who for who in ("model", ONE_SHOT, "neighbours") if f"{name}/{who}/counts_r" in self.of_sections[0]]
        found: dict[str, Any] = {
            who: {score: self.mean(f"{name}/{who}/{score}") for score in _SCORES} for who in whos
        }  # fmt: skip
        for other in whos[1:]:
            found["model"][f"gain over {other}"] = {
                score: self.gain(f"{name}/model/{score}", f"{name}/{other}/{score}") for score in _SCORES
            }
        found["classes"] = {of: self._scores(f"{name}/model/", own, f"{name}/{ONE_SHOT}/")
                            for of, own in classes.items()}  # fmt: skip
        if "neighbours" in whos:
            for of, own in classes.items():
                found["classes"][of]["gain over neighbours"] = {
                    score: self.gain(f"{name}/model/{score}", f"{name}/neighbours/{score}", own) for score in _SCORES
                }
        return found

    def gain(self, key: str, over: str, of_genes: np.ndarray | slice = slice(None)) -> dict[str, Any]:
        """Mean difference of two measures, with its patient bootstrap interval."""
        ours, theirs = self.by_gene(key)[:, of_genes], self.by_gene(over)[:, of_genes]
        difference_SxG = ours - theirs  # NaN where either is undefined: the same sections and genes on both sides
        found = {"mean": _plain(_mean(mean_defined(difference_SxG)))}
        if self.resampling is not None:
            drawn_BxG = resample(Scores(difference_SxG), np.arange(difference_SxG.shape[1]), self.resampling)
            low, high = interval(mean_defined(drawn_BxG.T))
            found |= {"low": _plain(low), "high": _plain(high)}
        return found

    def _scores(self, prefix: str, own: np.ndarray, over: str | None) -> dict[str, Any]:
        """Of a class of genes."""
        found: dict[str, Any] = {score: self.mean(f"{prefix}{score}", own) for score in _SCORES}
        if over is not None:
            found["gain"] = {score: self.gain(f"{prefix}{score}", f"{over}{score}", own) for score in _SCORES}
        return found


def _mean(values: np.ndarray) -> float:
    return float(mean_defined(values[:, None])[0])


def _plain(value: float) -> float | None:
    """JSON has no NaN."""
    return round(float(value), 6) if np.isfinite(value) else None
