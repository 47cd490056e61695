"""On what a model is evaluated: sections that it has not seen, and genes that it and the corpus know."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.layout import damaged
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.split import split_corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.predict.predictor import Predictor
from tario_jax.train.provenance import Provenance
from tario_jax.virtual import cell_truth
from tario_jax.virtual.version import checksum


def sections_of(provenance: Provenance, corpus: Corpus) -> tuple[list[Section], list[Section]]:
    """Training and held-out sections; of another corpus than that of training none, and what the model has not seen.

    Raises `InputError` where it has seen all patients.
    """
    if corpus.seal == provenance.corpus_seal:
        return [corpus.section(name) for name in provenance.train], [corpus.section(n) for n in provenance.held_out]
    seen = set(provenance.seen_patients)
    held_out = [section for section in corpus.sections if section.patient not in seen]
    if not held_out:
        raise InputError(f"corpus {corpus.root}: the model was trained on every patient in it, by their names; "
                         "expected patients that it has not seen")  # fmt: skip
    return [], held_out


def refuse_own_folder(folder: Path, workdir: Path, corpus: Corpus, provenance: Provenance) -> None:
    """Raises `InputError` where what is found on another corpus than that of training would lie among the run's own."""
    if corpus.seal != provenance.corpus_seal and folder.resolve() == workdir.resolve():
        raise InputError(f"corpus {corpus.root}: is not the one of training, of which what lies in {workdir} is; "
                         "name a folder for what is found on this one (--out=FOLDER)")  # fmt: skip


def has_seen(provenance: Provenance, section: Section) -> bool:
    """Whether the model, or a checkpoint that it comes from, learnt from this patient; of a split by section, from this
    section. By their names, so in any corpus."""
    if provenance.split_by != "section":
        return section.patient in provenance.seen_patients
    learnt = [*provenance.train, *provenance.validation]
    learnt += [name for start in provenance.starts for name in (*start["train"], *start["validation"])]
    return section.id in learnt


def unseen_validation(provenance: Provenance, corpus: Corpus) -> list[Section]:
    """Validation sections of the model's own corpus of patients that no checkpoint before it was trained on."""
    if corpus.seal != provenance.corpus_seal:
        return []
    learnt_from = {patient for start in provenance.starts for patient in start["seen_patients"]}
    sections = [corpus.section(name) for name in provenance.validation]
    return [section for section in sections if section.patient not in learnt_from]


def ranking_side(provenance: Provenance, corpus: Corpus) -> list[Section]:
    """All training sections of the corpus's split, where the run learnt from some of their patients: the genes of runs
    on more and fewer patients are the same. Else those that the run learnt from.

    The split is today's: whom this run held out ranks no gene of it, whatever side they are on by now.
    """
    if corpus.seal != provenance.corpus_seal:
        return []
    if not provenance.config.split.train_patients:
        return [corpus.section(name) for name in provenance.train]
    held_out = {corpus.section(name).patient for name in provenance.held_out}
    every = split_corpus(corpus, dataclasses.replace(provenance.config.split, train_patients=0)).train
    return [section for section in every if section.patient not in held_out]


def split_by_of(provenance: Provenance, corpus: Corpus) -> str:
    """What was split, "patient" or "section". Of another corpus no section is of a patient whom training saw."""
    return provenance.split_by if corpus.seal == provenance.corpus_seal else "patient"


def spread_over(sections: Sequence[Section], most: int) -> list[Section]:
    """At most so many of the sections, evenly from the first to the last: they come by their names, and those by
    cohort."""
    at = np.linspace(0, len(sections) - 1, min(len(sections), most)).round().astype(int)
    return [sections[i] for i in at]


def truth_key(section: Section) -> str:
    """Of all that the truth of virtual tissue depends on: what is stored of it, outside the corpus's seal, and the
    simulator's code. Empty where no truth is known. Raises `InputError` where it should be stored, and is not."""
    if not section.record["truth"]:
        return ""
    place = section.place / "truth.npz"
    try:
        stored = hashlib.sha256(place.read()).hexdigest()[:16]
    except OSError as error:
        raise damaged(place, error) from None
    return f"{stored} {checksum()[:16]} {_cells_code()}"


@functools.cache
def _cells_code() -> str:
    """The truth of single cells, which no bit of a patient depends on, is not in the simulator's checksum."""
    return hashlib.sha256(Path(cell_truth.__file__).read_bytes()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class CommonGenes:
    """Genes that both the model and the corpus know, in the order of the model's panel."""

    symbols: tuple[str, ...]
    in_model: np.ndarray  # positions
    in_corpus: np.ndarray


def common_genes(predictor: Predictor, corpus: Corpus) -> CommonGenes:
    """Raises `InputError` where there are none."""
    position_G = corpus.panel.positions(predictor.panel.symbols)
    in_model = np.flatnonzero(position_G >= 0)
    if not len(in_model):
        raise InputError(f"corpus {corpus.root}: its panel {corpus.panel.hash} shares no gene with the model's "
                         f"{predictor.panel.hash}; check that both use the same gene symbols")  # fmt: skip
    symbols = tuple(predictor.panel.symbols[i] for i in in_model)
    return CommonGenes(symbols, in_model, position_G[in_model])
