"""The kept space: the same answers without computing again, new patients placed and no one moved, damage made good."""

import numpy as np
import pytest
from made_patients import made_row, made_store
from refusals import refused

from tario_jax.evaluate.patients import index as index_module
from tario_jax.evaluate.patients.index import index_of
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.vectors import MEASURED, PREDICTED

GENES = 20
SYMBOLS = tuple(f"GENE{k}" for k in range(GENES))


def rows(numbers, *, measured: bool = False, seen: bool = False, section: str = "core"):
    rng = np.random.default_rng(7)
    along = rng.normal(0, 1, (200, 3)) * [3, 2, 1]
    expression = 6 + along @ rng.normal(0, 1, (3, GENES)) + rng.normal(0, 0.1, (200, GENES))
    found = []
    for number in numbers:
        cohort = ("LUAD", "CRC", "OV")[number % 3]
        values = 1.1 * expression[number] - 2 if measured else expression[number]
        found.append(made_row(f"P{number:03d}", values, cohort=cohort, kind=MEASURED if measured else PREDICTED,
                              section=f"P{number:03d}_{section}", seen=seen))  # fmt: skip
    return found


@pytest.fixture
def store(tmp_path) -> EmbeddingStore:
    made = made_store(tmp_path / "x.embeddings", SYMBOLS, rows(range(40), seen=True))
    made.add(rows(range(0, 40, 2), measured=True))
    return made


def places(index, kind=PREDICTED):
    return {str(index.name_P[at]): index.place_PxC[at] for at in index.of_kind(kind)}


def test_asked_again_nothing_is_read(store, monkeypatch):
    first = index_of(store)
    monkeypatch.setattr(EmbeddingStore, "rows", lambda *_, **__: pytest.fail("rows were read again"))
    again = index_of(store)
    assert again.space.identity == first.space.identity and len(again.name_P) == 60
    np.testing.assert_array_equal(again.place_PxC, first.place_PxC)
    assert again.unusual(1e9) == 1.0 and again.unusual(0.0) == 0.0


def test_new_patients_are_placed_and_no_one_moves(store, monkeypatch):
    before = index_of(store)
    store.add(rows(range(40, 50)))
    read: list = []
    whole = EmbeddingStore.rows
    monkeypatch.setattr(EmbeddingStore, "rows", lambda self, kind, **more: read.append(more["patients"]) or
                        whole(self, kind, **more))  # fmt: skip
    after = index_of(EmbeddingStore(store.folder))
    assert set().union(*read) == {f"P{number:03d}" for number in range(40, 50)}
    old, new = places(before), places(after)
    assert len(new) == 50 and all(np.array_equal(new[name], old[name]) for name in old)
    assert not after.seen_P[after.entry("P045", PREDICTED)] and after.seen_P[after.entry("P005", PREDICTED)]
    fresh = index_of(store, fit_again=True)
    assert fresh.space.identity != after.space.identity
    for one in (after, fresh):
        number, mean_G, deviation_G = one.moments.of("CRC")
        levels = np.stack([one.level_G(at) for at in np.flatnonzero((one.cohort_P == "CRC")
                                                                    & (one.kind_P == PREDICTED))])  # fmt: skip
        assert (number == len(levels)).all() and len(levels) == 17
        np.testing.assert_allclose(mean_G, levels.mean(0), atol=2e-3)
        np.testing.assert_allclose(deviation_G, levels.std(0, ddof=1), rtol=1e-2)


def test_levels_are_expression_less_the_mean_of_its_kind(store):
    index = index_of(store)
    for kind, measured in ((PREDICTED, False), (MEASURED, True)):
        (row,) = rows([8], measured=measured)
        at = index.entry("P008", kind)
        expected = row.expression_G - index.space.mean_KxG[index.space.kinds.index(kind)]
        np.testing.assert_allclose(index.level_G(at), expected, atol=5e-3)
        np.testing.assert_allclose(index.levels(3, np.array([at])), expected[3:4], atol=5e-3)
    assert index.parts_of(index.entry("P008", PREDICTED)) != index.parts_of(index.entry("P008", MEASURED))


def test_a_further_section_of_a_known_patient_counts(store):
    before = index_of(store)
    (row,) = rows([3])
    store.add([row._replace(section="P003_border", expression_G=row.expression_G + 1)])
    after = index_of(store)
    assert not np.array_equal(places(after)["P003"], places(before)["P003"])
    np.testing.assert_allclose(places(after)["P004"], places(before)["P004"], rtol=1e-5)
    assert len(after.name_P) == 60 and (after.moments.number_KxG.sum(0) == 40).all()
    assert len(after.parts_of(after.entry("P003", PREDICTED))) == 2


def test_measured_patients_that_come_later_get_a_place(tmp_path):
    store = made_store(tmp_path / "y.embeddings", SYMBOLS, rows(range(40)))
    before = index_of(store)
    assert before.entry("P004", MEASURED) is None and before.space.kinds == (PREDICTED,)
    store.add(rows(range(20), measured=True))
    after = index_of(store)
    old, new = places(before), places(after)
    assert all(np.array_equal(new[name], old[name]) for name in old)
    own = np.linalg.norm(places(after, MEASURED)["P004"] - new["P004"])
    assert own < min(np.linalg.norm(new["P004"] - new[name]) for name in new if name != "P004")


def test_measured_patients_are_placed_by_pairs_of_training_patients_where_they_suffice(tmp_path, monkeypatch):
    def turned(trained):
        """Held-out patients have been measured by an assay of its own: their pairs would turn the space."""
        pairs = [*rows(range(trained), seen=True), *rows(range(trained), measured=True, seen=True)]
        others = [*rows(range(60, 120)), *(row._replace(expression_G=row.expression_G[::-1])
                                           for row in rows(range(60, 120), measured=True))]  # fmt: skip
        store = made_store(tmp_path / f"{trained}.embeddings", SYMBOLS, [*pairs, *others])
        index = index_of(store, components=4)
        predicted, measured = (places(index, kind) for kind in (PREDICTED, MEASURED))
        gaps = [np.linalg.norm(predicted[f"P{at:03d}"] - measured[f"P{at:03d}"]) for at in range(trained)]
        apart = [np.linalg.norm(of - predicted["P000"]) for name, of in predicted.items() if name != "P000"]
        return np.mean(gaps) / np.mean(apart)

    assert turned(8) < 0.1 < 0.3 < turned(7)
    monkeypatch.setattr(index_module, "REFERENCE", 20)  # of 69 pairs, those of training are taken first
    assert turned(9) < 0.1


def test_a_space_of_few_patients_says_so(tmp_path):
    said: list[str] = []
    store = made_store(tmp_path / "x.embeddings", SYMBOLS, rows(range(6)))
    assert index_of(store, say=said.append).space.reference == 6 and not any("--fit-again" in line for line in said)
    store.add(rows(range(6, 24)))
    for _ in range(2):
        index_of(store, say=said.append)
        assert said[-1] == ("patients: the space was fitted on 6 patients, and 24 are here now; --fit-again fits it to "
                            "24 of them, and moves everyone")  # fmt: skip
    said.clear()
    assert index_of(store, fit_again=True, say=said.append).space.reference == 24
    index_of(store, say=said.append)
    assert not any("--fit-again" in line for line in said)


def test_blocks_do_not_matter(store, monkeypatch):
    whole = index_of(store)
    monkeypatch.setattr(index_module, "_BLOCK", 7)
    parts = index_of(store, fit_again=True)
    assert len(parts.blocks) > len(whole.blocks)
    for name, place in places(whole).items():
        np.testing.assert_allclose(places(parts)[name], place, rtol=1e-5, atol=1e-6 * np.abs(place).max())
        np.testing.assert_array_equal(parts.level_G(parts.entry(name, PREDICTED)),
                                      whole.level_G(whole.entry(name, PREDICTED)))  # fmt: skip


def test_damage_is_made_good_and_few_patients_refused(store, tmp_path):
    first = index_of(store)
    for path in (store.folder / "index" / "patients.npz", store.folder / "index" / "space.npz",
                 next((store.folder / "index").glob("levels-*"))):  # fmt: skip
        path.write_bytes(path.read_bytes()[:100]) if path.suffix == ".npz" else path.unlink()
        again = index_of(store)
        np.testing.assert_array_equal(places(again)["P003"], places(first)["P003"])
    store.add(rows(range(40, 60)))
    (store.folder / "index" / "patients.npz").unlink()
    np.testing.assert_array_equal(places(index_of(store))["P003"], places(first)["P003"])  # the space is the old one
    few = made_store(tmp_path / "few.embeddings", SYMBOLS, rows(range(3)))
    refused(lambda: index_of(few), "3 patients", "at least 5")
