"""The page of one patient, or slide, in the frame of a cohort: one file, offline."""

import html
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.evaluate.page import notices, picture, table, whole_page
from tario_jax.evaluate.patients.atlas import atlas_of
from tario_jax.evaluate.patients.frame_job import cohort_text, of_whom, share_text, standing_remarks, unlike_lines
from tario_jax.evaluate.patients.index import PatientIndex
from tario_jax.evaluate.patients.neighbours import Query
from tario_jax.evaluate.patients.patient_figures import draw_map
from tario_jax.evaluate.patients.vectors import PREDICTED
from tario_jax.whole_file import write_whole

_VIRTUAL = "The model learnt from virtual patients: this page tests the software and says nothing about real tumours."


def write_frame(path: Path, index: PatientIndex, query: Query, result: dict[str, Any],
                columns: dict[str, np.ndarray]) -> Path:  # fmt: skip
    """columns: what the map is coloured by, str of each entry of the index."""
    atlas = atlas_of(index)
    predicted = index.of_kind(PREDICTED)
    xy_Px2 = atlas.placed(index.place_PxC[predicted])
    own = atlas.placed(query.place_C[None])[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = draw_map(path.with_suffix(".png"), xy_Px2, {name: values[predicted] for name, values in columns.items()},
                     axes=("t-SNE 1", "t-SNE 2"), marked={query.name: own},
                     caption=f"{query.name} among {len(predicted):,} patients of the reference.")  # fmt: skip
    odd = [line for line in unlike_lines(result) if " is unlike " in line]
    texts = [
        result["note"],
        *([_VIRTUAL] if result["trained_on"] == "virtual" else []),
        *filter(None, [result["banner"], *result["remarks"]]),
        *(f"{line}; what is said here may mean little." for line in odd),
    ]
    heads = list(result["neighbours"][0])
    cohort = cohort_text(result["cohort"]) + ("" if result["cohort_known"] else ", as most of its neighbours")
    parts = [
        notices(texts),
        f"<p class=note>{html.escape(f'Compared with patients of {cohort}.')}{_unusual(result)}</p>",
        "<h2>Nearest patients</h2>",
        table(heads, [[str(value) for value in row.values()] for row in result["neighbours"]]),
        picture(drawn),
    ]  # fmt: skip
    if result["standings"] or result["not_ranked"]:
        parts += ["<h2>Is this unusual?</h2>",
                  table(["", f"above so many {of_whom(result)}", "95 % interval", "deviations", ""],
                        [[one["of"], f"{one['percentile']:.0%}", f"{one['low']:.0%} to {one['high']:.0%}",
                          f"{one['deviations']:+.2f}", "unusual" if one["unusual"] else ""]
                         for one in result["standings"]]),
                  *(f"<p class=note>{html.escape(line)}.</p>" for line in standing_remarks(result))]  # fmt: skip
    if "outcomes" in result:
        parts += [f"<h2>Outcomes of the {result['around']} nearest of the cohort</h2>",
                  table(["column", "value", "share", "p"],
                        [[name, one["value"], share_text(one), f"{one['p']:.2g}"]
                         for name, shares in result["outcomes"].items() for one in shares if one["of"]])]  # fmt: skip
    if "differ" in result:
        parts += _differ(result["differ"])
    if result.get("alike_genes"):
        parts += ["<h2>What makes them alike</h2>",
                  table(["gene", "query, deviations from the cohort", "neighbours", "part of all genes"],
                        [[one["gene"], f"{one['query']:+.2f}", f"{one['neighbours']:+.2f}", f"{one['part']:.1%}"]
                         for one in result["alike_genes"]])]  # fmt: skip
    if result.get("alike_regions"):
        parts.append(table(["region", "at, µm", "of the nearest patient", "at, µm", "distance"],
                           [[one["section"], one["corner_um"], one["other_section"], one["other_corner_um"],
                             f"{one['distance']}"] for one in result["alike_regions"]]))  # fmt: skip
    write_whole(path, whole_page(f"{result['query']} among its neighbours", parts))
    return path


def _unusual(result: dict[str, Any]) -> str:
    if result["unusual"] is None:
        return ""
    return (f" {result['unusual']:.0%} of the patients of the reference are nearer to their own nearest than this one "
            "is to its: near 100 % it is like none of them.")  # fmt: skip


def _differ(differ: dict[str, Any]) -> list[str]:
    head = (f"<h2>How patients with {html.escape(differ['column'])} {html.escape(differ['value'])} differ</h2><p "
            f"class=note>{differ['with']} with and {differ['without']} without, among the nearest of the cohort. In "
            "standard deviations of the cohort; the query stands at 0 with those without, at 1 with those with. A "
            "difference between groups, not what will happen to this patient.</p>")  # fmt: skip
    if "genes" not in differ:
        return [head, "<p>Too few to compare.</p>"]
    rows = [[one["name"], f"{one['difference']:+.2f}", f"{one['low']:+.2f} to {one['high']:+.2f}",
             f"{one['false_discovery_rate']:.2g}", f"{one['query']:+.2f}"]
            for kind in ("signatures", "genes") for one in differ.get(kind, ())]  # fmt: skip
    return [head, table(["", "difference", "95 % interval", "false discovery rate", "the query"], rows)]
