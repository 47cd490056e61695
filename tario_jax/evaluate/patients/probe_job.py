"""`tario probe`: columns of a corpus's table, decoded from embeddings of its patients, with everything beside them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.read import Corpus
from tario_jax.evaluate.patients.index import index_of
from tario_jax.evaluate.patients.outcome_tuning import Tuner, Tuning, Windows
from tario_jax.evaluate.patients.outcomes import (
    LOOKS,
    NO,
    UNKNOWN,
    VECTORS,
    YES,
    Outcome,
    Setting,
    alike,
    decoded,
    interval_text,
    lead_text,
    line_text,
    null_text,
    outcome_of,
)
from tario_jax.evaluate.patients.probe import Folds, Told
from tario_jax.evaluate.patients.reachable import reachable_bulk
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.structure import co_occurrence, two_against_one
from tario_jax.evaluate.patients.tables import columns_of
from tario_jax.evaluate.patients.vectors import PREDICTED, Patients, pooled
from tario_jax.predict.predictor import Predictor

TUNED = "fine-tuned"
OF_VECTORS = ("expression", "log_expression", "state", "spread")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is decoded, and from whom."""

    columns: tuple[str, ...]
    confounders: tuple[str, ...] = ("site",)
    known: tuple[str, ...] = ("cohort",)  # as confounders, but part of what is asked: they do not decide the figure
    cohorts: tuple[str, ...] = ()  # these alone
    allow_seen: bool = False
    reachable: bool = False
    pairs: tuple[tuple[str, str], ...] = ()  # whether patients with both lie elsewhere than those with the first alone
    workers: int = 2


def patients_asked(store: EmbeddingStore, corpus: Corpus, asked: Asked, vectors: Sequence[str],
                   say: Callable[[str], None]) -> Patients:  # fmt: skip
    """Embedded patients of a corpus.

    Those that the model saw in training are left out, unless they are asked for. Raises `InputError` where none is
    left.
    """
    everyone = pooled(store.rows(PREDICTED, vectors=(*vectors, "texture", "acquisition")))
    kept_P = np.isin(everyone.name_P, [row["patient"] for row in corpus.patients])
    if not kept_P.any():
        raise InputError(f"{store.folder}: holds no patient of the corpus {corpus.root}; embed it: tario embed "
                         f"--corpus={corpus.root} --out={store.folder}")  # fmt: skip
    if asked.cohorts:
        unknown = sorted(set(asked.cohorts) - set(everyone.cohort_P[kept_P].tolist()))
        if unknown:
            raise InputError(f"--cohorts={unknown[0]}: is none of {', '.join(sorted(set(everyone.cohort_P[kept_P])))}")
        kept_P &= np.isin(everyone.cohort_P, asked.cohorts)
    seen_P = kept_P & everyone.seen_P
    if not asked.allow_seen:
        kept_P &= ~everyone.seen_P
        if not kept_P.any():
            raise InputError(f"{store.folder}: the model saw all {seen_P.sum()} of these patients in training, and "
                             "knows them better than others: what a probe tells of them says nothing of new ones; "
                             "embed held-out patients, or force it: --allow-seen")  # fmt: skip
    if seen_P.any():
        say(f"probe: {seen_P.sum()} patients that the model saw in training are "
            + ("among them: no figure here holds for new patients" if asked.allow_seen else "left out"))  # fmt: skip
    return everyone.take(kept_P)


def probe_job(store: EmbeddingStore, corpus: Corpus, asked: Asked, setting: Setting,
              say: Callable[[str], None] = print, *, predictor: Predictor | None = None,
              tuning: Tuning | None = None) -> dict[str, Any]:  # fmt: skip
    """Every column's figures. predictor, tuning: the model of the embeddings, to be tuned on each column beside the
    probe. Raises `InputError` for columns that are not there or have too few patients, and for another model."""
    if predictor is not None and predictor.checkpoint != store.about["checkpoint"]:
        raise InputError(f"--fine-tune: is checkpoint {predictor.checkpoint}, and {store.folder} of "
                         f"checkpoint {store.about['checkpoint']}; give the workdir that was embedded")  # fmt: skip
    if not asked.columns or not setting.vectors:
        raise InputError("--columns and --vectors: name at least one")
    patients = patients_asked(store, corpus, asked, setting.vectors, say)
    in_pairs = [name for pair in asked.pairs for name in pair]
    columns: dict[str, np.ndarray] = {}
    for flag, names in (("columns", asked.columns), ("known", asked.known), ("confounders", asked.confounders),
                        ("pairs", in_pairs)):  # fmt: skip
        hint = "" if flag == "columns" else f"; --{flag}= asks for none"
        columns |= columns_of([corpus], names, patients.name_P.tolist(), hint=hint)
    for name in in_pairs:
        yes_or_no(name, columns[name])
    features = {VECTORS: vectors_of(patients, setting.vectors),
                LOOKS: np.concatenate([patients.texture_PxF, patients.acquisition_PxA], 1)}  # fmt: skip
    outcomes = [outcome_of(name, columns[name], setting) for name in asked.columns]
    reachable = None
    if asked.reachable:
        reachable = reachable_bulk(corpus, patients.name_P.tolist(), workers=asked.workers, say=say)
    groups = {name: columns[name] for name in dict.fromkeys((*asked.known, *asked.confounders))}
    found = [
        decoded(outcome, features, groups, setting, known=asked.known, reachable_PxF=reachable, say=say,
                further=_tuned(predictor, corpus, patients, outcome, tuning, store, say))
        for outcome in outcomes
    ]  # fmt: skip
    for one in found:
        one["told"] = {"patient": patients.name_P[one["told"].pop("index")].tolist()} | one["told"]
    result = {
        "corpus": str(corpus.root), "embeddings": str(store.folder), "model": store.about["model"],
        "checkpoint": store.about["checkpoint"], "trained_on": store.about["trained_on"],
        "patients": len(patients.name_P), "seen_in_training": int(patients.seen_P.sum()),
        "setting": dataclasses.asdict(setting), "confounders": list(groups), "outcomes": found,
    }  # fmt: skip
    yes_no = [one for one in found if set(one["classes"]) == {"true", "false"}]
    if len(yes_no) > 1 or asked.pairs:
        result["structure"] = _structure(store, patients, columns, yes_no, asked, setting)
    return result


def reachable_aurocs(corpus: Corpus, columns: Sequence[str], setting: Setting, *, workers: int = 2,
                     say: Callable[[str], None] = print) -> dict[str, dict[str, dict[str, float]]]:  # fmt: skip
    """AUROC that the H&E of virtual patients allows, by column: of all patients, and of pairs of one cancer type.

    Raises `InputError` for columns that are not there or have too few patients, and for real tissue.
    """
    names = sorted({section.patient for section in corpus.sections})
    of = columns_of([corpus], (*columns, "cohort"), names)
    outcomes = [outcome_of(name, of[name], setting) for name in columns]
    features = {VECTORS: reachable_bulk(corpus, names, workers=workers, say=say)}
    found = {}
    for outcome in outcomes:
        one = decoded(outcome, features, {"cohort": of["cohort"]}, setting)
        found[outcome.column] = {"of all patients": one["auroc"][VECTORS]} | {
            f"within {name}": told[VECTORS] for name, told in one["within"].items()}  # fmt: skip
    return found


def _tuned(predictor: Predictor | None, corpus: Corpus, patients: Patients, outcome: Outcome, tuning: Tuning | None,
           store: EmbeddingStore, say: Callable[[str], None]) -> dict[str, Callable[[Folds], Told]]:  # fmt: skip
    if predictor is None or tuning is None:
        return {}
    windows = Windows(predictor, corpus, patients.name_P[outcome.index_n].tolist())
    tuner = Tuner(windows, tuning, store.folder / "tuned", lambda text: say(f"{outcome.column}: {text}"))
    return {TUNED: lambda folds: tuner.told(outcome.label_n, len(outcome.classes), folds)}


def _structure(store: EmbeddingStore, patients: Patients, columns: dict[str, np.ndarray], yes_no: list[dict[str, Any]],
               asked: Asked, setting: Setting) -> dict[str, Any]:  # fmt: skip
    """Of columns of true and false that are known of the same patients; compared within groups of confounders."""
    of_all = [one for one in yes_no if len(one["told"]["patient"]) == len(patients.name_P)]
    label = {one["column"]: np.array(one["told"]["label"]) == 1 for one in of_all}
    chance = {one["column"]: np.array(one["told"]["probability"])[:, 1] for one in of_all}
    index = index_of(store)
    place_PxC = index.place_PxC[[index.entry(name, PREDICTED) for name in patients.name_P.tolist()]]
    of = {name: columns[name] for name in (*asked.known, *asked.confounders)}
    group_P = alike(of) if of else np.zeros(len(place_PxC), int)
    compared = []
    for first, second in asked.pairs:
        both = [yes_or_no(name, columns[name]) for name in (first, second)]
        known_P = np.logical_and(*(known for _, known in both))
        found = two_against_one(place_PxC[known_P], *(yes[known_P] for yes, _ in both), group_P[known_P],
                                seed=setting.seed)  # fmt: skip
        compared.append({"pair": [first, second], "found": found})
    return {"mutations": list(label), "co_occurrence": co_occurrence(label, chance), "two_against_one": compared}


def yes_or_no(column: str, value_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of whom it is true, and of whom it is known, bool [P] each. Raises `InputError` for a column of other values."""
    word_P = np.array([value.strip().lower() for value in value_P.tolist()])
    known_P = ~np.isin(word_P, UNKNOWN)
    if not set(word_P[known_P].tolist()) <= {*YES, *NO}:
        raise InputError(f"column {column!r}: expected true and false, or yes and no; it has "
                         f"{', '.join(sorted(set(value_P[known_P].tolist()))[:4])}")  # fmt: skip
    return np.isin(word_P, YES), known_P


def vectors_of(patients: Patients, names: Sequence[str]) -> np.ndarray:
    """Those vectors side by side, [P, F]. Raises `InputError` where one is not there."""
    for name in names:
        if name not in OF_VECTORS:
            raise InputError(f"--vectors={name}: expected some of {', '.join(OF_VECTORS)}")
    of = {"expression": patients.expression_PxG, "log_expression": patients.log_expression_PxG,
          "state": patients.state_Pxr, "spread": patients.spread_Pxr}  # fmt: skip
    found = np.concatenate([of[name] for name in names], 1)
    return np.where(np.isfinite(found), found, 0.0) if not np.isfinite(found).all() else found


def table_of(result: dict[str, Any]) -> str:
    """AUROCs as text: a column a line."""
    tuned = [TUNED] if any(TUNED in one["auroc"] for one in result["outcomes"]) else []
    names = [VECTORS, *tuned, LOOKS, *(f"{name} alone" for name in result["confounders"])]
    heads = ["column", "patients", "lead", "", *names, "shuffled", "slope"]
    reachable = any("reachable" in one["auroc"] for one in result["outcomes"])
    heads += ["reachable", "way"] if reachable else []
    lines = [heads]
    for one in result["outcomes"]:
        cells = [one["column"], str(one["patients"]), interval_text(one["lead"]), lead_text(one)]
        cells += [interval_text(one["auroc"][name]) if name in one["auroc"] else "" for name in names]
        null = one["null"]
        cells.append("" if null is None else null_text(null))
        cells.append(line_text(one["calibration"]["slope"]))
        if reachable:
            way = one["way"][one["lead"]["how"]]
            cells += [interval_text(one["auroc"]["reachable"]), interval_text(way, 2)]
        lines.append(cells)
    widths = [max(len(line[at]) for line in lines) for at in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)  # fmt: skip
