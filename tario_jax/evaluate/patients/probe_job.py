"""`tario probe`: columns of a corpus's table, decoded from embeddings of its patients, with everything beside them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.read import Corpus
from tario_jax.evaluate.patients.embed import refuse_others
from tario_jax.evaluate.patients.index import index_of
from tario_jax.evaluate.patients.outcome_tuning import Tissue, Tuner, Tuning, Windows
from tario_jax.evaluate.patients.outcomes import (
    LOOKS,
    NO,
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
from tario_jax.evaluate.patients.tables import PatientTable, Table, columns_of, not_known
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


def patients_asked(store: EmbeddingStore, table: Table, asked: Asked, vectors: Sequence[str],
                   say: Callable[[str], None]) -> Patients:  # fmt: skip
    """Embedded patients of a table.

    Those that the model saw in training are left out, unless they are asked for, and those of whose H&E nothing is
    known but what is predicted from it. Raises `InputError` where none is left.
    """
    everyone = pooled(store.rows(PREDICTED, vectors=(*vectors, "texture", "acquisition")))
    kept_P = np.isin(everyone.name_P, [row["patient"] for row in table.patients])
    if not kept_P.any():
        raise InputError(f"{store.folder}: holds no patient predicted from H&E of {table.root}; embed them: tario "
                         f"embed --corpus={table.root if isinstance(table, Corpus) else '…'} "
                         f"--out={store.folder}")  # fmt: skip
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
    blank_P = kept_P & ~np.isfinite(_looks(everyone)).all(1)
    if blank_P.any():
        names = everyone.name_P[blank_P].tolist()
        told = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        if not (kept_P & ~blank_P).any():
            raise InputError(f"{store.folder}: of none of these patients stain and texture are known: their H&E is too "
                             f"small ({told})")  # fmt: skip
        say(f"probe: left out, since their H&E is too small to tell stain and texture of: {told}")
    return everyone.take(kept_P & ~blank_P)


def _looks(patients: Patients) -> np.ndarray:
    """[P, F + A]"""
    return np.concatenate([patients.texture_PxF, patients.acquisition_PxA], 1)


def probe_job(store: EmbeddingStore, corpus: Corpus | None, asked: Asked, setting: Setting,
              say: Callable[[str], None] = print, *, table: PatientTable | None = None,
              predictor: Predictor | None = None, tuning: Tuning | None = None) -> dict[str, Any]:  # fmt: skip
    """Every column's figures, of patients of the corpus, or of the table where there is no corpus. predictor, tuning:
    the model of the embeddings, to be tuned on each column beside the probe.

    Columns that have too few patients are left out by name. Raises `InputError` where none is left, for columns that
    are not there, and for another model.
    """
    tables = [one for one in (corpus, table) if one is not None]
    if corpus is None and (asked.reachable or predictor is not None or not tables):
        raise InputError("--reachable and --fine-tune: read sections; give --corpus" if tables else
                         "probe: no table of patients is named; give --corpus or --table")  # fmt: skip
    if predictor is not None and predictor.checkpoint != store.about["checkpoint"]:
        raise InputError(f"--fine-tune: is checkpoint {predictor.checkpoint}, and {store.folder} of "
                         f"checkpoint {store.about['checkpoint']}; give the workdir that was embedded")  # fmt: skip
    if predictor is not None and store.about["bin_um"] != predictor.provenance.bin_um:
        raise InputError(f"--fine-tune: reads bins of {predictor.provenance.bin_um:g} µm, those of training, and the "
                         f"embeddings of {store.folder} are of {store.about['bin_um']:g} µm; embed without "
                         "--bin-um")  # fmt: skip
    if predictor is not None or asked.reachable:
        refuse_others(store, store.held(), [(section, PREDICTED) for section in corpus.sections], corpus,
                      "give the corpus that was embedded in place of")  # fmt: skip
        held = store.held()  # what stands beside the embeddings reads what they are of, and no further section
        corpus = dataclasses.replace(corpus, sections=tuple(section for section in corpus.sections
                                                            if (section.id, PREDICTED) in held))  # fmt: skip
    if not asked.columns or not setting.vectors:
        raise InputError("--columns and --vectors: name at least one")
    patients = patients_asked(store, tables[0], asked, setting.vectors, say)
    in_pairs = [name for pair in asked.pairs for name in pair]
    columns: dict[str, np.ndarray] = {}
    for flag, names in (("columns", asked.columns), ("known", asked.known), ("confounders", asked.confounders),
                        ("pairs", in_pairs)):  # fmt: skip
        hint = "" if flag == "columns" else f"; --{flag}= asks for none"
        columns |= columns_of(tables, names, patients.name_P.tolist(), cohort_P=patients.cohort_P, hint=hint)
    for name in in_pairs:
        yes_or_no(name, columns[name])
    features = {VECTORS: vectors_of(patients, setting.vectors), LOOKS: _looks(patients)}
    outcomes, too_few = _outcomes(asked.columns, columns, setting)
    for reason in too_few.values():
        say(f"probe: left out: {reason}")
    reachable = None
    if asked.reachable:
        reachable = reachable_bulk(corpus, patients.name_P.tolist(), workers=asked.workers, say=say)
    groups = {name: columns[name] for name in dict.fromkeys((*asked.known, *asked.confounders))}
    tissue: dict[str, Tissue] = {}  # by seal: a section is looked at for one column, and known for the others
    found = [
        decoded(outcome, features, groups, setting, known=asked.known, reachable_PxF=reachable, say=say,
                further=_tuned(predictor, corpus, patients, outcome, tuning, store, tissue, say))
        for outcome in outcomes
    ]  # fmt: skip
    for one in found:
        one["told"] = {"patient": patients.name_P[one["told"].pop("index")].tolist()} | one["told"]
    result = {
        "corpus": None if corpus is None else str(corpus.root), "table": None if table is None else str(table.root),
        "embeddings": str(store.folder), "model": store.about["model"],
        "checkpoint": store.about["checkpoint"], "trained_on": store.about["trained_on"],
        "patients": len(patients.name_P), "seen_in_training": int(patients.seen_P.sum()),
        "setting": dataclasses.asdict(setting), "confounders": list(groups), "outcomes": found,
        "too_few": too_few,
    }  # fmt: skip
    if sum(len(one["classes"]) == 2 for one in found) > 1 or asked.pairs:
        result["structure"] = _structure(store, patients, columns, found, asked, setting)
    return result


def _outcomes(names: Sequence[str], columns: dict[str, np.ndarray],
              setting: Setting) -> tuple[list[Outcome], dict[str, str]]:  # fmt: skip
    """Of those columns that have patients enough; why the others have not."""
    found, too_few = [], {}
    for name in names:
        try:
            found.append(outcome_of(name, columns[name], setting))
        except InputError as error:
            too_few[name] = str(error)
    if not found:
        raise InputError("; ".join(too_few.values()))
    return found, too_few


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
           store: EmbeddingStore, tissue: dict[str, Tissue],
           say: Callable[[str], None]) -> dict[str, Callable[[Folds], Told]]:  # fmt: skip
    if predictor is None or tuning is None:
        return {}
    windows = Windows(predictor, corpus, patients.name_P[outcome.index_n].tolist(), tissue)
    tuner = Tuner(windows, tuning, store.folder / "tuned", lambda text: say(f"{outcome.column}: {text}"))
    return {TUNED: lambda folds: tuner.told(outcome.label_n, len(outcome.classes), folds)}


def _structure(store: EmbeddingStore, patients: Patients, columns: dict[str, np.ndarray], found: list[dict[str, Any]],
               asked: Asked, setting: Setting) -> dict[str, Any]:  # fmt: skip
    """Of columns of two classes, each pair by the patients of whom both are known; compared within groups of
    confounders."""
    label, chance = {}, {}
    for one in found:
        if len(one["classes"]) == 2:
            yes = list(one["classes"])[1]
            name = one["column"] if yes.lower() in YES else f"{one['column']} {yes}"
            at_n = np.searchsorted(patients.name_P, one["told"]["patient"])
            label[name], chance[name] = np.full((2, len(patients.name_P)), np.nan)
            label[name][at_n], chance[name][at_n] = one["told"]["label"], np.array(one["told"]["probability"])[:, 1]
    index = index_of(store)
    place_PxC = index.place_PxC[[index.entry(name, PREDICTED) for name in patients.name_P.tolist()]]
    of = {name: columns[name] for name in (*asked.known, *asked.confounders)}
    group_P = alike(of) if of else np.zeros(len(place_PxC), int)
    compared = []
    for first, second in asked.pairs:
        both = [yes_or_no(name, columns[name]) for name in (first, second)]
        known_P = np.logical_and(*(known for _, known in both))
        apart = two_against_one(place_PxC[known_P], *(yes[known_P] for yes, _ in both), group_P[known_P],
                                seed=setting.seed)  # fmt: skip
        compared.append({"pair": [first, second], "found": apart})
    return {"mutations": list(label), "co_occurrence": co_occurrence(label, chance), "two_against_one": compared,
            "not_of_two": [one["column"] for one in found if len(one["classes"]) != 2]}  # fmt: skip


def yes_or_no(column: str, value_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of whom it is true, and of whom it is known, bool [P] each. Raises `InputError` for a column of other values."""
    word_P = np.array([value.strip().lower() for value in value_P.tolist()], str)
    known_P = ~not_known(value_P)
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


def pairs_text(result: dict[str, Any]) -> list[str]:
    """A line a pair that was compared."""
    return [_pair_text(one) for one in result.get("structure", {}).get("two_against_one", ())]


def _pair_text(one: dict[str, Any]) -> str:
    (first, second), found = one["pair"], one["found"]
    if found is None:
        return f"{first} with {second}: too few patients to compare."
    return (f"{first} with {second} ({found['both']}) against {first} alone ({found['first_alone']}), within groups of "
            f"confounders: {found['distance']:.2f} standard deviations apart, {found['distance_of_permutations']:.2f} "
            f"where labels are dealt anew {found['permutations']:,} times; p {found['p']:.2g}.")  # fmt: skip
