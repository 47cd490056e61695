"""Who is unlike the training patients: distances by hand, unseen classes found, and few others with them."""

import dataclasses
import json

import numpy as np
import pytest
from made_patients import made_row, made_store
from refusals import refused
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from tario_jax.cli.main import main
from tario_jax.corpus.read import Corpus
from tario_jax.evaluate.patients.index import index_of
from tario_jax.evaluate.patients.unlike import described, unlike_of

RNG = np.random.default_rng(0)
MEANS = {"a": np.array([0, 0, 0, 0.0]), "b": np.array([6, 0, 0, 0.0]), "c": np.array([0, 6, 0, 0.0])}


def drawn(number: int, mean, rng) -> np.ndarray:
    mix = np.array([[1, 0.5, 0, 0], [0, 1, 0.5, 0], [0, 0, 1, 0], [0, 0, 0, 0.2]])
    return rng.normal(0, 1, (number, 4)) @ mix + mean


@pytest.fixture(scope="module")
def reference():
    features = np.concatenate([drawn(100, mean, RNG) for mean in MEANS.values()])
    return features, np.repeat(list(MEANS), 100), described(features, np.repeat(list(MEANS), 100), within=0.975)


def test_distances_are_those_of_mahalanobis_to_the_nearest_class(reference):
    features, names, found = reference
    means = {name: features[names == name].mean(0) for name in MEANS}
    within = np.concatenate([features[names == name] - mean for name, mean in means.items()])
    scale = within.std(0)
    inverse = np.linalg.inv(LedoitWolf(assume_centered=True).fit(within / scale).covariance_)
    expected = [min(mahalanobis(one / scale, mean / scale, inverse) for mean in means.values())
                for one in features[::37]]  # fmt: skip
    np.testing.assert_allclose(found.distance(features[::37]), expected, rtol=1e-6)
    assert np.mean(np.array(found.nearest(features)) == names) > 0.97


def test_an_unseen_class_is_found_and_few_others(reference):
    *_, found = reference
    rng = np.random.default_rng(7)
    new = np.concatenate([drawn(200, mean, rng) for mean in MEANS.values()])
    assert found.unlike(new).mean() < 0.06
    assert found.unlike(drawn(100, [6, 6, 0, 0], rng)).mean() > 0.8  # between the classes that are known
    assert found.unlike(drawn(100, [0, 0, 0, 2.0], rng)).mean() > 0.9  # along what hardly varies within them


def test_rare_classes_and_few_patients():
    features = np.concatenate([drawn(60, MEANS["a"], RNG), drawn(2, MEANS["b"], RNG)])
    assert described(features, np.array(["a"] * 60 + ["b"] * 2), within=0.9).class_K.tolist() == ["a"]
    assert described(features, np.array([f"{at}" for at in range(62)]), within=0.9).class_K.tolist() == [""]
    refused(lambda: described(features[:30], np.array(["a"] * 30), within=0.9), "30 patients", "at least 40")


def test_a_patient_of_an_unseen_kind_is_said_to_be_unlike(tmp_path, monkeypatch, capsys):
    """Through the commands: the map's page counts them, and neighbours say it of one."""
    symbols = tuple(f"GENE{at}" for at in range(12))
    rng = np.random.default_rng(3)
    rows = []
    for at in range(120):
        expression = 6 + rng.normal(0, 0.3, 12) + 2 * (at % 2) * (np.arange(12) < 4)
        look = rng.normal(0, 1, 7)
        if at in (110, 111):
            expression[8:] += 3  # tissue that no one had
        if at == 112:
            look[0] += 9  # a scanner that no one had
        rows.append(made_row(f"P{at:03d}", expression, cohort=("LUAD", "OV")[at % 2], seen=at < 100, acquisition=look))
    store = made_store(tmp_path / "x.embeddings", symbols, rows)
    table = tuple({"patient": row.patient, "cohort": row.cohort, "scanner": "new" if row.patient == "P112" else "old"}
                  for row in rows)  # fmt: skip
    monkeypatch.setattr(Corpus, "open", lambda place: Corpus(store.folder, store.panel, "virtual", "", table, ()))
    assert main(["atlas", str(store.folder), "--corpus=x", "--columns=scanner", f"--out={tmp_path / 'a'}"]) == 0
    told = json.loads((tmp_path / "a" / "atlas.json").read_text())["unlike"]
    assert (told["reference"], told["others"], told["tissue"]) == (100, 20, 2) and told["scanner"] <= 3
    assert told["by_column"]["scanner"]["new"]["scanner"] == 1.0
    assert "2 have tissue" in capsys.readouterr().out and "unlike training" in (tmp_path / "a/patients.tsv").read_text()
    for patient, tissue, scanner in (("P110", True, False), ("P112", False, True), ("P105", False, False)):
        assert main(["neighbours", str(store.folder), f"--patient={patient}", f"--json={tmp_path / 'n.json'}"]) == 0
        found = json.loads((tmp_path / "n.json").read_text())["unlike"]
        assert (found["tissue"]["unlike"], found["scanner"]["unlike"]) == (tissue, scanner)
        assert ("its tissue is unlike those of the 100 patients" in capsys.readouterr().out) == tissue
    before = unlike_of(index_of(store), store)
    assert unlike_of(index_of(store), store).of == before.of  # kept
    moved = dataclasses.replace(index_of(store), place_PxC=2 * index_of(store).place_PxC)
    assert np.abs(unlike_of(moved, store).tissue.mean_KxF - 2 * before.tissue.mean_KxF).max() < 1e-5
    no_look = rows[0]._replace(um_per_px=float("nan"), acquisition_A=np.full(7, np.nan, np.float32))
    tiny = made_store(tmp_path / "tiny.embeddings", symbols, [no_look, *rows[1:]])  # an H&E too small to be looked at
    assert unlike_of(index_of(tiny), tiny).um_per_px == before.um_per_px == 0.5
    small = [row._replace(acquisition_A=no_look.acquisition_A) for row in rows[:70]]
    blind = made_store(tmp_path / "blind.embeddings", symbols, [*small, *rows[70:]])  # 30 of 100 have a look
    assert unlike_of(index_of(blind), blind) is None
    few = made_store(tmp_path / "few.embeddings", symbols, rows[80:])
    assert unlike_of(index_of(few), few) is None
    assert main(["neighbours", str(few.folder), "--patient=P110"]) == 0
    assert "is not known here: they are not embedded" in capsys.readouterr().out
