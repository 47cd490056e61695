"""Fine-tuning of a model on an outcome, beside the linear probe of the same folds.

A linear head on the decoder's state, averaged over the bins of a patient's windows that are tissue, as embeddings are;
head and model are trained together, the head starting where the probe of the same training patients ends (Kumar et al.,
ICLR 2022, arXiv 2202.10054). A part of the training patients is kept aside: the step that tells them best counts, and
step 0, the probe itself, is one of them.

Axes: B rows of a batch, P patients, Q bins of a window, r width of the state, K classes, W windows of a patient.
"""

import dataclasses
import functools
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tario_jax.config import InputError
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate.patients.probe import Fold, Folds, Told
from tario_jax.model.model import Tario
from tario_jax.parallel.mesh import traced_on
from tario_jax.predict.cover import Blend, Cover
from tario_jax.predict.predictor import Predictor, diverged
from tario_jax.predict.writing import holds_tissue
from tario_jax.tokens.batch import Batch
from tario_jax.whole_file import write_whole

Tree = Any
_ASIDE = 0.2  # of the training patients, to choose the step on
_WINDOWS = 2  # of a patient in a step
_OVERLAP = 0.0  # of neighbouring windows
_HEAD_PENALTY = 0.03  # scikit-learn's C of the head's start
_VERSION = 2  # of what folds tell: what another one told is told anew


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How long, and how fast, a model is tuned on an outcome."""

    steps: int = 200
    learning_rate: float = 1e-4
    every: int = 50  # steps, after which those aside are told
    seed: int = 0


def tissue_sums(model: Tario, batch: Batch, tissue_BxQ: jax.Array) -> jax.Array:
    """Sum of the decoder's state over the bins of each row that are tissue, float32 [B, r]. tissue: 1, else 0."""
    return jnp.einsum("bq,bqr->br", tissue_BxQ, model(batch).gene_BxQxr.astype(jnp.float32))


def totals(model: Tario, batch: Batch) -> jax.Array:
    """Expected detections in every bin slot, float32 [B, Q]."""
    return model.rates(batch).sum(-1)


class Tissue(NamedTuple):
    """Which of a section's N places are more than glass, and which of its W windows hold some of them."""

    place_N: np.ndarray
    window_W: np.ndarray


def tissue_of(predictor: Predictor, covers: Sequence[Cover]) -> Iterator[tuple[Cover, Tissue]]:
    """By what the model predicts before it is tuned; covers are of one layout, and batches are filled across them.
    Raises `InputError` for rates that are no numbers."""
    windows = [(cover, number) for cover in covers for number in range(len(cover.corners))]
    blend, number_n = None, []  # of the cover that is gone through, and of its windows
    for first in range(0, len(windows), predictor.rows):
        some = windows[first : first + predictor.rows]
        batch = some[0][0].batch([cover.read(number) for cover, number in some], predictor.rows)
        total_BxQ = np.asarray(predictor.call_on(totals, batch))
        for row, (cover, number) in enumerate(some):
            if number == 0:
                blend, number_n = Blend(len(cover), 1), []
            placed = cover.placed(batch, row, number)
            blend.add(placed, total_BxQ[row, :, None])
            number_n.append(placed.number_n)
            if number == len(cover.corners) - 1:
                total_N = blend.mean()[:, 0]
                if not np.isfinite(total_N[blend.seen_N]).all():
                    raise diverged(cover.section.id)
                place_N = holds_tissue(total_N)
                yield cover, Tissue(place_N, np.array([place_N[of].any() for of in number_n]))


class Windows:
    """Windows of the H&E of patients that hold tissue, in any order."""

    def __init__(self, predictor: Predictor, corpus: Corpus, patients: Sequence[str],
                 tissue: dict[str, Tissue] | None = None):  # fmt: skip
        """tissue: of sections that were looked at before, by seal; others are added as they are looked at."""
        self.predictor, self.names, self._root = predictor, tuple(patients), corpus.root
        self._tissue = {} if tissue is None else tissue
        sections: dict[str, list[Section]] = {name: [] for name in patients}
        for section in corpus.sections:
            if section.patient in sections and section.holds("he"):
                sections[section.patient].append(section)
        self.seals = sorted((one.id, one.seal_sha256) for of in sections.values() for one in of)
        self._of_patient = []
        for name in patients:
            covers = [predictor.cover(section, tissue=corpus.kind, bin_um=None, overlap=_OVERLAP, turned=True)
                      for section in sections[name]]  # fmt: skip
            self._of_patient.append(covers)
            if not covers:
                raise InputError(f"--fine-tune: patient {name!r} has no H&E in {corpus.root}; leave the patient out")
        # one program for all of them: spots lie denser in one section than in another
        covers = [cover for of in self._of_patient for cover in of]
        largest = {name: max(getattr(cover.layout, name) for cover in covers)
                   for name in ("bins_per_tile", "patches_per_bin")}  # fmt: skip
        for cover in covers:
            cover.layout = dataclasses.replace(cover.layout, **largest)

    @functools.cached_property
    def _with_tissue(self) -> list[list[tuple[Cover, int]]]:
        """The windows of each patient. Raises `InputError` for a patient who has none."""
        found, unknown = [], [cover for covers in self._of_patient for cover in covers
                              if cover.section.seal_sha256 not in self._tissue]  # fmt: skip
        for cover, tissue in tissue_of(self.predictor, unknown):
            self._tissue[cover.section.seal_sha256] = tissue
        for name, covers in zip(self.names, self._of_patient, strict=True):
            found.append([(cover, int(number)) for cover in covers
                          for number in np.flatnonzero(self._tissue_of(cover).window_W)])  # fmt: skip
            if not found[-1]:
                raise InputError(f"--fine-tune: the model sees no tissue in any H&E of patient {name!r} in "
                                 f"{self._root}; leave the patient out")  # fmt: skip
        return found

    def _tissue_of(self, cover: Cover) -> Tissue:
        return self._tissue[cover.section.seal_sha256]

    def count(self, patient: int) -> int:
        return len(self._with_tissue[patient])

    def batch(self, chosen: Sequence[tuple[int, int]]) -> tuple[Batch, np.ndarray]:
        """(patient, number of its window) a row, further rows are padding; and which bin slots are tissue, float32
        [B, Q]."""
        held = [self._with_tissue[patient][number] for patient, number in chosen]
        batch = held[0][0].batch([cover.read(number) for cover, number in held], self.predictor.rows)
        tissue_BxQ = np.zeros((self.predictor.rows, batch.bin_measured_BxTxN[0].size), np.float32)
        for row, (cover, number) in enumerate(held):
            placed = cover.placed(batch, row, number)
            tissue_BxQ[row, placed.slot_n] = self._tissue_of(cover).place_N[placed.number_n]
        return batch, tissue_BxQ

    def batches(self, patients: Sequence[int]) -> Iterator[tuple[list[int], Batch, np.ndarray]]:
        """All windows of these patients: whose each row is, and the batch with its tissue."""
        rows = [(patient, number) for patient in patients for number in range(self.count(patient))]
        for first in range(0, len(rows), self.predictor.rows):
            some = rows[first : first + self.predictor.rows]
            yield [patient for patient, _ in some], *self.batch(some)


class Tuner:
    """Tunes a model on one outcome, fold by fold."""

    def __init__(self, windows: Windows, tuning: Tuning, kept: Path, say: Callable[[str], None] = str):
        """kept: a folder for what folds have told: stopped, the same command goes on with the next fold."""
        self.windows, self.tuning, self.kept, self.say = windows, tuning, kept, say
        predictor = self.predictor = windows.predictor
        self._optimiser = optax.adam(tuning.learning_rate)

        def loss(trained: Tree, batch: Batch, tissue_BxQ, whose_B, label_B, weight_B) -> jax.Array:
            sum_Bxr = tissue_sums(predictor.built.merge(trained["model"], predictor.calibration), batch, tissue_BxQ)
            # rows of one patient count as one
            same_BxB = (whose_B[:, None] == whose_B[None]) & (weight_B > 0)[None]
            mean_Bxr = (same_BxB @ sum_Bxr) / jnp.maximum(same_BxB @ tissue_BxQ.sum(1, keepdims=True), 1)
            logits_BxK = mean_Bxr @ trained["head"] + trained["bias"]
            losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxK, label_B)
            return (losses_B * weight_B).sum() / jnp.maximum(weight_B.sum(), 1.0)

        def step(trained: Tree, moments: optax.OptState, batch: Batch, tissue_BxQ, whose_B, label_B, weight_B):
            gradient = jax.grad(loss)(trained, batch, tissue_BxQ, whose_B, label_B, weight_B)
            updates, moments = self._optimiser.update(gradient, moments, trained)
            return optax.apply_updates(trained, updates), moments

        def sums(model: Tree, batch: Batch, tissue_BxQ) -> jax.Array:
            return tissue_sums(predictor.built.merge(model, predictor.calibration), batch, tissue_BxQ)

        self._step = jax.jit(traced_on(predictor.mesh, step), donate_argnums=(0, 1))
        self._sums = jax.jit(traced_on(predictor.mesh, sums))

    def states(self, model: Tree, patients: Sequence[int]) -> np.ndarray:
        """Mean state over all bins of each of these patients that are tissue, float64 [P, r]."""
        place, sums, bins_P = {patient: at for at, patient in enumerate(patients)}, 0.0, np.zeros(len(patients))
        for whose, batch, tissue_BxQ in self.windows.batches(patients):
            sum_Bxr = np.asarray(self._sums(model, self.predictor.placed_on_devices(batch), tissue_BxQ), np.float64)
            whose_PxB = np.zeros((len(patients), len(sum_Bxr)))
            whose_PxB[[place[patient] for patient in whose], np.arange(len(whose))] = 1.0
            sums, bins_P = sums + whose_PxB @ sum_Bxr, bins_P + whose_PxB @ tissue_BxQ.sum(1)
        return sums / bins_P[:, None]

    def told(self, label_P: np.ndarray, classes: int, folds: Folds) -> Told:
        """Each patient's log probabilities by the model that was tuned on the other folds."""
        log_PxK, start_Pxr = np.zeros((len(label_P), classes)), None
        for number, fold in enumerate(folds.folds_L):
            path = self.kept / f"{self._name(label_P, fold, number)}.npy"
            if not path.exists():
                if start_Pxr is None:
                    self.say("fine-tuning: states of all patients, before")
                    start_Pxr = self.states(self.predictor.parameters, range(len(label_P)))
                memory = io.BytesIO()
                np.save(memory, self._fold(start_Pxr, label_P, classes, fold.train, fold.test, number))
                self.kept.mkdir(exist_ok=True)
                write_whole(path, memory.getvalue())
            log_PxK[fold.test] = np.load(path)
        return Told(log_PxK, log_PxK - folds.log_share(label_P, classes))

    def _name(self, label_P: np.ndarray, fold: Fold, number: int) -> str:
        """Of all that the fold's answer follows from."""
        said = (_VERSION, self.predictor.checkpoint, self.predictor.rows, self.windows.names, self.windows.seals,
                _OVERLAP, self.tuning, number, label_P.tolist(), fold.train.tolist(),
                fold.test.tolist())  # fmt: skip
        return hashlib.sha256(repr(said).encode()).hexdigest()[:16]

    def _fold(self, start_Pxr: np.ndarray, label_P: np.ndarray, classes: int, train: np.ndarray, test: np.ndarray,
              number: int) -> np.ndarray:  # fmt: skip
        rng = np.random.default_rng((self.tuning.seed, number))
        aside, learnt = _kept_aside(train, label_P, rng)
        head, bias = _head(start_Pxr[learnt], label_P[learnt], classes)
        trained = {"model": jax.tree.map(jnp.array, self.predictor.parameters), "head": jnp.asarray(head),
                   "bias": jnp.asarray(bias)}  # fmt: skip
        moments = self._optimiser.init(trained)
        best, kept = _loss(_log(start_Pxr[aside], head, bias), label_P[aside]), _log(start_Pxr[test], head, bias)
        first = best
        for done in range(1, self.tuning.steps + 1):
            some = self._drawn(learnt, rng)
            whose_B, label_B, weight_B = (np.zeros(self.predictor.rows, kind)
                                          for kind in (np.int32, np.int32, np.float32))  # fmt: skip
            for row, (patient, _) in enumerate(some):
                whose_B[row], label_B[row], weight_B[row] = patient, label_P[patient], 1.0
            batch, tissue_BxQ = self.windows.batch(some)
            batch = self.predictor.placed_on_devices(batch)
            trained, moments = self._step(trained, moments, batch, tissue_BxQ, whose_B, label_B, weight_B)
            if done % self.tuning.every == 0 or done == self.tuning.steps:
                head, bias = (np.asarray(trained[name], np.float64) for name in ("head", "bias"))
                loss = _loss(_log(self.states(trained["model"], aside), head, bias), label_P[aside])
                self.say(f"fold {number + 1}, step {done}: loss of those aside {loss:.4f}, of the probe {first:.4f}")
                if loss < best:
                    best, kept = loss, _log(self.states(trained["model"], test), head, bias)
        return kept

    def _drawn(self, learnt: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
        """A few windows of a few patients."""
        each = min(_WINDOWS, self.predictor.rows)
        patients = rng.choice(learnt, min(self.predictor.rows // each, len(learnt)), replace=False)
        return [(int(patient), int(window)) for patient in patients
                for window in rng.choice(self.windows.count(patient), min(each, self.windows.count(patient)),
                                         replace=False)]  # fmt: skip


def _kept_aside(train: np.ndarray, label_P: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Patients to choose the step on, at least one, and those to learn from, among whom every class stays."""
    mixed = rng.permutation(train)
    spare = dict(zip(*np.unique(label_P[train], return_counts=True), strict=True))
    aside: list[int] = []
    for patient in mixed.tolist():
        if len(aside) < max(1, int(_ASIDE * len(mixed))) and spare[label_P[patient]] > 1:
            aside.append(patient)
            spare[label_P[patient]] -= 1
    if not aside:
        raise InputError("--fine-tune: no class has two patients to train on, one of whom is kept aside; expected more")
    return np.array(aside), np.array([patient for patient in mixed.tolist() if patient not in set(aside)])


def _head(state_Pxr: np.ndarray, label_P: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a logistic regression of scaled states, as weights of the states as they are: float32 [r, K] and [K]."""
    from sklearn.linear_model import LogisticRegression

    middle_r, scale_r = state_Pxr.mean(0), np.maximum(state_Pxr.std(0), 1e-6)
    found = LogisticRegression(C=_HEAD_PENALTY, max_iter=500).fit((state_Pxr - middle_r) / scale_r, label_P)
    weight_Kxr, bias_K = np.zeros((classes, state_Pxr.shape[1])), np.full(classes, -9.0)
    if len(found.classes_) == 2:  # of more classes, those that nobody has keep the bias of the impossible
        weight_Kxr[found.classes_[1]], bias_K[found.classes_] = found.coef_[0], (0.0, found.intercept_[0])
    else:
        weight_Kxr[found.classes_], bias_K[found.classes_] = found.coef_, found.intercept_
    weight_rxK = (weight_Kxr / scale_r).T
    return weight_rxK.astype(np.float32), (bias_K - middle_r @ weight_rxK).astype(np.float32)


def _log(state_Pxr: np.ndarray, head_rxK: np.ndarray, bias_K: np.ndarray) -> np.ndarray:
    logits_PxK = state_Pxr @ np.asarray(head_rxK, np.float64) + bias_K
    return logits_PxK - np.logaddexp.reduce(logits_PxK, 1, keepdims=True)


def _loss(log_PxK: np.ndarray, label_P: np.ndarray) -> float:
    return float(-log_PxK[np.arange(len(label_P)), label_P].mean())
