"""On what a model is evaluated: sections that it has not seen, and genes that it and the corpus know."""

import dataclasses
import functools
import hashlib
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.layout import damaged
from tario_jax.corpus.read import Corpus, Section
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
