"""`tario atlas`: figures and tables of all patients of a folder of embeddings, on one map."""

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.evaluate.page import notices, picture, table, whole_page
from tario_jax.evaluate.patients.atlas import agreement, atlas_of
from tario_jax.evaluate.patients.index import PatientIndex, index_of
from tario_jax.evaluate.patients.patient_figures import LIKE, draw_map
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.tables import Table, columns_of, usual_columns
from tario_jax.evaluate.patients.unlike import unlike_of
from tario_jax.evaluate.patients.vectors import PREDICTED
from tario_jax.evaluate.tables import plain
from tario_jax.whole_file import write_whole

UNLIKE = "unlike training"
_VIRTUAL = "Virtual patients: this map tests the software and says nothing about real tumours."


def atlas_job(store: EmbeddingStore, tables: Sequence[Table], columns: Sequence[str], out: Path, *,
              fit_again: bool = False, components: int,
              say: Callable[[str], None] = print) -> dict[str, Any]:  # fmt: skip
    """Writes atlas.html, atlas.json, patients.tsv, tsne.png and pca.png; returns what atlas.json holds."""
    index = index_of(store, fit_again=fit_again, components=components, say=say)
    columns = tuple(columns) or usual_columns(tables, index.cohort_P)
    predicted = index.of_kind(PREDICTED)
    names = index.name_P.tolist()
    table_P = columns_of(tables, columns, names, cohort_P=index.cohort_P)
    atlas = atlas_of(index, fit_again=fit_again, say=say)
    say(f"atlas: {len(names)} patients are placed on it")
    xy_Px2, cluster_P = atlas.placed(index.place_PxC), atlas.cluster(index.place_PxC)
    unlike = unlike_of(index, store)
    shown = {"cluster": np.array([f"{k + 1}" for k in cluster_P])} | table_P
    out.mkdir(parents=True, exist_ok=True)
    if unlike is not None:
        of_predicted = index.kind_P == PREDICTED
        odd = {"tissue": of_predicted & unlike.tissue.unlike(index.place_PxC),
               "scanner": of_predicted & unlike.scanner.unlike(index.acquisition_PxA)}  # fmt: skip
        told = np.select([odd["tissue"] & odd["scanner"], odd["tissue"], odd["scanner"]],
                         ["both", "tissue", "scanner"], LIKE)  # fmt: skip
        shown[UNLIKE] = np.where(of_predicted, told, "")
    write_whole(out / "patients.tsv", _lines(index, xy_Px2, shown))
    own = {name: values[predicted] for name, values in shown.items()}
    drawn = [
        draw_map(out / "tsne.png", xy_Px2[predicted], own, axes=("t-SNE 1", "t-SNE 2"),
                 caption=f"t-SNE of {len(predicted):,} patients by their predicted expression, from the H&E alone; "
                         "patients without a value are grey."),
        draw_map(out / "pca.png", index.place_PxC[predicted][:, :2], own, axes=_named_axes(index),
                 caption="The same patients by the first two principal components."),
    ]  # fmt: skip
    result = {
        "embeddings": str(store.folder), "model": store.about["model"], "trained_on": store.about["trained_on"],
        "patients": len(predicted), "measured": len(names) - len(predicted), "clusters": len(atlas.centre_KxC),
        "components": index.place_PxC.shape[1],
        "agreement": {name: agreement(cluster_P[predicted], values) for name, values in own.items()
                      if name not in ("cluster", UNLIKE) and len(set(values.tolist()) - {""}) > 1},
        "by_cluster": _by_cluster(cluster_P[predicted], own, len(atlas.centre_KxC)),
    }  # fmt: skip
    if unlike is not None:
        held = predicted[~index.seen_P[predicted]]
        result["unlike"] = {
            "reference": unlike.patients, "others": len(held),
            **{name: int(mine[held].sum()) for name, mine in odd.items()},
            "by_column": {name: _shares(values[held], {of: mine[held] for of, mine in odd.items()})
                          for name, values in table_P.items() if name in ("cohort", "diagnosis", "scanner", "site")},
        }  # fmt: skip
    write_whole(out / "atlas.json", json.dumps(plain(result), indent=1, allow_nan=False) + "\n")
    parts = [notices([_VIRTUAL] if store.about["trained_on"] == "virtual" else []),
             f"<p class=note>{html.escape(summary(result))}</p>", *(picture(one) for one in drawn),
             "<h2>Clusters</h2>", table(["cluster", "patients", *next(iter(result["by_cluster"]))["most"]],
                                        [[f"{one['cluster']}", f"{one['patients']:,}", *one["most"].values()]
                                         for one in result["by_cluster"]]),
             "<h2>Agreement of clusters with columns</h2>",
             table(["column", "adjusted Rand index"],
                   [[name, f"{value:.3f}"] for name, value in result["agreement"].items()])]  # fmt: skip
    if unlike is not None:
        parts += ["<h2>Unlike the patients of training</h2>", f"<p class=note>{html.escape(unlike_text(result))}</p>"]
        parts += [table([name, "patients", "tissue unlike", "scanner unlike"],
                        [[value, f"{one['patients']:,}", f"{one['tissue']:.0%}", f"{one['scanner']:.0%}"]
                         for value, one in shares.items()])
                  for name, shares in result["unlike"]["by_column"].items()]  # fmt: skip
    write_whole(out / "atlas.html", whole_page(f"Patients of {store.about['model']}", parts))
    return result


def summary(result: dict[str, Any]) -> str:
    measured = f", and {result['measured']:,} as they were measured," if result["measured"] else ""
    return (f"{result['patients']:,} patients by what the model predicts from their H&E{measured} in a space of "
            f"{result['components']} principal components of log expression; {result['clusters']} clusters (k-means, "
            "their number by the silhouette). Who is near whom holds on a map of t-SNE, how far apart groups lie "
            "does not.")  # fmt: skip


def unlike_text(result: dict[str, Any]) -> str:
    of = result["unlike"]
    return (f"Of {of['others']:,} patients that the model did not see, {of['tissue']:,} have tissue, and "
            f"{of['scanner']:,} an image, that is unlike those of the {of['reference']:,} it was trained on (beyond 99 "
            "and 96 % of them).")  # fmt: skip


def _shares(value_P: np.ndarray, odd: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    return {str(value): {"patients": int((value_P == value).sum()),
                         **{name: float(mine[value_P == value].mean()) for name, mine in odd.items()}}
            for value in sorted(set(value_P.tolist()) - {""})}  # fmt: skip


def _named_axes(index: PatientIndex) -> tuple[str, str]:
    share_C = index.space.deviation_C**2 / (index.space.deviation_C**2).sum()
    return tuple(f"component {c + 1} ({share_C[c]:.0%} of what {len(share_C)} hold)" for c in range(2))


def _by_cluster(cluster_P: np.ndarray, columns: dict[str, np.ndarray], clusters: int) -> list[dict[str, Any]]:
    found = []
    for k in range(clusters):
        mine = cluster_P == k
        most = {}
        for name, values in columns.items():
            known = values[mine & (values != "")]
            if name == "cluster":
                continue
            names, counts = np.unique(known, return_counts=True)
            most[name] = f"{names[counts.argmax()]} ({counts.max() / len(known):.0%})" if len(known) else "–"
        found.append({"cluster": k + 1, "patients": int(mine.sum()), "most": most})
    return found


def _lines(index: PatientIndex, xy_Px2: np.ndarray, columns: dict[str, np.ndarray]) -> str:
    lines = ["\t".join(("patient", "kind", "seen_in_training", "tsne_1", "tsne_2", "component_1", "component_2",
                        *columns))]  # fmt: skip
    for at, (name, kind, seen) in enumerate(zip(index.name_P.tolist(), index.kind_P.tolist(), index.seen_P.tolist(),
                                                strict=True)):  # fmt: skip
        numbers = (f"{value:.5g}" for value in (*xy_Px2[at], *index.place_PxC[at, :2]))
        lines.append("\t".join((name, kind, str(seen).lower(), *numbers, *(of[at] for of in columns.values()))))
    return "\n".join(lines) + "\n"
