"""Probes: what is there is found, what is not is not, a confounder is named, and training patients are refused."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from made_patients import made_row, made_store
from refusals import refused
from sklearn.linear_model import LogisticRegression

from tario_jax.cli.main import main
from tario_jax.config import InputError
from tario_jax.corpus.read import Corpus
from tario_jax.evaluate.patients import probe
from tario_jax.evaluate.patients.auroc import macro_auroc
from tario_jax.evaluate.patients.looks import texture_names
from tario_jax.evaluate.patients.outcomes import (
    LOOKS,
    VECTORS,
    Setting,
    decoded,
    interval_text,
    lead_text,
    line_text,
    null_text,
    outcome_of,
)
from tario_jax.evaluate.patients.probe import Prepared, folds_of
from tario_jax.evaluate.patients.probe_job import Asked, probe_job, table_of
from tario_jax.evaluate.tables import plain

SETTING = Setting(folds=4, repeats=2, shuffles=8, bootstraps=100)
NO_NULL = dataclasses.replace(SETTING, shuffles=0)
PATIENTS, GENES = 240, 12


@pytest.fixture(scope="module", autouse=True)
def few_penalties():
    """Every third strength of the penalty: each is a fit for every fold, and nothing here asks how fine they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "PENALTIES", probe.PENALTIES[::3])
        yield


def labelled(seed: int = 0):
    """A mutation that three features follow, with the site that draws patients of it, and one that nothing follows."""
    rng = np.random.default_rng(seed)
    mutated = rng.random(PATIENTS) < 0.4
    site = np.where(rng.random(PATIENTS) < np.where(mutated, 0.75, 0.25), "a", "b")
    features = rng.normal(0, 1, (PATIENTS, 20))
    features[:, :3] += 0.7 * mutated[:, None]
    return features, np.where(mutated, "true", "false"), site, np.where(rng.random(PATIENTS) < 0.4, "true", "false")


@pytest.fixture(scope="module")
def found():
    features, mutated, site, idle = labelled()
    stain = np.random.default_rng(3).normal(0, 1, (PATIENTS, 6))
    stain[:, 0] += 2.0 * (site == "a")
    sets, groups = {VECTORS: features, LOOKS: stain}, {"site": site}
    return {name: decoded(outcome_of(name, values, SETTING), sets, groups, SETTING, reachable_PxF=features[:, :3])
            for name, values in (("EGFR", mutated), ("idle", idle))}  # fmt: skip


def test_what_is_there_is_found_and_what_is_not_is_not(found):
    there, idle = found["EGFR"], found["idle"]
    assert there["auroc"][VECTORS]["low"] > 0.6 and there["null"]["p"] <= 1 / 9 + 1e-9
    assert idle["auroc"][VECTORS]["low"] <= 0.5 <= idle["auroc"][VECTORS]["high"]
    for one in found.values():
        assert abs(one["null"]["mean"] - 0.5) <= 3.5 * one["null"]["deviation"] / np.sqrt(8)
    # three features of one deviation each, 0.7 apart: AUROC is that of a gap of 0.7 * sqrt(3)
    assert there["auroc"]["reachable"]["value"] == pytest.approx(0.80, abs=0.06)
    assert 0.5 < there["way"]["of all patients"]["value"] <= 1.1


def test_where_a_site_tells_pairs_of_one_site_lead(found):
    there = found["EGFR"]
    assert there["auroc"]["site alone"]["low"] > 0.6
    assert there["lead"]["how"] == "within site" and there["lead"]["confounded"] == ["site"]
    assert there["lead"]["value"] == there["within"]["site"][VECTORS]["value"]
    assert there["within"]["site"][LOOKS]["low"] < 0.5 < there["within"]["site"][LOOKS]["high"]  # the site's stain
    assert there["auroc"][LOOKS]["low"] > 0.55
    assert there["beside_confounders"]["low"] > 0 and there["above"]["site alone"]["value"] == pytest.approx(
        there["auroc"][VECTORS]["value"] - there["auroc"]["site alone"]["value"])  # fmt: skip
    assert found["idle"]["lead"]["how"] == "of all patients"


def test_what_is_known_does_not_decide_what_is_reported():
    features, mutated, site, _ = labelled()
    sets = {VECTORS: features, LOOKS: features[:, 10:]}
    one = decoded(outcome_of("EGFR", mutated, SETTING), sets, {"site": site}, NO_NULL, known=("site",))
    assert one["auroc"]["site alone"]["low"] > 0.6 and one["lead"]["how"] == "of all patients"
    assert one["lead"]["value"] == one["auroc"][VECTORS]["value"] != one["within"]["site"][VECTORS]["value"]


def test_figures_are_means_over_partitions():
    features, mutated, _, _ = labelled()
    sets = {VECTORS: features, LOOKS: features}
    outcome = outcome_of("EGFR", mutated, SETTING)
    both = decoded(outcome, sets, {}, NO_NULL)["auroc"][VECTORS]["value"]
    found = []
    for seed in (0, 1000):
        folds = folds_of(outcome.label_n, 4, 3, seed)
        told = Prepared(features, folds, 0).told(outcome.label_n, 2)
        found.append(macro_auroc(outcome.label_n, told.evidence_PxK)[0])
    assert both == pytest.approx(np.mean(found)) and found[0] != found[1]


def test_no_one_is_told_by_a_probe_that_saw_them():
    """Labels that are a function of the patient's number alone are not told."""
    rng = np.random.default_rng(5)
    label = rng.integers(0, 2, 120)
    folds = folds_of(label, 5, 3, 0)
    assert sorted(np.concatenate([fold.test for fold in folds.folds_L]).tolist()) == list(range(120))
    for fold in folds.folds_L:
        assert not set(fold.train) & set(fold.test)
        assert all(not set(some) & set(others) and len(some) + len(others) == len(fold.train)
                   for some, others in fold.inner)  # fmt: skip
    features = rng.normal(0, 1, (120, 200))  # more features than patients: each probe fits its own perfectly
    told = Prepared(features, folds, 0).told(label, 2)
    assert 0.3 < np.mean(told.log_PxK.argmax(1) == label) < 0.7
    np.testing.assert_allclose(np.exp(told.log_PxK).sum(1), 1, atol=1e-6)


def test_a_probe_is_logistic_regression_of_principal_components(monkeypatch):
    monkeypatch.setattr("tario_jax.evaluate.patients.probe.COMPONENTS", 3)
    monkeypatch.setattr("tario_jax.evaluate.patients.probe.PENALTIES", (0.5,))
    features, mutated, _, _ = labelled(1)
    features, label = features[:, :6], (mutated == "true").astype(int)  # the first component is the mutation's
    folds = folds_of(label, 3, 2, 0)
    told = Prepared(features, folds, 0).told(label, 2)
    train, test, _ = folds.folds_L[1]
    scaled = (features - features[train].mean(0)) / features[train].std(0)
    _, _, right = np.linalg.svd(scaled[train], full_matrices=False)
    place = scaled @ right[:3].T
    place /= np.sqrt((place[train] ** 2).mean())
    expected = LogisticRegression(C=0.5, tol=1e-8).fit(place[train], label[train]).predict_log_proba(place[test])
    np.testing.assert_allclose(told.log_PxK[test], expected, atol=2e-3)
    share = np.log(np.bincount(label[train]) / len(train))
    np.testing.assert_allclose(told.evidence_PxK[test], told.log_PxK[test] - share)


def test_few_patients_of_a_class_make_fewer_inner_folds():
    label = np.array([0] * 20 + [1] * 4)
    folds = folds_of(label, 2, 3, 0)
    assert all(len(fold.inner) == 2 and set(label[fold.train[others]]) == {0, 1}
               for fold in folds.folds_L for _, others in fold.inner)  # fmt: skip
    assert np.isfinite(Prepared(np.random.default_rng(0).normal(0, 1, (24, 3)), folds, 0).told(label, 2).log_PxK).all()
    assert len(folds_of(label, 4, 3, 0).folds_L[0].inner) == 3
    refused(lambda: folds_of(label[:22], 2, 3, 0), "a class of 2 patients in 2 folds", "at least two to train on")
    refused(lambda: folds_of(label, 5, 3, 0), "a class of 4 patients in 5 folds")


def test_who_knows_nothing_tells_the_shares():
    """A line through noise orders other patients worse than chance, if it is a line at all costs."""
    rng = np.random.default_rng(2)
    label = (rng.random(300) < 0.4).astype(int)
    folds = folds_of(label, 5, 3, 0)
    evidence = [Prepared(rng.normal(0, 1, (300, 20)), folds, 0).told(label, 2).evidence_PxK for _ in range(6)]
    silent = np.mean([[not of[fold.test].any() for fold in folds.folds_L] for of in evidence])
    assert silent >= 0.8, silent  # half of them without the margin of a standard error
    spread = [macro_auroc(label, of)[0] - 0.5 for of in evidence]
    assert np.mean(np.abs(spread)) < 0.02, spread
    nothing = Prepared(np.zeros((300, 2)), folds, 0).told(label, 2)
    assert not nothing.evidence_PxK.any()
    values = np.where(label == 1, "yes", "no")
    told = decoded(outcome_of("x", values, SETTING), {VECTORS: np.zeros((300, 2)), LOOKS: np.zeros((300, 2))}, {},
                   SETTING)  # fmt: skip
    assert told["auroc"][VECTORS] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert np.isnan(told["calibration"]["slope"]) and line_text(told["calibration"]["slope"]) == "–"


def test_pairs_of_patients_whose_group_is_not_known_do_not_count():
    """Patients without a site are told better than others: their pairs are not those of one site."""
    features, mutated, site, _ = labelled()
    hidden = np.where(np.arange(PATIENTS) < 80, "", site)
    odd = features.copy()
    odd[:80, 0] += 3.0 * (mutated[:80] == "true")
    sets = {VECTORS: odd, LOOKS: features[:, 10:]}
    one = decoded(outcome_of("EGFR", mutated, SETTING), sets, {"site": hidden}, NO_NULL)
    alike = decoded(outcome_of("EGFR", mutated, SETTING), sets, {"site": np.where(hidden == "", "c", hidden)}, NO_NULL)
    assert one["lead"]["how"] == alike["lead"]["how"] == "within site"
    assert one["lead"]["value"] < alike["lead"]["value"] - 0.02


def test_a_null_is_of_the_pairs_that_are_reported(found):
    """The site tells labels that are dealt within folds nothing, so both lie about 0.5; p is of the lead's pairs."""
    features, mutated, site, _ = labelled()
    features = features[:, 3:] + 1.5 * (site == "a")[:, None]  # the site and nothing else
    one = decoded(outcome_of("EGFR", mutated, SETTING), {VECTORS: features, LOOKS: features}, {"site": site}, SETTING)
    assert one["auroc"][VECTORS]["low"] > 0.6 and one["lead"]["how"] == "within site"
    assert one["null"]["p"] > 0.2  # of all patients it would be 1 / 9
    # the site's share of what is told stays: probes of dealt labels tell as surely as the real one
    assert one["null"]["deviation"] > 0.01 and one["lead"]["patients"] == PATIENTS


def test_where_no_two_patients_of_a_site_differ_nothing_is_reported():
    features, mutated, _, _ = labelled()
    site = np.where(mutated == "true", "a", "b")
    one = decoded(outcome_of("EGFR", mutated, SETTING), {VECTORS: features, LOOKS: features}, {"site": site}, SETTING)
    assert np.isnan(one["lead"]["value"]) and np.isnan(one["null"]["p"]) and one["lead"]["patients"] == 0
    assert interval_text(one["lead"]) == "–" and lead_text(one) == "within site, 0 patients"
    again = json.loads(json.dumps(plain({"outcomes": [one], "confounders": ["site"]}), allow_nan=False))
    assert "within site, 0 patients" in table_of(again) and null_text(again["outcomes"][0]["null"]) == "– ± –"


def test_a_site_that_is_hardly_known_is_no_confounder():
    """Whether it is known goes with the mutation; what it is, of those of whom it is known, does not."""
    features, mutated, _, _ = labelled()
    rng = np.random.default_rng(4)
    site = np.where((mutated == "true") & (rng.random(PATIENTS) < 0.8), rng.choice(["a", "b"], PATIENTS), "")
    site[:40] = rng.choice(["a", "b"], 40)
    one = decoded(outcome_of("EGFR", mutated, SETTING), {VECTORS: features, LOOKS: features}, {"site": site}, NO_NULL)
    assert one["auroc"]["site alone"]["low"] > 0.6 and one["lead"]["how"] == "of all patients"


def test_differences_are_of_the_partitions_that_both_tell_in():
    features, mutated, _, _ = labelled()
    outcome, sets = outcome_of("EGFR", mutated, SETTING), {VECTORS: features, LOOKS: features[:, 10:]}
    same = {"again": lambda folds: Prepared(features, folds, 0).told(outcome.label_n, 2)}
    one = decoded(outcome, sets, {}, NO_NULL, further=same)
    assert one["auroc"]["again"]["value"] != one["auroc"][VECTORS]["value"]  # one partition beside two
    assert one["above"]["again"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_calibration_is_measured():
    """Features that tell the log odds themselves: slope 1, and half as much is told as twice the features say."""
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 1.5, 1500)
    was = rng.random(1500) < 1 / (1 + np.exp(-odds))
    told = decoded(outcome_of("x", np.where(was, "yes", "no"), SETTING), {VECTORS: odds[:, None], LOOKS: odds[:, None]},
                   {}, Setting(folds=4, repeats=1, shuffles=0, bootstraps=10))  # fmt: skip
    of = told["calibration"]
    assert of["slope"] == pytest.approx(1.0, abs=0.12) and abs(of["intercept"]) < 0.15 and of["error"] < 0.04
    assert of["brier"] < 0.85 * of["brier_of_shares"] and told["null"] is None
    assert list(told["classes"]) == ["no", "yes"]


def test_small_classes_are_left_out_and_named():
    values = np.array(["a"] * 20 + ["b"] * 20 + ["c"] * 3 + [""] * 5 + ["unknown"])
    found = outcome_of("grade", values, SETTING)
    assert found.classes == ("a", "b") and found.left_out == {"": 6, "c": 3} and len(found.index_n) == 40
    refused(lambda: outcome_of("grade", values[:25], SETTING), "grade", "two classes of at least 8", "a: 20, b: 5")
    assert outcome_of("x", np.array(["true"] * 10 + ["false"] * 10), SETTING).classes == ("false", "true")


@pytest.fixture(scope="module")
def store_and_corpus(tmp_path_factory, tiny_corpus):
    rng = np.random.default_rng(0)
    rows = [made_row(patient, rng.normal(5, 1, GENES), seen=patient in "AB", log_expression=rng.normal(0, 1, GENES))
            for patient in "ABCDEF"]  # fmt: skip
    folder = tmp_path_factory.mktemp("probed") / "x.embeddings"
    return made_store(folder, tuple(f"GENE{k}" for k in range(GENES)), rows), tiny_corpus


def test_training_patients_are_left_out_and_alone_refused(store_and_corpus):
    store, corpus = store_and_corpus
    said: list[str] = []
    with pytest.raises(InputError, match="two classes"):  # of the four that are left
        probe_job(store, corpus, Asked(("cohort",), confounders=(), known=()), SETTING, said.append)
    assert said == ["probe: 2 patients that the model saw in training are left out"]
    trained = Corpus(corpus.root, corpus.panel, corpus.kind, corpus.seal,
                     tuple(row for row in corpus.patients if row["patient"] in "AB"), corpus.sections)  # fmt: skip
    refused(lambda: probe_job(store, trained, Asked(("cohort",), confounders=(), known=()), SETTING, str),
            "saw all 2 of these patients in training", "--allow-seen")  # fmt: skip
    with pytest.raises(InputError, match="two classes"):
        probe_job(store, trained, Asked(("cohort",), confounders=(), known=(), allow_seen=True), SETTING, said.append)
    assert "no figure here holds for new patients" in said[-1]


def test_mistakes_are_one_line(store_and_corpus, capsys):
    store, corpus = store_and_corpus
    start = ["probe", str(store.folder), f"--corpus={corpus.root}"]
    for words, answer in ((["--columns=nothing"], "column 'nothing'"), (["--columns=cohort", "--folds=1"], "2 folds"),
                          (["--columns=cohort", "--vectors=x", "--confounders=", "--known="], "--vectors=x"),
                          (["--columns=cohort", "--cohorts=Q", "--confounders="], "--cohorts=Q"),
                          (["--columns=cohort", "--fine-tune-steps=3"], "go with --fine-tune=WORKDIR"),
                          (["--columns=cohort", "--allow-virtual-model"], "go with --fine-tune=WORKDIR"),
                          (["--columns=cohort", "--pairs=A"], "KRAS+STK11")):  # fmt: skip
        with pytest.raises(SystemExit) if "--pairs=A" in words else contextlib.nullcontext():
            assert main([*start, *words]) == 2
        told = capsys.readouterr().err
        assert answer in told and told.count("\n") == 1, told


def test_what_can_be_probed_is_and_the_rest_is_named(tmp_path, monkeypatch, capsys):
    """Two folds, a column of too few patients, one of two other words, one of three, and patients without a look."""
    rng = np.random.default_rng(0)
    mutated = np.arange(40) % 2
    rows = [made_row(f"P{at:02d}", 5 + of, log_expression=of, texture=look * np.ones(len(texture_names())))
            for at, (of, look) in enumerate(zip(rng.normal(0, 1, (40, GENES)) + mutated[:, None],
                                                [*rng.normal(0, 1, 38), np.nan, np.nan], strict=True))]  # fmt: skip
    store = made_store(tmp_path / "x.embeddings", tuple(f"GENE{k}" for k in range(GENES)), rows)
    patients = tuple({"patient": f"P{at:02d}", "EGFR": ("wt", "mut", "NA")[2 if at > 30 else at % 2],
                      "KRAS": ("no", "yes")[at % 4 // 2], "stage": "abc"[at % 3],
                      "rare": ("no", "yes")[at < 3]} for at in range(40))  # fmt: skip
    corpus = Corpus(store.folder, store.panel, "real", "", patients, ())
    monkeypatch.setattr(Corpus, "open", lambda place: corpus)
    start = ["probe", str(store.folder), "--corpus=x", "--confounders=", "--folds=2", "--repeats=1", "--shuffles=2",
             "--bootstraps=20", f"--json={tmp_path / 'x.json'}"]  # fmt: skip
    assert main([*start, "--columns=EGFR,rare,KRAS,stage", "--pairs=KRAS+rare", f"--out={tmp_path / 'out'}"]) == 0
    out, told = capsys.readouterr().out, json.loads((tmp_path / "x.json").read_text())
    assert "too small to tell stain and texture of: P38, P39" in out and told["patients"] == 38
    assert "left out: column 'rare': a probe needs two classes of at least 4" in out
    assert [one["column"] for one in told["outcomes"]] == ["EGFR", "KRAS", "stage"]
    assert list(told["too_few"]) == ["rare"]
    assert "KRAS with rare: too few patients to compare." in out  # without a page too
    structure = told["structure"]
    assert structure["mutations"] == ["EGFR wt", "KRAS"] and structure["not_of_two"] == ["stage"]
    assert structure["co_occurrence"][0]["patients"] == 31  # of whom both are known
    page = (tmp_path / "out/probe.html").read_text()
    assert "column &#x27;rare&#x27;" in page and "of more than two classes: stage" in page
    assert main([*start, "--columns=rare"]) == 2
    assert "column 'rare'" in (told := capsys.readouterr().err) and told.count("\n") == 1


def test_a_report_holds_all_of_it(tmp_path, tmp_path_factory, monkeypatch, capsys):
    """Through the command: pages, tables and figures; the figures of the table are those of the JSON."""
    features, mutated, site, idle = labelled()
    rows = [made_row(f"P{at:03d}", 5 + 0.1 * of[:GENES], log_expression=of[:GENES], state=of[GENES:20])
            for at, of in enumerate(features)]  # fmt: skip
    store = made_store(tmp_path / "x.embeddings", tuple(f"GENE{k}" for k in range(GENES)), rows)
    patients = tuple({"patient": f"P{at:03d}", "cohort": "LUAD", "site": site[at], "EGFR": mutated[at],
                      "KRAS": idle[at]} for at in range(PATIENTS))  # fmt: skip
    corpus = Corpus(store.folder, store.panel, "virtual", "", patients, ())
    monkeypatch.setattr(Corpus, "open", lambda place: corpus)
    out = tmp_path / "probe"
    assert main(["probe", str(store.folder), "--corpus=x", "--columns=EGFR,KRAS", "--folds=3", "--shuffles=3",
                 "--bootstraps=50", "--pairs=EGFR+KRAS", f"--out={out}"]) == 0  # fmt: skip
    text = capsys.readouterr().out
    told = json.loads((out / "probe.json").read_text())
    egfr = told["outcomes"][0]
    assert f"{egfr['lead']['value']:.3f}" in text and "within site" in text and "\nEGFR with KRAS (" in text
    page = (out / "probe.html").read_text()
    assert "Virtual patients" in page and "data:image/png" in page and f"{egfr['lead']['value']:.3f}" in page
    for name in ("aurocs.png", "calibration.png", "structure.png"):
        assert (out / name).read_bytes()[:4] == b"\x89PNG"
    lines = (out / "told.tsv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 2 * PATIENTS
    assert told["structure"]["mutations"] == ["EGFR", "KRAS"] and told["structure"]["two_against_one"][0]["found"]
