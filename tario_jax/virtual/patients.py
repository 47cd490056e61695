"""Virtual patients: their numbers, their split, and what differs between them."""

import dataclasses
from typing import Literal

import numpy as np

from tario_jax.config import InputError
from tario_jax.virtual.fields import Stream, generator
from tario_jax.virtual.genes import COHORTS, TRAITS, UNSEEN_STATES, program

Side = Literal["train", "validation", "held_out"]

# Each side counts from a number of its own, so that a larger cohort holds every smaller one.
FIRST_NUMBER: dict[Side, int] = {"train": 0, "validation": 1_000_000, "held_out": 2_000_000}
ID_PREFIX: dict[Side, str] = {"train": "vt", "validation": "vv", "held_out": "vh"}
RANGE = 1_000_000


def patient_id(number: int) -> str:
    """The id of patient `number`: vt00017, vv00003 or vh00012 for train, validation and held-out.

    Raises `InputError` for a number outside the three ranges of a million.
    """
    for side, first in FIRST_NUMBER.items():
        if first <= number < first + RANGE:
            return f"{ID_PREFIX[side]}{number - first:05d}"
    raise InputError(f"virtual patient {number}: expected a number from 0 to {3 * RANGE - 1}")


def patient_number(patient: str) -> int:
    """The inverse of `patient_id`. Raises `InputError` for an id of another form."""
    for side, prefix in ID_PREFIX.items():
        if patient.startswith(prefix) and patient[2:].isdecimal() and int(patient[2:]) < RANGE:
            return FIRST_NUMBER[side] + int(patient[2:])
    raise InputError(f"virtual patient {patient!r}: expected an id such as vt00017, vv00003 or vh00012")


def cohort_split(train: int, validation: int, held_out: int) -> dict[str, Side]:
    """The side of each patient id, for this many patients a side.

    Cancer types take turns, so every side is balanced to within one patient, and every cohort is a prefix of a
    larger one. Raises `InputError` for a size below 0 or above a million.
    """
    sides: dict[str, Side] = {}
    for side, size in (("train", train), ("validation", validation), ("held_out", held_out)):
        if not 0 <= size <= RANGE:
            raise InputError(f"virtual cohort: {side} is {size}; expected 0 to {RANGE} patients")
        sides |= {patient_id(FIRST_NUMBER[side] + k): side for k in range(size)}
    return sides


@dataclasses.dataclass(frozen=True)
class Patient:
    """What one patient's sections share. Traits and levels are N(0, 1) across patients."""

    number: int
    id: str
    cohort: str
    trait_R: np.ndarray  # float64 [R] by TRAITS; drawn in the H&E
    tumour_share: float
    cell_spacing: float  # factor on the distance between cells
    vessel_density: float  # factor
    aggregates_per_mm2: float
    lumen: float  # how open the glands are, 0 to 1
    level_U: np.ndarray  # float64 [U] by UNSEEN_STATES; not drawn
    log_effect_G: np.ndarray  # float32 [G]; of mean exp = 1 given the traits
    hidden_log_effect_G: np.ndarray  # float32 [G]; the part of it that nothing drawn tells of
    efficiency: float  # detections made of expected ones; mean 1; not drawn

    @property
    def cohort_index(self) -> int:
        return COHORTS.index(self.cohort)

    def trait(self, name: str) -> float:
        return float(self.trait_R[TRAITS.index(name)])


TUMOUR_SHARE = {"LUAD": (0.35, 0.65), "BRCA": (0.35, 0.65), "SKCM": (0.5, 0.8)}
EFFICIENCY_SD = 0.2


def draw_patient(number: int, seed: int) -> Patient:
    """Patient `number` of the cohort with this seed: a function of both numbers alone."""
    identity = patient_id(number)
    rng = generator(seed, number, Stream.PATIENT)
    # place within its side, so that the first patient of each side is of the first cancer type
    cohort = COHORTS[number % RANGE % len(COHORTS)]
    trait_R = np.clip(rng.standard_normal(len(TRAITS)), -2, 2)
    low, high = TUMOUR_SHARE[cohort]
    genes = program()
    hidden_G = genes.patient_sd_G * rng.standard_normal(len(genes.panel)) - 0.5 * genes.patient_sd_G**2
    visible_G = trait_R @ genes.trait_loading_RxG
    return Patient(
        number, identity, cohort, trait_R,
        tumour_share=rng.uniform(low, high),
        cell_spacing=np.exp(0.06 * rng.standard_normal()),
        vessel_density=np.exp(0.3 * rng.standard_normal()),
        aggregates_per_mm2=4.0 * np.exp(0.6 * trait_R[TRAITS.index("immune")]),
        lumen=1 / (1 + np.exp(1.2 * trait_R[TRAITS.index("grade")] + 0.7 * rng.standard_normal())),
        level_U=rng.standard_normal(len(UNSEEN_STATES)),
        log_effect_G=(visible_G + hidden_G).astype(np.float32),
        hidden_log_effect_G=hidden_G.astype(np.float32),
        efficiency=np.exp(EFFICIENCY_SD * rng.standard_normal() - 0.5 * EFFICIENCY_SD**2),
    )  # fmt: skip
