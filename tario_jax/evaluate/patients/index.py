"""The space of a folder of embeddings and all of its patients in it, kept beside them: what was computed stays.

    NAME.embeddings/index/
      space.npz              principal components, and how each kind of patients is placed; fitted once
      patients.npz           who they are, where they lie, from which files of rows they come
      levels-*.npy           float16 [G, patients of a block]: log expression less the mean of its kind

The space is fitted on at most REFERENCE patients, those that are there when it is first asked for. Patients that come
later are placed in it, and no one moves; `fit_again` is said by a person. Every file is absent or whole, and
patients.npz, written last, names the others.

Axes: P patients, G genes, C components.
"""

import dataclasses
import hashlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.evaluate.patients.kept_arrays import read_arrays, write_arrays
from tario_jax.evaluate.patients.space import PAIRS, Space, fitted, nearest_of_each, read_space
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.vectors import MEASURED, PREDICTED, Embedded, pooled
from tario_jax.whole_file import write_whole

COMPONENTS = 50
REFERENCE = 4000  # patients that a space is fitted on, at most
FORMAT_VERSION = 3
_BLOCK = 1024  # patients that are read at once, and whose levels are one file
_READ = ("expression", "acquisition")
_MANY_MORE = 4  # times as many patients as a space was fitted on: it is said
_OLD_S = 3600.0
_ARRAYS = ("name_P", "kind_P", "cohort_P", "seen_P", "place_PxC", "acquisition_PxA", "part_P", "block_P", "column_P",
           "parts", "bytes_of_parts", "blocks", "own_R")  # of patients.npz  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PatientIndex:
    """Made by `index_of`. Entries are patients of a kind, predicted and measured, in no order that means anything."""

    folder: Path
    space: Space
    name_P: np.ndarray
    kind_P: np.ndarray
    cohort_P: np.ndarray
    seen_P: np.ndarray
    place_PxC: np.ndarray  # float32
    acquisition_PxA: np.ndarray  # of the H&E; NaN for what was measured
    part_P: np.ndarray  # str: numbers of the files of rows, with commas
    block_P: np.ndarray  # number of the file of levels, and the column there
    column_P: np.ndarray
    parts: tuple[str, ...]
    bytes_of_parts: np.ndarray
    blocks: tuple[str, ...]
    own_R: np.ndarray  # distances of reference patients to their nearest other, ascending
    moments: "Moments"

    def of_kind(self, kind: str) -> np.ndarray:
        """Numbers of the entries."""
        return np.flatnonzero(self.kind_P == kind)

    def entry(self, name: str, kind: str) -> int | None:
        found = np.flatnonzero((self.name_P == name) & (self.kind_P == kind))
        return int(found[0]) if len(found) else None

    def levels(self, gene: int, some: np.ndarray) -> np.ndarray:
        """Log expression of a gene less the mean of its kind, of some entries (their numbers, [n]): float32 [n]."""
        found = np.empty(len(some), np.float32)
        block_n = self.block_P[some]
        for block in np.unique(block_n):
            mine = np.flatnonzero(block_n == block)
            found[mine] = self._block(int(block))[gene, self.column_P[some[mine]]]
        return found

    def scale(self, kind: str, cohort: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation [G] of the levels of a cohort's patients of this kind, of all cohorts where this
        one has none; measured patients, of whom nothing is kept, are read a block after the other."""
        if kind == PREDICTED:
            return self.moments.of(cohort)[1:]
        everyone = np.flatnonzero(self.kind_P == kind)
        if (mine := everyone[self.cohort_P[everyone] == cohort]).size:
            everyone = mine
        moments = Moments.none(len(self.space.mean_KxG[0]))
        for block in np.unique(self.block_P[everyone]):
            some = everyone[self.block_P[everyone] == block]
            levels_PxG = np.asarray(self._block(int(block))[:, self.column_P[some]], np.float32).T
            moments = moments.plus(self.cohort_P[some], levels_PxG)
        return moments.of(cohort)[1:]

    def level_G(self, entry: int) -> np.ndarray:
        """Of all genes, float32 [G]."""
        return np.asarray(self._block(int(self.block_P[entry]))[:, self.column_P[entry]], np.float32)

    def _block(self, block: int) -> np.ndarray:
        return np.load(self.folder / self.blocks[block], mmap_mode="r")

    def parts_of(self, entry: int) -> list[str]:
        """Files that hold the patient's rows."""
        return [self.parts[int(number)] for number in self.part_P[entry].split(",")]

    def unusual(self, distance: float) -> float:
        """Share of reference patients that are nearer to their own nearest than this."""
        return float(np.searchsorted(self.own_R, distance, "left") / len(self.own_R))


@dataclasses.dataclass(frozen=True)
class Moments:
    """Of the levels of predicted patients, by cohort."""

    cohort_K: np.ndarray
    number_KxG: np.ndarray  # patients of whom a gene is known
    sum_KxG: np.ndarray  # float64
    square_KxG: np.ndarray

    @classmethod
    def none(cls, genes: int) -> "Moments":
        return cls(np.array([], str), *(np.zeros((0, genes)) for _ in range(3)))

    def plus(self, cohort_P: np.ndarray, level_PxG: np.ndarray) -> "Moments":
        """With further patients; a gene counts where it is known."""
        cohort_K = np.union1d(self.cohort_K, cohort_P)
        at = np.searchsorted(cohort_K, self.cohort_K)
        number_KxG, sum_KxG, square_KxG = (np.zeros((len(cohort_K), level_PxG.shape[1])) for _ in range(3))
        number_KxG[at], sum_KxG[at], square_KxG[at] = self.number_KxG, self.sum_KxG, self.square_KxG
        for k, cohort in enumerate(cohort_K):
            mine = level_PxG[cohort_P == cohort].astype(np.float64)
            number_KxG[k] += np.isfinite(mine).sum(0)
            sum_KxG[k] += np.nansum(mine, 0)
            square_KxG[k] += np.nansum(mine**2, 0)
        return Moments(cohort_K, number_KxG, sum_KxG, square_KxG)

    def of(self, cohort: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Patients, mean and standard deviation of each gene, [G] each; of all cohorts together where this one is not
        known. Of a gene that nobody has, all are 0."""
        some = self.cohort_K == cohort if (self.cohort_K == cohort).any() else np.ones(len(self.cohort_K), bool)
        number_G = self.number_KxG[some].sum(0)
        mean_G = self.sum_KxG[some].sum(0) / np.maximum(number_G, 1)
        variance_G = np.maximum(self.square_KxG[some].sum(0) / np.maximum(number_G, 1) - mean_G**2, 0)
        return number_G, mean_G, np.sqrt(variance_G * number_G / np.maximum(number_G - 1, 1))


def index_of(store: EmbeddingStore, *, fit_again: bool = False, components: int = COMPONENTS,
             say: Callable[[str], None] = str) -> PatientIndex:  # fmt: skip
    """That which is kept, with patients that came since; a new one where there is none. Raises `InputError` for fewer
    patients than a space takes."""
    folder = store.folder / "index"
    folder.mkdir(exist_ok=True)
    parts = store.parts()
    kept = None if fit_again else _kept_space(folder, store)
    held = None if kept is None else _read(folder, kept)
    if held is not None and dict(zip(held.parts, held.bytes_of_parts.tolist(), strict=True)) == parts:
        _warn(held, say)
        return held
    of_part = {name: store.patients_of(name) for name in parts}
    where: dict[tuple[str, str], list[str]] = {}
    for name, entries in of_part.items():
        for entry in entries:
            where.setdefault(entry, []).append(name)
    seen = {patient for entries in of_part.values() for (patient, _), was in entries.items() if was}
    space = _space(folder, store, where, seen, kept, components, say)
    if held is not None and held.space is not space:
        held = None  # a kind came that had no place before: it alone is new, yet all is written again
    if held is not None and any(parts.get(name) != size for name, size in
                                zip(held.parts, held.bytes_of_parts.tolist(), strict=True)):  # fmt: skip
        held = None
    known = set() if held is None else set(held.parts)
    fresh = [entry for entry, names in where.items() if not known.issuperset(names)]
    index = _with(folder, store, space, held, where, fresh, parts, say)
    _warn(index, say)
    return index


def _warn(index: PatientIndex, say: Callable[[str], None]) -> None:
    """A space of few patients shows others in the directions in which those few differ."""
    fitted_on, predicted = index.space.reference, len(index.of_kind(PREDICTED))
    if fitted_on and predicted >= _MANY_MORE * fitted_on and fitted_on < REFERENCE:
        say(f"patients: the space was fitted on {fitted_on} patients, and {predicted} are here now; --fit-again fits "
            f"it to {min(predicted, REFERENCE)} of them, and moves everyone")  # fmt: skip


def _kept_space(folder: Path, store: EmbeddingStore) -> Space | None:
    """None where there is none of this model: it is fitted then."""
    try:
        space = read_space(folder / "space.npz")
    except InputError:
        return None
    return space if (space.panel_hash, space.checkpoint) == (store.panel.hash, store.about["checkpoint"]) else None


def _space(folder: Path, store: EmbeddingStore, where: dict, seen: set[str], kept: Space | None, components: int,
           say: Callable[[str], None]) -> Space:  # fmt: skip
    measured = {patient for patient, kind in where if kind == MEASURED}
    if kept is not None and (MEASURED in kept.kinds or not measured):
        return kept
    path = folder / "space.npz"
    predicted = sorted(patient for patient, kind in where if kind == PREDICTED)
    chosen = _evenly(predicted, REFERENCE)
    if kept is None:
        say(f"patients: a space is fitted on {len(chosen)} of {len(predicted)}")
        space = fitted(_pooled(store, where, chosen, PREDICTED), components, panel_hash=store.panel.hash,
                       checkpoint=store.about["checkpoint"])  # fmt: skip
    else:
        space = kept
    both = sorted(measured.intersection(predicted))
    trained = [patient for patient in both if patient in seen]
    if len(trained) >= PAIRS * len(space.component_CxG):  # then no one's own pair has placed anyone else
        both = trained
    both = _evenly(both, REFERENCE)
    if both:
        say(f"patients: what was measured is placed by {len(both)} patients of whom both is known, "
            + ("all seen in training" if set(both) <= seen else "too few of whom were seen in training"))  # fmt: skip
        space = space.with_kind(MEASURED, *(_pooled(store, where, both, kind) for kind in (MEASURED, PREDICTED)))
    space.write(path)
    return space


def _evenly(names: list[str], most: int) -> list[str]:
    if len(names) <= most:
        return names
    return [names[at] for at in np.linspace(0, len(names) - 1, most).round().astype(int)]


def _pooled(store: EmbeddingStore, where: dict, names: Sequence[str], kind: str):
    parts = {part for name in names for part in where[name, kind]}
    return pooled(store.rows(kind, patients=set(names), parts=parts, vectors=_READ))


def _with(folder: Path, store: EmbeddingStore, space: Space, held: PatientIndex | None, where: dict,
          fresh: list[tuple[str, str]], parts: dict[str, int], say: Callable[[str], None]) -> PatientIndex:  # fmt: skip
    numbers = {name: number for number, name in enumerate(parts)}
    columns: dict[str, list] = {name: [] for name in ("name", "kind", "cohort", "seen", "place", "acquisition",
                                                      "part", "block", "column")}  # fmt: skip
    blocks: list[str] = []
    again = set(fresh)
    if held is not None and any(entry in again for entry in
                                zip(held.name_P.tolist(), held.kind_P.tolist(), strict=True)):  # fmt: skip
        # new sections of known patients: the sums over patients would hold them twice
        held, fresh = None, list(where)
    moments = Moments.none(len(store.panel)) if held is None else held.moments
    if held is not None:
        blocks += held.blocks
        part = [",".join(str(numbers[held.parts[int(at)]]) for at in of.split(",")) for of in held.part_P]
        for name, values in (("name", held.name_P), ("kind", held.kind_P), ("cohort", held.cohort_P),
                             ("seen", held.seen_P), ("place", held.place_PxC),
                             ("acquisition", held.acquisition_PxA), ("block", held.block_P),
                             ("column", held.column_P)):  # fmt: skip
            columns[name].append(values)
        columns["part"].append(np.array(part, str))
    done = 0
    for kind in (PREDICTED, MEASURED):
        of_kind = [entry for entry in fresh if entry[1] == kind and kind in space.kinds]
        for names, rows in _in_blocks(store, where, of_kind):
            patients = pooled(rows)
            level_PxG = patients.expression_PxG - space.mean_KxG[space.kinds.index(kind)]
            blocks.append(_write_levels(folder, level_PxG))
            if kind == PREDICTED:
                moments = moments.plus(patients.cohort_P, level_PxG)
            number = len(patients.name_P)
            for name, values in (("name", patients.name_P), ("kind", np.full(number, kind)),
                                 ("cohort", patients.cohort_P), ("seen", patients.seen_P),
                                 ("place", space.placed(kind, patients.expression_PxG)),
                                 ("acquisition", patients.acquisition_PxA),
                                 ("block", np.full(number, len(blocks) - 1)),
                                 ("column", np.arange(number))):  # fmt: skip
                columns[name].append(values)
            of_name = {name: ",".join(str(numbers[part]) for part in where[name, kind]) for name in names}
            columns["part"].append(np.array([of_name[name] for name in patients.name_P.tolist()], str))
            done += number
            say(f"patients: {done}/{len(fresh)} placed")
    values = {name: np.concatenate(of) for name, of in columns.items()}
    predicted = np.flatnonzero(values["kind"] == PREDICTED)
    sample = np.array(_evenly(predicted.tolist(), REFERENCE))
    own_R = np.sort(nearest_of_each(values["place"][predicted], np.searchsorted(predicted, sample)))
    index = PatientIndex(
        folder, space, values["name"], values["kind"], values["cohort"], values["seen"], values["place"],
        values["acquisition"], values["part"], values["block"], values["column"], tuple(parts),
        np.array(list(parts.values()), np.int64),
        tuple(blocks), own_R, moments,
    )  # fmt: skip
    _write(index)
    return index


def _in_blocks(store: EmbeddingStore, where: dict, entries: list[tuple[str, str]]
               ) -> Iterator[tuple[list[str], list[Embedded]]]:  # fmt: skip
    """Patients with all of their rows, as they lie in the files: each file is read about once."""
    for first in range(0, len(entries), _BLOCK):
        some = entries[first : first + _BLOCK]
        names = [name for name, _ in some]
        parts = {part for entry in some for part in where[entry]}
        yield names, store.rows(some[0][1], patients=set(names), parts=parts, vectors=_READ)


def _write_levels(folder: Path, level_PxG: np.ndarray) -> str:
    memory = io.BytesIO()
    np.save(memory, np.ascontiguousarray(level_PxG.T.astype(np.float16)))
    content = memory.getvalue()
    name = f"levels-{hashlib.sha256(content).hexdigest()[:16]}.npy"
    write_whole(folder / name, content)
    return name


def _write(index: PatientIndex) -> None:
    path = index.folder / "patients.npz"
    before = read_arrays(path, FORMAT_VERSION, ("blocks",))
    # another process may read those of before: they go the next time
    kept = {*index.blocks, *(() if before is None else before["blocks"].tolist())}
    values = {name: getattr(index, name) for name in _ARRAYS}
    write_arrays(path, FORMAT_VERSION, space=index.space.identity, **values,
                 **{f"moments_{name}": of for name, of in vars(index.moments).items()})  # fmt: skip
    for path in index.folder.glob("levels-*.npy"):
        # a new one may be that of another process, which has not named it yet
        if path.name not in kept and time.time() - path.stat().st_mtime > _OLD_S:
            path.unlink(missing_ok=True)


def _read(folder: Path, space: Space) -> PatientIndex | None:
    """None where there is none that can be used: it is made of what is there anyway."""
    moments = [field.name for field in dataclasses.fields(Moments)]
    held = read_arrays(folder / "patients.npz", FORMAT_VERSION,
                       ("space", *_ARRAYS, *(f"moments_{name}" for name in moments)))  # fmt: skip
    if held is None or str(held["space"]) != space.identity:
        return None
    values = {name: held[name] for name in _ARRAYS}
    values |= {name: tuple(values[name].tolist()) for name in ("parts", "blocks")}
    if not all((folder / name).exists() for name in values["blocks"]):
        return None
    return PatientIndex(folder=folder, space=space, moments=Moments(*(held[f"moments_{name}"] for name in moments)),
                        **values)  # fmt: skip
