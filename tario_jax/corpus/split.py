"""Who trains, who validates, who is held out.

A patient on two sides is an error. Only `by="section"`, said out loud in the config, allows it, and every result says
so.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping

from tario_jax.config import InputError, SplitConfig
from tario_jax.corpus.place import Place
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.stored_section import Section

SIDES = ("train", "validation", "held_out")


@dataclasses.dataclass(frozen=True)
class Split:
    """Sections by side."""

    by: str  # "patient" or "section"
    train: tuple[Section, ...]
    validation: tuple[Section, ...]
    held_out: tuple[Section, ...]
    without_he: tuple[str, ...] = ()  # with counts, and left out of training and validation
    on_no_side: tuple[str, ...] = ()  # patients with counts whom nobody named

    def described(self) -> Iterator[str]:
        """What a run says of it, in lines."""
        yield (f"sections: {len(self.train)} train, {len(self.validation)} validation, {len(self.held_out)} held out "
               f"(split by {self.by})")  # fmt: skip
        if self.without_he:
            yield (f"sections: {len(self.without_he)} have counts and no H&E, and are left out "
                   f"({self.without_he[0]}, …)")  # fmt: skip
        if self.on_no_side:
            yield (f"patients: {len(self.on_no_side)} have counts and stand on no side of the split "
                   f"({self.on_no_side[0]}, …)")  # fmt: skip


def stratified_order(cohort_of: Mapping[str, str], seed: int = 0) -> list[str]:
    """All patients in an order of which every beginning holds each cohort in proportion, to within one patient or two.

    A patient's place within its cohort is a hash of seed and name: it does not depend on who else is there.
    """
    by_cohort: dict[str, list[tuple[str, str]]] = {}
    for patient, cohort in cohort_of.items():
        place = hashlib.sha256(f"{seed} {patient}".encode()).hexdigest()
        by_cohort.setdefault(cohort, []).append((place, patient))
    ranked = []
    for cohort, members in by_cohort.items():
        for rank, (_, patient) in enumerate(sorted(members)):
            ranked.append(((rank + 0.5) / len(members), cohort, patient))
    return [patient for *_, patient in sorted(ranked)]


def draw_split(cohort_of: Mapping[str, str], validation: int, held_out: int, seed: int = 0) -> dict[str, str]:
    """The side of every patient: so many held out and for validation, of each cohort in proportion, the rest to train.

    Raises `InputError` where nobody would be left to train on.
    """
    if validation < 0 or held_out < 1 or validation + held_out >= len(cohort_of):
        raise InputError(f"split: {validation} for validation and {held_out} held out of {len(cohort_of)} patients; "
                         "expected at least one held out, and one left to train on")  # fmt: skip
    order = stratified_order(cohort_of, seed)
    sides = ["held_out"] * held_out + ["validation"] * validation
    sides += ["train"] * (len(order) - len(sides))
    return dict(zip(order, sides, strict=True))


def write_split(root: Place, sides: Mapping[str, str]) -> None:
    """Writes `split.tsv`, which a user may review and edit; it is no part of the corpus seal."""
    lines = [f"{patient}\t{side}\n" for patient, side in sorted(sides.items())]
    (root / "split.tsv").write(("patient\tsplit\n" + "".join(lines)).encode())


def split_corpus(corpus: Corpus, config: SplitConfig, *, he_alone: bool = False, trains: bool = True) -> Split:
    """Splits by the config's lists, or by the corpus's `split.tsv` where they are empty.

    A section of H&E alone, whoever its patient is, stands on no side: nothing of it can be learnt or measured; one
    without H&E is held out or nowhere, and evaluation says that it cannot be predicted.
    he_alone: the H&E is what is learnt from; all sections that have one are taken, none with more, and who is named
    nowhere trains; nobody need be held out.
    trains: False where nothing is learnt, as of a corpus of held-out patients alone; then a side may be empty.
    Raises `InputError` where a patient (or section) is unknown, stands on two sides, or a side is empty.
    """
    lists = {side: getattr(config, side) for side in SIDES}
    where = "config.split"
    if not any(lists.values()):
        path = corpus.root / "split.tsv"
        where = str(path)
        if config.by == "section":
            raise InputError("config.split: by='section' needs its lists train and held_out")
        # without one, all H&E is learnt from: slides without counts have no sides
        lists = {side: [] for side in SIDES} if he_alone and not path.exists() else read_split(path)
    unit = config.by
    known = {getattr(section, "id" if unit == "section" else "patient") for section in corpus.sections}
    assigned = _assign(lists, where, unit, known)
    if he_alone and unit == "patient":
        assigned |= dict.fromkeys(known - assigned.keys(), "train")
    can_train = {section.patient for section in corpus.sections
                 if section.holds("he") and (he_alone or section.has_counts)}  # fmt: skip
    unnamed = _unnamed(corpus, assigned, unit)
    if config.train_patients:
        assigned = _fewer(assigned, corpus, can_train, config, where)
    without_he = []
    sides: dict[str, list[Section]] = {side: [] for side in SIDES}
    for section in corpus.sections:
        side = assigned.get(section.id if unit == "section" else section.patient)
        if side is None or not (he_alone or section.has_counts):
            continue
        if not section.holds("he") and (he_alone or side != "held_out"):
            without_he += [] if he_alone else [section.id]
            continue
        sides[side].append(section.he_alone() if he_alone else section)
    for side in ("train",) if he_alone else ("train", "held_out"):
        if trains and not sides[side]:
            raise InputError(f"{where}: no section is on the side {side!r}; expected at least one")
    return Split(unit, *(tuple(sides[side]) for side in SIDES), tuple(without_he),
                 () if he_alone else unnamed)  # fmt: skip


def unnamed_patients(corpus: Corpus) -> tuple[str, ...]:
    """Patients with counts whom `split.tsv`, where there is one, does not name: they neither train nor are measured."""
    path = corpus.root / "split.tsv"
    if not path.exists():
        return ()
    return _unnamed(corpus, {name for names in read_split(path).values() for name in names}, "patient")


def _unnamed(corpus: Corpus, named: Collection[str], unit: str) -> tuple[str, ...]:
    with_counts = [section for section in corpus.sections if section.has_counts]
    found = {section.patient for section in with_counts}
    return tuple(sorted(found - {section.patient for section in with_counts
                                 if (section.id if unit == "section" else section.patient) in named}))  # fmt: skip


def read_split(path: Place) -> dict[str, list[str]]:
    """Reads `split.tsv` (columns patient, split); a patient on two lines with different sides stays on both."""
    try:
        lines = path.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8; save it as text with tabs, in UTF-8") from None
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; write one with the columns patient and split, or set config.split"
        ) from None
    if not lines or lines[0].split("\t") != ["patient", "split"]:
        raise InputError(f"{path}: first line is {lines[:1]}; expected 'patient<TAB>split'")
    lists: dict[str, list[str]] = {side: [] for side in SIDES}
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if len(cells) != 2 or cells[1] not in SIDES:
            raise InputError(
                f"{path}, line {number}: {line!r}; expected a patient, a tab and one of {', '.join(SIDES)}"
            )
        lists[cells[1]].append(cells[0])
    return lists


def _fewer(assigned: dict[str, str], corpus: Corpus, can_train: set[str], config: SplitConfig,
           where: str) -> dict[str, str]:  # fmt: skip
    """The split with the first `config.train_patients` training patients only: of any two sizes one holds the other.

    can_train: who has a section to train on; the others are not counted. Virtual patients come in an order that is
    stratified by itself, so these are those of a smaller cohort.
    """
    if config.by != "patient":
        raise InputError("config.split: train_patients counts patients; it goes with by='patient' only")
    training = {patient for patient, side in assigned.items() if side == "train"} & can_train
    if config.train_patients > len(training):
        raise InputError(f"{where}: names {len(training)} training patients; config.split.train_patients asks for "
                         f"{config.train_patients}")  # fmt: skip
    cohort_of = {row["patient"]: row["cohort"] for row in corpus.patients if row["patient"] in training}
    order = sorted(cohort_of) if corpus.kind == "virtual" else stratified_order(cohort_of)
    kept = set(order[: config.train_patients])
    return {patient: side for patient, side in assigned.items() if side != "train" or patient in kept}


def _assign(lists: dict[str, Iterable[str]], where: str, unit: str, known: set[str]) -> dict[str, str]:
    assigned: dict[str, str] = {}
    for side, names in lists.items():
        for name in names:
            if name not in known:
                raise InputError(f"{where}: {unit} {name!r} is not in the corpus; it holds {sorted(known)[:5]}")
            if assigned.setdefault(name, side) != side:
                raise InputError(
                    f"{where}: {unit} {name!r} is in {assigned[name]!r} and in {side!r}; expected one side"
                )
    return assigned
