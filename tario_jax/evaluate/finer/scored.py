"""The sections of a job on finer readouts, each measured once and kept, and what means over them are taken of."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.config import EvaluateConfig, InputError
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate.finer.gene_sets import gene_sets, rank_by_moran
from tario_jax.evaluate.intervals import Resampling, patient_resampling
from tario_jax.evaluate.kept import Kept, key_of
from tario_jax.evaluate.scope import common_genes, split_by_of, truth_key
from tario_jax.predict.maps import banner_of
from tario_jax.predict.predictor import Predictor

# of a section, the model's genes, the corpus's, each [G] positions: arrays by name
Measure = Callable[[Section, np.ndarray, np.ndarray], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Scored:
    found: list[dict[str, np.ndarray]]  # a dict a section
    sets: dict[str, np.ndarray]  # positions of genes by the set's name
    resampling: Resampling
    about: dict[str, Any]  # what a report says of all that


def scorable(job: str, corpus: Corpus, sections: Sequence[Section], needs: dict[str, Callable[[Section], bool]],
             say: Callable[[str], None]) -> list[Section]:  # fmt: skip
    """Those that have all that is needed, asked in its order; how many have not is said. Raises `InputError` where none
    is left, or there was none."""
    kept = list(sections)
    for what, has in needs.items():
        with_it = [section for section in kept if has(section)]
        if not with_it:
            found = f"none of {len(kept)} sections" if kept else "no section of a patient that the model has not seen"
            raise InputError(f"corpus {corpus.root}: {found} has {what}; expected at least one to score")
        if len(with_it) < len(kept):
            first = next(section.id for section in kept if section not in with_it)
            say(f"{job}: {len(kept) - len(with_it)} sections are left out, without {what} ({first}, …)")
        kept = with_it
    return kept


def score_sections(
    job: str, measure: Measure, predictor: Predictor, corpus: Corpus, sections: Sequence[Section], folder: Path,
    config: EvaluateConfig, *, depends_on: dict[str, Any], ranked_on: Sequence[Section], say: Callable[[str], None],
) -> Scored:  # fmt: skip
    """Measures each section, or reads what folder/<job> keeps of it under the model, the corpus and `depends_on`.

    ranked_on: sections whose Moran's I says which genes are at the top, of those that hold detections; `sections`
    themselves where there are none.
    """
    ranked_on = [section for section in ranked_on if section.has_detections]
    genes, kept = common_genes(predictor, corpus), Kept(folder / job)
    key = key_of(model=predictor.checkpoint, panel=predictor.panel.hash, corpus=corpus.seal, overlap=config.overlap,
                 min_total=config.min_total, **depends_on)  # fmt: skip
    found = []
    for number, section in enumerate(sections, 1):
        measured = functools.partial(measure, section, genes.in_model, genes.in_corpus)
        found.append(kept.get(section.id, key_of(key=key, truth=truth_key(section)), measured))
        section.close()
        say(f"{job}: {number}/{len(sections)} sections")
    moran_G = rank_by_moran(ranked_on or sections, len(corpus.panel))[genes.in_corpus]
    sets = gene_sets(moran_G, config.top_genes, corpus, genes.in_corpus)
    patients = [section.patient for section in sections]
    about = {
        "checkpoint": predictor.checkpoint, "corpus_seal": corpus.seal,
        "sections": [section.id for section in sections], "patients": len(set(patients)), "genes": len(genes.symbols),
        "ranked_on": "training sections" if ranked_on else "the sections scored",
        "sets": {name: len(chosen) for name, chosen in sets.items()},
        "banner": banner_of(predictor.trained_on, corpus.kind),
        "split_by": split_by_of(predictor.provenance, corpus),
    }  # fmt: skip
    return Scored(found, sets, patient_resampling(patients, config.bootstraps, np.random.default_rng(config.seed)),
                  about)  # fmt: skip
