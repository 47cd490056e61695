"""The map: groups stay together, a patient who comes later lands by its like and moves no one, and the job's files."""

import importlib.util
import json

import numpy as np
import pytest
from made_patients import made_row, made_store
from refusals import refused

from tario_jax.cli.main import main
from tario_jax.config import InputError
from tario_jax.corpus.read import Corpus
from tario_jax.evaluate.patients.atlas import _clusters, atlas_of
from tario_jax.evaluate.patients.index import index_of
from tario_jax.evaluate.patients.vectors import MEASURED, PREDICTED

GENES, COHORTS = 20, ("LUAD", "CRC", "OV")
SYMBOLS = tuple(f"GENE{k}" for k in range(GENES))


def rows(numbers, kind=PREDICTED):
    rng = np.random.default_rng(0)
    middle = rng.normal(0, 2, (3, GENES))
    noise = rng.normal(0, 0.4, (200, GENES))
    return [made_row(f"P{at:03d}", 6 + middle[at % 3] + noise[at], cohort=COHORTS[at % 3], kind=kind)
            for at in numbers]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = made_store(tmp_path_factory.mktemp("mapped") / "x.embeddings", SYMBOLS, rows(range(90)))
    made.add(rows(range(0, 90, 3), MEASURED))
    return made


@pytest.fixture(scope="module")
def atlas(store):
    return atlas_of(index_of(store))


def test_groups_stay_together_on_the_map_and_as_clusters(store, atlas):
    index = index_of(store)
    cohort = index.cohort_P[index.of_kind(PREDICTED)]
    xy = atlas.placed(index.place_PxC[index.of_kind(PREDICTED)])
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2) + np.diag(np.full(90, np.inf))
    near = np.argsort(distance, 1)[:, :5]
    assert (cohort[near] == cohort[:, None]).mean() > 0.98
    clusters = atlas.cluster(index.place_PxC[index.of_kind(PREDICTED)])
    assert len(atlas.centre_KxC) == 3 and all(len(set(clusters[cohort == name])) == 1 for name in COHORTS)


def test_who_comes_later_lands_by_its_like_and_no_one_moves(store, atlas, tmp_path):
    index = index_of(store)
    place = index.place_PxC[index.entry("P010", PREDICTED)][None]
    alone, among = atlas.placed(place), atlas.placed(np.concatenate([index.place_PxC[:5], place]))
    np.testing.assert_allclose(alone[0], among[-1], atol=0.05 * np.abs(atlas.xy_Rx2).max())
    at = int(np.flatnonzero((atlas.reference_RxC == place).all(1))[0])
    spread = np.linalg.norm(atlas.xy_Rx2 - atlas.xy_Rx2.mean(0), axis=1).mean()
    assert np.linalg.norm(alone[0] - atlas.xy_Rx2[at]) < 0.3 * spread
    grown = made_store(tmp_path / "g.embeddings", SYMBOLS, rows(range(90)))
    first = atlas_of(index_of(grown))
    grown.add(rows(range(90, 96)))
    again = atlas_of(index_of(grown))
    np.testing.assert_array_equal(first.xy_Rx2, again.xy_Rx2)
    assert not np.array_equal(atlas_of(index_of(grown, fit_again=True)).xy_Rx2.shape, first.xy_Rx2.shape)


def test_the_same_patients_give_the_same_map(store, atlas):
    np.testing.assert_array_equal(atlas_of(index_of(store), fit_again=True).xy_Rx2, atlas.xy_Rx2)


def test_the_job_writes_a_page_tables_and_figures(store, tmp_path, monkeypatch, capsys):
    table = tuple({"patient": f"P{at:03d}", "cohort": COHORTS[at % 3], "EGFR": ("true", "false", "")[at // 30]}
                  for at in range(90))  # fmt: skip
    monkeypatch.setattr(Corpus, "open", lambda place: Corpus(store.folder, store.panel, "virtual", "", table, ()))
    out = tmp_path / "atlas"
    assert main(["atlas", str(store.folder), "--corpus=x", f"--out={out}"]) == 0
    told = json.loads((out / "atlas.json").read_text())
    assert told["clusters"] == 3 and told["agreement"]["cohort"] == pytest.approx(1.0) and abs(
        told["agreement"]["EGFR"]) < 0.1  # fmt: skip
    assert (told["patients"], told["measured"]) == (90, 30) and "cohort" in capsys.readouterr().out
    lines = [line.split("\t") for line in (out / "patients.tsv").read_text().splitlines()]
    assert lines[0][:2] == ["patient", "kind"] and len(lines) == 121
    assert {line[0]: line[lines[0].index("EGFR")] for line in lines[1:]}["P031"] == "false"
    assert "data:image/png" in (out / "atlas.html").read_text()
    assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in ("tsne.png", "pca.png"))
    assert main(["atlas", str(store.folder), "--corpus=x", "--columns=q", f"--out={out}"]) == 2
    assert "column 'q'" in capsys.readouterr().err


def test_what_is_not_installed_is_named(store, tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openTSNE" else found(name))
    for words in (["atlas", f"--out={tmp_path}"], ["neighbours", "--patient=P001"],
                  ["probe", "--corpus=x", "--columns=cohort"]):  # fmt: skip
        assert main([words[0], str(store.folder), *words[1:]]) == 2
        assert capsys.readouterr().err == "tario: openTSNE is not installed; pip install 'tario-jax[eval]'\n"


def test_few_patients_make_no_map(tmp_path):
    few = made_store(tmp_path / "few.embeddings", SYMBOLS, rows(range(7)))
    refused(lambda: atlas_of(index_of(few)), "7 patients", "at least 10")


def test_patients_who_all_lie_at_one_place_are_refused_in_a_line():
    with pytest.raises(InputError, match="12 lie at fewer than 2 places") as caught:
        _clusters(np.tile(np.arange(5.0), (12, 1)))
    assert "\n" not in str(caught.value)
