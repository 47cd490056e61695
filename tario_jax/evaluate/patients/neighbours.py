"""Who is near a patient, or a slide, in the space of a cohort, and what is unusual about it.

A description of a cohort: never advice on a treatment.
"""

import dataclasses
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.evaluate.bulk import log_cpm
from tario_jax.evaluate.patients.space import Space, fitted, nearest
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.vectors import MEASURED, PREDICTED, Patients, pooled
from tario_jax.predict.map_store import MapStore

NO_ADVICE = "Neighbours describe a cohort as a model sees it; they are no diagnosis and no advice on a treatment."


@dataclasses.dataclass(frozen=True)
class Query:
    """What is looked for: expression of a patient or a slide."""

    name: str
    kind: str
    expression_G: np.ndarray
    cohort: str = ""  # "": not known
    banner: str = ""  # of a slide's maps


@dataclasses.dataclass(frozen=True)
class Answer:
    """n neighbours, the nearest first, and how the query stands among the patients of the reference."""

    patient_n: tuple[str, ...]
    cohort_n: tuple[str, ...]
    distance_n: np.ndarray
    unusual: float  # share of reference patients that are nearer to their own nearest than this one is to its
    percentile: dict[str, float]  # by gene, of its expression within the cohort: share of patients below
    of_cohort: str  # in which percentiles are: the query's, else that of most neighbours


def query_of_patient(store: EmbeddingStore, patient: str, kind: str) -> Query:
    """Raises `InputError` where the store has no such rows."""
    rows = [row for row in store.rows(kind) if row.patient == patient]
    if not rows:
        known = ", ".join(sorted({row.patient for row in store.rows(kind)})[:5]) or "none"
        raise InputError(f"{store.folder}: has no {kind} section of patient {patient!r}; it has {known}, …")
    return Query(patient, kind, pooled(rows).expression_PxG[0], rows[0].cohort)


def query_of_slide(store: EmbeddingStore, maps: Path) -> Query:
    """A slide's maps by the same model. Raises `InputError` where they are of another."""
    held = MapStore(maps)
    for name, wanted in (("panel_hash", store.panel.hash), ("checkpoint", store.about["checkpoint"])):
        if held.about[name] != wanted:
            raise InputError(f"{maps}: is of {name.replace('_', ' ')} {held.about[name]}, and {store.folder} of "
                             f"{wanted}; predict the slide with that model")  # fmt: skip
    mean_G = held.mean_G
    expression_G = log_cpm(mean_G[None], mean_G.sum(keepdims=True))[0]
    return Query(held.about["section"], PREDICTED, expression_G, banner=held.about["banner"])


def neighbours(store: EmbeddingStore, query: Query, number: int, *, components: int = 50,
               genes: tuple[str, ...] = ()) -> Answer:  # fmt: skip
    """Among the predicted patients of a store, without the query's own. Raises `InputError` for unknown genes."""
    missing = [symbol for symbol in genes if symbol not in store.panel.index]
    if missing:
        raise InputError(f"gene {missing[0]!r} is not among the {len(store.panel)} of {store.folder}")
    reference = _without(pooled(store.rows(PREDICTED)), query.name)
    kinds = {PREDICTED: reference}
    if query.kind == MEASURED:
        rows = [row for row in store.rows(MEASURED) if row.patient != query.name]
        if not rows:
            raise InputError(f"{store.folder}: holds nothing measured of other patients; embed them with --measured")
        kinds[MEASURED] = pooled(rows)
    space = fitted(kinds, components, panel_hash=store.panel.hash, checkpoint=store.about["checkpoint"])
    place_PxC = space.placed(PREDICTED, reference.expression_PxG)
    found = nearest(place_PxC, space.placed(query.kind, query.expression_G[None]), number)
    index_n = found.index_Qxn[0]
    cohorts = reference.cohort_P[index_n]
    names, counts = np.unique(cohorts, return_counts=True)
    cohort = query.cohort or str(names[counts.argmax()])
    return Answer(
        tuple(reference.name_P[index_n].tolist()), tuple(cohorts.tolist()), found.distance_Qxn[0],
        _unusual(place_PxC, float(found.distance_Qxn[0, 0])),
        _percentiles(store, space, reference, query, cohort, genes), cohort,
    )  # fmt: skip


def _without(patients: Patients, name: str) -> Patients:
    kept_P = patients.name_P != name
    return Patients(*(of_P[kept_P] for of_P in patients))


def _unusual(place_PxC: np.ndarray, distance: float) -> float:
    own_P = nearest(place_PxC, place_PxC, 2).distance_Qxn[:, 1]  # the first is the patient itself
    return float((own_P < distance).mean())


def _percentiles(store: EmbeddingStore, space: Space, reference: Patients, query: Query, cohort: str,
                 genes: tuple[str, ...]) -> dict[str, float]:  # fmt: skip
    """A measured patient stands among predicted ones by its difference from the mean of its kind."""
    own_P = reference.cohort_P == cohort
    found = {}
    for symbol in genes:
        gene = store.panel.index[symbol]
        mean_K = space.mean_KxG[:, gene]
        value = query.expression_G[gene] - mean_K[space.kinds.index(query.kind)] + mean_K[0]
        found[symbol] = float((reference.expression_PxG[own_P, gene] < value).mean()) if own_P.any() else np.nan
    return found
