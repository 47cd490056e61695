"""`tario neighbours`: everything that is told of one patient, or one slide, in the frame of a cohort."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.config import InputError
from tario_jax.evaluate.patients import frame
from tario_jax.evaluate.patients.index import PatientIndex
from tario_jax.evaluate.patients.neighbours import (
    NO_ADVICE,
    Answer,
    Query,
    neighbours,
    query_of_patient,
    query_of_slide,
    with_look,
)
from tario_jax.evaluate.patients.outcomes import YES
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.tables import Table, columns_of, not_known, says_nothing
from tario_jax.evaluate.patients.unlike import unlike_of
from tario_jax.evaluate.patients.vectors import MEASURED, PREDICTED
from tario_jax.predict.signatures import Signature


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is told of a query. around: nearest patients of its cohort among whom outcomes are counted."""

    number: int = 5
    among: tuple[str, ...] = (PREDICTED,)
    genes: tuple[str, ...] = ()
    signatures: tuple[Signature, ...] = ()
    columns: tuple[str, ...] = ()
    differ: str = ""
    around: int = 50
    why: bool = False


def query_of(store: EmbeddingStore, index: PatientIndex, *, patient: str | None, slide: Path | None,
             measured: bool) -> Query:  # fmt: skip
    if patient is not None:
        return query_of_patient(store, index, patient, MEASURED if measured else PREDICTED)
    return query_of_slide(store, index, slide)


def told_of(store: EmbeddingStore, index: PatientIndex, tables: Sequence[Table], query: Query,
            asked: Asked) -> dict[str, Any]:  # fmt: skip
    """Raises `InputError` for genes, columns and patients that are not there."""
    missing = [symbol for symbol in asked.genes if symbol not in store.panel.index]
    if missing:
        raise InputError(f"gene {missing[0]!r} is not among the {len(store.panel)} of {store.folder}")
    unlike = unlike_of(index, store) if query.kind == PREDICTED else None
    if unlike is not None and query.maps is not None:
        query = with_look(query, unlike.um_per_px)
    found = neighbours(index, query, asked.number, among=asked.among)
    names = tuple(dict.fromkeys((*asked.columns, *((asked.differ,) if asked.differ else ()))))
    of_neighbour = _columns(index, tables, names, found.entry_n)
    rows = [
        {"patient": str(index.name_P[entry]), "kind": str(index.kind_P[entry]), "cohort": str(index.cohort_P[entry]),
         "distance": round(float(distance), 3)} | {name: str(of_neighbour[name][at]) for name in asked.columns}
        for at, (entry, distance) in enumerate(zip(found.entry_n.tolist(), found.distance_n, strict=True))
    ]  # fmt: skip
    symbols = store.panel.symbols
    standings = frame.standings(index, query, found.cohort, asked.genes, asked.signatures, symbols)
    result: dict[str, Any] = {
        "query": query.name, "kind": query.kind, "cohort": found.cohort, "cohort_known": bool(query.cohort),
        "neighbours": rows,
        # what is usual is known of predicted patients among predicted ones
        "unusual": found.unusual if query.entry is not None and {query.kind, *asked.among} == {PREDICTED} else None,
        "standings": [dataclasses.asdict(one) | {"unusual": one.unusual} for one in standings],
        "not_ranked": [name for name in (*asked.genes, *(one.name for one in asked.signatures))
                       if name not in {one.of for one in standings}],
        "unusual_of": frame.patients_to_tell(), "remarks": list(query.remarks),
        "not_compared": query.not_compared, "trained_on": store.about["trained_on"], "model": store.about["model"],
        "banner": query.banner, "note": NO_ADVICE,
    }  # fmt: skip
    if query.kind == PREDICTED:
        result["unlike"] = None if unlike is None else unlike.told(query) | {"patients": unlike.patients}
    if names:
        result |= _outcomes(index, tables, query, found, asked, names, symbols)
    if asked.why:
        result["alike_genes"] = frame.alike_genes(index, query, found.entry_n, found.cohort, symbols)
        result["alike_regions"] = _regions(store, index, query, found)
    return result


def _columns(index: PatientIndex, tables: Sequence[Table], names: Sequence[str],
             entries: np.ndarray) -> dict[str, np.ndarray]:  # fmt: skip
    return columns_of(tables, names, index.name_P[entries].tolist(), cohort_P=index.cohort_P[entries])


def _outcomes(index: PatientIndex, tables: Sequence[Table], query: Query, found: Answer, asked: Asked,
              names: tuple[str, ...], symbols: Sequence[str]) -> dict[str, Any]:  # fmt: skip
    """Counted among the nearest predicted patients of the query's cohort."""
    everyone = np.flatnonzero((index.cohort_P == found.cohort) & (index.kind_P == PREDICTED)
                              & (index.name_P != query.patient))  # fmt: skip
    if not len(everyone):
        return {"around": 0, "outcomes": {}}
    around = neighbours(index, query, asked.around, cohort=found.cohort)
    near, of_all = _columns(index, tables, names, around.entry_n), _columns(index, tables, names, everyone)
    result: dict[str, Any] = {
        "around": len(around.entry_n),
        "outcomes": {name: frame.outcome_shares(near[name].tolist(), of_all[name].tolist()) for name in names},
    }  # fmt: skip
    if asked.differ:
        values = near[asked.differ]
        known = sorted({value for value in of_all[asked.differ].tolist() if not says_nothing(value)})
        if len(known) != 2:
            raise InputError(f"--differ={asked.differ}: expected a column of two values; in "
                             f"{cohort_text(found.cohort)} it has {', '.join(known[:5]) or 'none'}")  # fmt: skip
        yes = next((value for value in known if value.lower() in YES), known[-1])
        some = ~not_known(values)
        result["differ"] = {"column": asked.differ, "value": yes} | (frame.differences(
            index, around.entry_n[some], values[some] == yes, found.cohort, asked.signatures, symbols, query,
        ) or {"with": int((values == yes).sum()), "without": int((some & (values != yes)).sum())})  # fmt: skip
    return result


def _regions(store: EmbeddingStore, index: PatientIndex, query: Query, found: Answer) -> list[dict[str, Any]]:
    """Of the nearest neighbour; a slide's maps have no rows of regions."""
    if query.entry is None:
        return []
    nearest = int(found.entry_n[0])
    return frame.alike_regions(index, frame.regions_of(store, index, query.entry),
                               frame.regions_of(store, index, nearest))  # fmt: skip


def text_of(result: dict[str, Any]) -> str:
    """For people who read a terminal."""
    rows = result["neighbours"]
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    lines += filter(None, [result["banner"], *result["remarks"]])
    if result["unusual"] is not None:
        lines.append(f"{result['unusual']:.0%} of the patients are nearer to their own nearest than {result['query']} "
                     "is to its")  # fmt: skip
    lines += unlike_lines(result)
    lines += [standing_text(one, result) for one in result["standings"]] + standing_remarks(result)
    for name, shares in result.get("outcomes", {}).items():
        lines += [f"{name} {one['value']}: {share_text(one)}, p {one['p']:.2g}" for one in shares if one["of"]]
    if "differ" in result:
        lines += _differ_lines(result["differ"])
    if result.get("alike_genes"):
        told = ", ".join(f"{one['gene']} {one['query']:+.1f}/{one['neighbours']:+.1f}" for one in result["alike_genes"])
        lines.append(f"alike in (deviations of query/neighbours from {cohort_text(result['cohort'])}): {told}")
    for one in result.get("alike_regions", ()):
        lines.append(f"alike: {one['section']} at {one['corner_um']} µm and {one['other_section']} at "
                     f"{one['other_corner_um']} µm, distance {one['distance']}")  # fmt: skip
    return "\n".join([*lines, result["note"]])


def unlike_lines(result: dict[str, Any]) -> list[str]:
    """Whether the model knows such patients at all."""
    if "unlike" not in result:
        return []
    if result["unlike"] is None:
        return ["whether it is like those that the model was trained on is not known here: they are not embedded; "
                "tario embed without --corpus adds them"]  # fmt: skip
    found = []
    for name in ("tissue", "scanner"):
        one = result["unlike"].get(name)
        if one is None:
            found.append(f"its {name} is not compared: {result['not_compared'] or 'its H&E is not known'}")
        else:
            how = "unlike" if one["unlike"] else "like"
            found.append(f"its {name} is {how} those of the {result['unlike']['patients']} patients that the model was "
                         f"trained on: distance {one['distance']:.1f}, limit {one['limit']:.1f}"
                         + (f", {one['nearest']} nearest" if one["nearest"] else ""))  # fmt: skip
    return found


def cohort_text(cohort: str) -> str:
    return cohort or "no stated cohort"


def of_whom(result: dict[str, Any]) -> str:
    """Whom a query is ranked among."""
    return f"{'measured ' if result['kind'] == MEASURED else ''}patients of {cohort_text(result['cohort'])}"


def standing_text(one: dict[str, Any], result: dict[str, Any]) -> str:
    odd = "; unusual" if one["unusual"] else ""
    return (f"{one['of']}: above {one['percentile']:.0%} [{one['low']:.0%}, {one['high']:.0%}] of {one['patients']} "
            f"{of_whom(result)}, {one['deviations']:+.1f} deviations{odd}")  # fmt: skip


def standing_remarks(result: dict[str, Any]) -> list[str]:
    """What no standing tells: of too few patients none is unusual, however far out the query lies."""
    found, few = [], [one for one in result["standings"] if one["patients"] < result["unusual_of"]]
    if few:
        whose = "a standing" if len(few) == len(result["standings"]) else _listed([one["of"] for one in few])
        found.append(f"whether {whose} is unusual is not told: that takes {result['unusual_of']} patients, and there "
                     f"are {max(one['patients'] for one in few)}")  # fmt: skip
    if result["not_ranked"]:
        found.append(f"{_listed(result['not_ranked'])}: not ranked, since it is not known of {result['query']}, or of "
                     f"fewer than {frame.LEAST_COMPARED} other {of_whom(result)}")  # fmt: skip
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def share_text(one: dict[str, Any]) -> str:
    return (f"{one['neighbours']} of {one['of']} nearest, {one['share']:.0%} [{one['low']:.0%}, {one['high']:.0%}], "
            f"against {one['cohort_share']:.0%} of {one['cohort']} of the cohort")  # fmt: skip


def _differ_lines(differ: dict[str, Any]) -> list[str]:
    head = f"{differ['column']} {differ['value']}: {differ['with']} patients with, {differ['without']} without"
    if "genes" not in differ:
        return [f"{head}: too few to compare"]
    lines = [head]
    for kind in ("signatures", "genes"):
        lines += [f"  {one['name']}: {one['difference']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}] deviations, "
                  f"false discovery rate {one['false_discovery_rate']:.2g}; the query at {one['query']:+.2f} from "
                  "without (0) to with (1)" for one in differ.get(kind, ())[:5]]  # fmt: skip
    return lines
