"""Who is near a patient, or a slide, in the space of a cohort.

Axes: P entries of an index, G genes, C components.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.section import COARSER
from tario_jax.evaluate.bulk import log_cpm
from tario_jax.evaluate.patients.index import PatientIndex
from tario_jax.evaluate.patients.looks import LEAST_PX, look_of
from tario_jax.evaluate.patients.space import nearest
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.vectors import PREDICTED
from tario_jax.predict.map_store import MapStore
from tario_jax.predict.maps import ONE_SHOT
from tario_jax.predict.slide import as_ingested, refuse_another, slide_of_maps

NO_ADVICE = "Neighbours describe a cohort as a model sees it; they are no diagnosis and no advice on a treatment."


@dataclasses.dataclass(frozen=True)
class Query:
    """What is looked for: a patient or a slide in the space."""

    name: str
    patient: str  # is none of the neighbours; "": not one of the index
    kind: str
    place_C: np.ndarray
    level_G: Callable[[], np.ndarray]  # log expression less the mean of its kind; read when it is asked for
    cohort: str = ""  # "": not known
    banner: str = ""  # of a slide's maps
    entry: int | None = None  # of the index, if it is one of its patients
    acquisition_A: np.ndarray | None = None  # of its H&E, where it is known
    not_compared: str = ""  # why it is not
    maps: Path | None = None  # of a slide
    remarks: tuple[str, ...] = ()  # what a reader has to know of it


@dataclasses.dataclass(frozen=True)
class Answer:
    """n neighbours, the nearest first."""

    entry_n: np.ndarray  # of the index
    distance_n: np.ndarray
    unusual: float  # share of reference patients that are nearer to their own nearest than the query is to its
    cohort: str  # the query's, else that of most neighbours


def query_of_patient(store: EmbeddingStore, index: PatientIndex, patient: str, kind: str) -> Query:
    """Raises `InputError` where the store has no such rows."""
    entry = index.entry(patient, kind)
    if entry is None:
        known = ", ".join(sorted(index.name_P[index.of_kind(kind)].tolist())[:5]) or "none"
        raise InputError(f"{store.folder}: has no {kind} section of patient {patient!r}; it has {known}, …")
    return Query(patient, patient, kind, index.place_PxC[entry], lambda: index.level_G(entry),
                 str(index.cohort_P[entry]),
                 entry=entry, acquisition_A=index.acquisition_PxA[entry])  # fmt: skip


def query_of_slide(store: EmbeddingStore, index: PatientIndex, maps: Path) -> Query:
    """A slide's maps by the same model. Raises `InputError` where they are of another, or were predicted otherwise
    than the embeddings: what overlap or decoding alone moves is no difference between patients."""
    held = MapStore(maps)
    for name, wanted in (("panel_hash", store.panel.hash), ("checkpoint", store.about["checkpoint"])):
        if held.about[name] != wanted:
            raise InputError(f"{maps}: is of {name.replace('_', ' ')} {held.about[name]}, and {store.folder} of "
                             f"{wanted}; predict the slide with that model")  # fmt: skip
    if store.about["bin_um"] != held.bin_um:
        raise InputError(f"{maps}: is of bins of {held.bin_um:g} µm, and {store.folder} of {store.about['bin_um']:g}; "
                         "predict the slide with those")  # fmt: skip
    wanted, found = store.about["overlap"], held.about.get("overlap", store.about["overlap"])
    if found != wanted:
        raise InputError(f"{maps}: is of windows that overlap by {found:g}, and {store.folder} by {wanted:g}; predict "
                         f"the slide with --overlap={wanted:g}")  # fmt: skip
    # of a slide that was also drawn in steps, the rates that are read here are still those of one shot
    if held.about["decoding"].partition(";")[0] != ONE_SHOT:
        raise InputError(f"{maps}: its rates are decoded by {held.about['decoding']!r}, and those of {store.folder} by "
                         f"{ONE_SHOT!r}; predict the slide so")  # fmt: skip
    section, remarks = held.about["section"], []
    if held.about.get("stain") is not None:
        remarks.append(f"{section}: its stains were taken to a reference before it was predicted, those of the "
                       "patients were not: part of what sets it apart from them may be that")  # fmt: skip
    patient = store.patient_of_maps(held.about)
    if patient:
        remarks.append(f"{section}: is taken for the section of that name of patient {patient}, who is therefore none "
                       "of its neighbours")  # fmt: skip
    mean_G = held.mean_G
    expression_G = log_cpm(mean_G[None], mean_G.sum(keepdims=True))[0]
    return Query(section, patient, PREDICTED, index.space.placed(PREDICTED, expression_G[None])[0],
                 lambda: expression_G - index.space.mean_KxG[0], banner=held.about["banner"],
                 maps=maps, remarks=tuple(remarks))  # fmt: skip


def with_look(query: Query, um_per_px: float) -> Query:
    """Of a slide: how its H&E was scanned, as far as it lies where it was predicted from, and can be read at the scale
    of what it is held against."""
    about = MapStore(query.maps).about
    try:
        with contextlib.ExitStack() as stack:
            section = slide_of_maps(about, stack, say=str)
            refuse_another(section, about)
            section = as_ingested(section, um_per_px)
            if not um_per_px / COARSER <= section.he_um_per_px <= um_per_px * COARSER:
                raise InputError(f"{section.id}: has {section.he_um_per_px:.3g} µm per px, and sections of training "
                                 f"{um_per_px:.3g}")  # fmt: skip
            look = look_of(section)
            if not np.isfinite(look.acquisition_A).all():
                raise InputError(f"{section.id}: has fewer than {LEAST_PX} px along a side")
            return dataclasses.replace(query, acquisition_A=look.acquisition_A)
    except InputError as error:
        return dataclasses.replace(query, not_compared=str(error))


def neighbours(index: PatientIndex, query: Query, number: int, *, among: Sequence[str] = (PREDICTED,),
               cohort: str | None = None, itself: bool = False) -> Answer:  # fmt: skip
    """Among entries of those kinds, and of that cohort alone unless it is None ("": of no stated cohort); the query's
    own patient is none of them unless `itself`. Raises `InputError` where there is none."""
    some = np.flatnonzero(np.isin(index.kind_P, among) & (True if cohort is None else index.cohort_P == cohort))
    if not len(some):
        raise InputError(f"{index.folder.parent}: holds no {' or '.join(among)} patient"
                         + (f" of {cohort}" if cohort else "") + "; 'tario embed' adds them")  # fmt: skip
    own = () if itself or not query.patient else np.flatnonzero(index.name_P[some] == query.patient)
    found = nearest(index.place_PxC[some], query.place_C[None], number, without_P=own)
    entry_n, distance_n = some[found.index_Qxn[0]], found.distance_Qxn[0]
    if not len(entry_n):
        raise InputError(f"{index.folder.parent}: holds no patient but {query.name}; 'tario embed' adds others")
    names, counts = np.unique(index.cohort_P[entry_n], return_counts=True)
    return Answer(entry_n, distance_n, index.unusual(float(distance_n[0])), query.cohort or str(names[counts.argmax()]))
