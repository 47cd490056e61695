"""Fine-tuning on an outcome: gradients that are right, folds that see nothing of each other, and an outcome learnt."""

import copy
import dataclasses
import types

import jax
import numpy as np
import pytest
from refusals import refused

from tario_jax.evaluate.patients import outcome_tuning
from tario_jax.evaluate.patients.outcome_tuning import Tuner, Tuning, Windows
from tario_jax.evaluate.patients.outcomes import Setting
from tario_jax.evaluate.patients.probe import Fold, Folds
from tario_jax.evaluate.patients.probe_job import Asked, probe_job
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.model.model import Tario

PATIENTS = tuple("ABCDEF")


@pytest.fixture(scope="module")
def windows(predictor, tiny_corpus) -> Windows:
    return Windows(predictor, tiny_corpus, PATIENTS)


def folds() -> Folds:
    halves = np.array([0, 2, 4]), np.array([1, 3, 5])
    return Folds(tuple(Fold(np.sort(train), test, ()) for train, test in (halves, halves[::-1])))


def test_states_are_means_over_the_bins_that_embeddings_take_for_tissue(windows, predictor, tiny_corpus, tmp_path,
                                                                        monkeypatch):  # fmt: skip
    """By what is predicted of the whole section; windows of glass alone are none."""
    every = Tuner(windows, Tuning(), tmp_path).states(predictor.parameters, [2, 0])
    monkeypatch.setattr(outcome_tuning, "holds_tissue", lambda total_N: total_N > np.quantile(total_N, 0.7))
    some = Windows(predictor, tiny_corpus, PATIENTS)
    found = Tuner(some, Tuning(), tmp_path).states(predictor.parameters, [2, 0])
    kept = []
    for row, patient in enumerate((2, 0)):
        section = next(one for one in tiny_corpus.sections if one.patient == PATIENTS[patient])
        cover = predictor.cover(section, tissue="virtual", bin_um=None, overlap=0.0, turned=True)
        total_N = predictor.blended(cover).mean().sum(1)
        tissue_N, states = total_N > np.quantile(total_N, 0.7), []
        for window in range(len(cover.corners)):
            batch = cover.batch([cover.read(window)], predictor.rows)
            placed = cover.placed(batch, 0, window)
            state_Qxr = np.asarray(predictor.call_on(_states, batch), np.float64)[0]
            states.append(state_Qxr[placed.slot_n[tissue_N[placed.number_n]]])
        np.testing.assert_allclose(found[row], np.concatenate(states).mean(0), rtol=1e-2, atol=1e-3)
        assert some.count(patient) == sum(len(of) > 0 for of in states)
        kept += map(len, states)
    assert 0 in kept and len(set(kept)) > 2
    assert np.abs(found[0] - found[1]).max() > 1e-3 and np.abs(found - every).max() > 1e-3


def test_a_patient_without_tissue_is_refused(predictor, tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(outcome_tuning, "totals", lambda model, batch: 0.0 * Tario.rates(model, batch).sum(-1))
    tuner = Tuner(Windows(predictor, tiny_corpus, PATIENTS), Tuning(), tmp_path / "tuned")
    refused(lambda: tuner.told(np.array([0, 1, 1, 0, 0, 1]), 2, folds()), "no tissue in any H&E of patient 'A'",
            str(tiny_corpus.root), "leave the patient out")  # fmt: skip


def _states(model, batch):
    return model(batch).gene_BxQxr


def test_an_outcome_of_the_tissue_is_learnt_and_kept(windows, tmp_path, monkeypatch):
    """Labels that the start does not tell: more steps fit those that were learnt, and what is told is written once."""
    monkeypatch.setattr(outcome_tuning, "_ASIDE", 0.34)
    said: list[str] = []
    label = np.array([0, 1, 1, 0, 0, 1])
    tuner = Tuner(windows, Tuning(steps=4, learning_rate=3e-3, every=2), tmp_path / "tuned", said.append)
    told = tuner.told(label, 2, folds())
    np.testing.assert_allclose(np.exp(told.log_PxK).sum(1), 1, rtol=1e-6)
    assert len(said) == 1 + 2 * 2 and all("loss of those aside" in line for line in said[1:])
    monkeypatch.setattr(Tuner, "_fold", lambda *_: pytest.fail("a fold was tuned again"))
    np.testing.assert_array_equal(tuner.told(label, 2, folds()).log_PxK, told.log_PxK)


def test_what_a_fold_told_is_that_of_the_same_windows(windows, tmp_path, monkeypatch):
    """The same patients of a section that was ingested again, of other windows or batches, or by another version, are
    told anew."""
    label, fold = np.array([0, 1, 1, 0, 0, 1]), folds().folds_L[0]

    def name(**other) -> str:
        changed = copy.copy(windows)
        for key, value in other.items():
            setattr(changed, key, value)
        return Tuner(changed, Tuning(), tmp_path)._name(label, fold, 0)

    class Narrow:
        def __init__(self, predictor):
            self.__dict__ |= vars(predictor) | {"rows": 1, "checkpoint": predictor.checkpoint, "mesh": predictor.mesh}

    assert name() == name() and windows.seals == sorted(windows.seals) and len(windows.seals) >= len(PATIENTS)
    again = [(section, "0" * 64) for section, _ in windows.seals]
    found = {name(), name(seals=again), name(predictor=Narrow(windows.predictor))}
    monkeypatch.setattr(outcome_tuning, "_VERSION", 1)
    assert len(found | {name()}) == 4


def test_a_batch_of_one_row_holds_one_window():
    learnt, rng = np.arange(5), np.random.default_rng(0)
    for rows, windows_of, expected in ((1, 3, 1), (2, 3, 2), (5, 3, 4), (4, 1, 2)):
        tuner = object.__new__(Tuner)
        tuner.predictor = types.SimpleNamespace(rows=rows)
        tuner.windows = types.SimpleNamespace(count=lambda patient, number=windows_of: number)
        assert len(tuner._drawn(learnt, rng)) == expected


def test_a_step_lowers_the_loss_of_those_it_learns_from(windows, predictor, tmp_path):
    tuner = Tuner(windows, Tuning(learning_rate=3e-3), tmp_path)
    label = np.array([0, 1, 1, 0, 0, 1])
    start = tuner.states(predictor.parameters, range(6))
    trained = {"model": jax.tree.map(jax.numpy.array, predictor.parameters),
               "head": jax.numpy.zeros((start.shape[1], 2)), "bias": jax.numpy.zeros(2)}  # fmt: skip
    moments, losses = tuner._optimiser.init(trained), []
    some = [(patient, 0) for patient in range(min(predictor.rows, 6))]
    whose, labels, weight = (np.zeros(predictor.rows, kind) for kind in (np.int32, np.int32, np.float32))
    for row, (patient, _) in enumerate(some):
        whose[row], labels[row], weight[row] = patient, label[patient], 1.0
    batch, tissue = windows.batch(some)
    batch = predictor.placed_on_devices(batch)
    for _ in range(12):
        sums = np.asarray(tuner._sums(trained["model"], batch, tissue), np.float64)[: len(some)]
        states = sums / tissue[: len(some)].sum(1, keepdims=True)
        log = outcome_tuning._log(states, trained["head"], np.asarray(trained["bias"], np.float64))
        losses.append(outcome_tuning._loss(log, labels[: len(some)]))
        trained, moments = tuner._step(trained, moments, batch, tissue, whose, labels, weight)
    assert losses[0] == pytest.approx(np.log(2), rel=1e-3) and losses[-1] < 0.8 * losses[0]
    assert np.abs(np.asarray(predictor.parameters["gene_table"])).sum() > 0  # the model's own are still there


def test_the_head_starts_at_the_probe():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 90)
    state = rng.normal(0, [1, 5, 0.1], (90, 3)) + label[:, None] * [1, 5, 0.1] + 7
    head, bias = outcome_tuning._head(state, label, 3)
    log = outcome_tuning._log(state, head, bias)
    assert (log.argmax(1) == label).mean() > 0.6
    from sklearn.linear_model import LogisticRegression

    scaled = (state - state.mean(0)) / state.std(0)
    expected = LogisticRegression(C=0.03, max_iter=500).fit(scaled, label).predict_log_proba(scaled)
    np.testing.assert_allclose(log, expected, atol=1e-4)
    two = outcome_tuning._log(state, *outcome_tuning._head(state, (label > 0).astype(int), 2))
    expected = LogisticRegression(C=0.03, max_iter=500).fit(scaled, label > 0).predict_log_proba(scaled)
    np.testing.assert_allclose(two, expected, atol=1e-4)


def test_another_model_than_that_of_the_embeddings_is_refused(predictor, tiny_corpus, tmp_path):
    store = EmbeddingStore.begun(tmp_path / "x.embeddings", predictor.panel, {
        "checkpoint": "another", "model": "x", "trained_on": "virtual", "bin_um": 18.0, "overlap": 0.5,
        "region_um": None, "tissue": "virtual"})  # fmt: skip
    refused(lambda: probe_job(store, tiny_corpus, Asked(("cohort",)), Setting(), predictor=predictor, tuning=Tuning()),
            "checkpoint another", "give the workdir that was embedded")  # fmt: skip


@pytest.mark.parametrize("label", [[0, 0, 0, 0, 0, 0, 1, 1], [0, 1, 2, 2, 2, 2, 2, 2], [0, 1, 0, 1]])
def test_somebody_is_kept_aside_and_every_class_is_learnt_from(label):
    label, train = np.array(label), np.arange(len(label))
    for seed in range(40):
        aside, learnt = outcome_tuning._kept_aside(train, label, np.random.default_rng(seed))
        assert len(aside) == max(1, len(label) // 5) and sorted([*aside, *learnt]) == train.tolist()
        assert set(label[learnt]) == set(label)
    refused(lambda: outcome_tuning._kept_aside(np.arange(2), np.array([0, 1]), np.random.default_rng(0)),
            "no class has two patients")  # fmt: skip


def test_a_head_of_two_of_three_classes_tells_them_apart():
    state = np.random.default_rng(0).normal(size=(40, 3))
    label = np.where(state[:, 0] > 0, 2, 0)
    head, bias = outcome_tuning._head(state, label, 3)
    told = (state @ head + bias).argmax(1)
    assert (told == label).mean() > 0.85 and (told != 1).all()


def test_windows_of_spots_that_lie_denser_are_one_program(predictor, tiny_corpus, monkeypatch):
    """The layout is the largest of all sections', whichever comes first in a batch."""
    made = type(predictor).cover
    bins = iter(range(8, 100))

    def cover(self, *given, **more):
        found = made(self, *given, **more)
        found.layout = dataclasses.replace(found.layout, bins_per_tile=found.layout.bins_per_tile + next(bins))
        return found

    monkeypatch.setattr(type(predictor), "cover", cover)
    found = Windows(predictor, tiny_corpus, PATIENTS)
    (layout,) = {cover.layout for of in found._of_patient for cover in of}
    covers = len({id(cover) for of in found._of_patient for cover in of})
    plain = made(predictor, tiny_corpus.sections[0], tissue=tiny_corpus.kind, bin_um=None, overlap=0.0).layout
    assert layout == dataclasses.replace(plain, bins_per_tile=plain.bins_per_tile + 8 + covers - 1)
    assert found.batch([(5, 0), (0, 0)])[0].bin_measured_BxTxN.shape[2] == layout.bins_per_tile
