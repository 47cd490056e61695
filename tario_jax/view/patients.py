"""All patients of a folder of embeddings on one map, as the page shows them: places, columns, whose slide is here."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tario_jax.config import InputError
from tario_jax.evaluate.patients.atlas import atlas_of
from tario_jax.evaluate.patients.index import index_of
from tario_jax.evaluate.patients.neighbours import NO_ADVICE, query_of_slide
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.tables import Table, columns_of, usual_columns
from tario_jax.evaluate.patients.vectors import PREDICTED
from tario_jax.view.shown import Shown

SLIDE = "slide"  # kind of a place that is of a slide, and of no patient of the reference
_VIRTUAL = "Virtual patients: this map says nothing about real tumours."


class PatientMap:
    """Computed once, when the page is started."""

    def __init__(self, store: EmbeddingStore, tables: Sequence[Table], columns: Sequence[str],
                 slides: Sequence[Shown], say: Callable[[str], None] = print):  # fmt: skip
        """Slides that are of patients here open at those, one by one; others of the same model are placed among
        them."""
        index = index_of(store, say=say)
        atlas = atlas_of(index, say=say)
        predicted = index.of_kind(PREDICTED)
        names = index.name_P[predicted].tolist()
        cohort_P = index.cohort_P[predicted]
        table = columns_of(tables, tuple(columns) or usual_columns(tables, cohort_P), names, cohort_P=cohort_P)
        place_PxC, self._slides = [index.place_PxC[predicted]], [[] for _ in names]
        at = {name: number for number, name in enumerate(names)}
        self._names, self._kinds = names, ["patient"] * len(names)
        for number, slide in enumerate(slides):
            patient = store.patient_of_maps(slide.store.about)
            if patient in at:
                self._slides[at[patient]].append(number)
                continue
            try:
                query = query_of_slide(store, index, slide.store.folder)
            except InputError as error:
                say(f"{slide.store.folder}: is not on the map of patients: {error}")
                continue
            for line in query.remarks:
                say(line)
            self._names.append(query.name)
            self._kinds.append(SLIDE)
            place_PxC.append(query.place_C[None])
            self._slides.append([number])
        self._xy_Px2 = atlas.placed(np.concatenate(place_PxC))
        cluster = [f"{number + 1}" for number in atlas.cluster(np.concatenate(place_PxC))]
        self._columns = {"cohort": cohort_P.tolist()} | {name: of.tolist() for name, of in table.items()
                                                         if name != "cohort"}  # fmt: skip
        nothing = [""] * (len(self._names) - len(predicted))
        self._columns = {name: [*values, *nothing] for name, values in self._columns.items()}
        self._columns["cluster"] = cluster
        self._virtual = store.about["trained_on"] == "virtual"

    def __len__(self) -> int:
        return len(self._names)

    def described(self) -> dict[str, Any]:
        """Columns as numbers of their values, the most frequent first, -1 where nothing is known; slides: numbers of
        those of each place."""
        columns = []
        for name, values in self._columns.items():
            known, counts = np.unique([value for value in values if value], return_counts=True)
            order = known[np.argsort(-counts, kind="stable")].tolist()
            code = {value: number for number, value in enumerate(order)}
            columns.append({"name": name, "values": order, "codes": [code.get(value, -1) for value in values]})
        return {"names": self._names, "kinds": self._kinds, "slides": self._slides, "columns": columns,
                "note": NO_ADVICE, "banner": _VIRTUAL if self._virtual else ""}  # fmt: skip

    def places(self) -> bytes:
        """x of all on the map, then y: float32 [2, P]."""
        return np.ascontiguousarray(self._xy_Px2.T, "<f4").tobytes()
