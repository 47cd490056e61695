"""Virtual patients: their numbers, their split, and what differs between them.

Everything about a patient is a function of its number and the cohort's seed. Causes run one way: smoking and sex →
genotype → traits of the tissue → all that is drawn; genotype → unseen levels and the mutation's own genes → expression;
genotype → site of treatment → scanner and stain. In the tissue of an H&E a genotype therefore shows only through traits
that others have for other reasons.
"""

import dataclasses
import functools
from typing import Literal

import numpy as np
from scipy.special import ndtr, ndtri
from skimage.color import rgb_from_hed

from tario_jax.config import InputError
from tario_jax.virtual.diagnoses import COHORT_SHARE, COHORTS, DIAGNOSES, Diagnosis
from tario_jax.virtual.fields import Stream, generator
from tario_jax.virtual.genotype import (
    MUTATIONS,
    SITES,
    TRAIT_LIMIT,
    draw_genotype,
    female_share,
    logistic,
    shifts,
    site_chances,
    smoker_share,
)
from tario_jax.virtual.kinds import UNSEEN_STATES

Side = Literal["train", "validation", "held_out"]

# Each side counts from a number of its own, so that a larger cohort holds every smaller one.
FIRST_NUMBER: dict[Side, int] = {"train": 0, "validation": 1_000_000, "held_out": 2_000_000}
ID_PREFIX: dict[Side, str] = {"train": "vt", "validation": "vv", "held_out": "vh"}
RANGE = 1_000_000

TRAITS = ("grade", "immune", "immune_border", "fibrosis", "vascularity")
"""N(0, 1) within TRAIT_LIMIT across patients but for the shifts of genotypes; all drawn: nuclear size, infiltrate,
infiltrate at the tumour's border, collagen, vessels."""
SCANNERS = ("scanner_1", "scanner_2", "scanner_3", "scanner_4", "scanner_5")
HELD_OUT_SCANNER = SCANNERS[-1]
EFFICIENCY_SD = 0.2


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


def side_of(number: int) -> Side:
    """The side that patient `number` counts from."""
    return next(side for side, prefix in ID_PREFIX.items() if patient_id(number).startswith(prefix))


@functools.cache
def _turns() -> tuple[str, ...]:
    """Cancer types of a hundred patients in a row: each as often as its share says, and evenly spread."""
    owed, turns = dict.fromkeys(COHORTS, 0.0), []
    for _ in range(100):
        owed = {cohort: owed[cohort] + share for cohort, share in COHORT_SHARE.items()}
        turns.append(max(owed, key=lambda cohort: owed[cohort]))
        owed[turns[-1]] -= 1
    return tuple(turns)


def cohort_of(number: int) -> str:
    """Cancer type of patient `number`."""
    return _turns()[number % RANGE % 100]


def cohort_split(train: int, validation: int, held_out: int, cohorts: tuple[str, ...] = ()) -> dict[str, Side]:
    """The side of each patient id, for this many patients a side, of these cancer types (empty: all).

    All cancer types come as often as their shares say; named ones take turns, so that each has equally many to within
    one. A smaller cohort is part of every larger one. Raises `InputError` for a size that cannot be had or an unknown
    cancer type.
    """
    for cohort in cohorts:
        if cohort not in COHORTS:
            raise InputError(f"virtual cohort: cancer type {cohort!r}; expected some of {', '.join(COHORTS)}")
    sides: dict[str, Side] = {}
    for side, size in (("train", train), ("validation", validation), ("held_out", held_out)):
        if not 0 <= size <= RANGE // 100:
            raise InputError(f"virtual cohort: {side} is {size}; expected 0 to {RANGE // 100} patients")
        first = FIRST_NUMBER[side]
        if cohorts:
            named = tuple(dict.fromkeys(cohorts))
            turns = [[turn for turn, cohort in enumerate(_turns()) if cohort == name] for name in named]
            indices = []
            for k in range(size):  # the how-manieth of its cancer type it is says in which hundred it stands
                nth, mine = k // len(named), turns[k % len(named)]
                indices.append(nth // len(mine) * 100 + mine[nth % len(mine)])
        else:
            indices = list(range(size))
        sides |= {patient_id(first + k): side for k in indices}
    return sides


@dataclasses.dataclass(frozen=True)
class Stain:
    """How one patient's slides were stained, cut and scanned."""

    haematoxylin: float  # factors on the densities
    eosin: float
    vector_2x3: np.ndarray  # optical density of haematoxylin and eosin in red, green and blue; unit length
    white_3: np.ndarray  # light where there is no tissue, 0 to 255
    focus_px: float  # sigma of the blur
    noise: float  # of the camera, in grey levels
    jpeg_quality: int
    shift_um_2: np.ndarray  # of the H&E against the detections (x, y); at most 5 µm long


@dataclasses.dataclass(frozen=True)
class Patient:
    """What one patient's sections share. Traits and levels are about N(0, 1) across patients."""

    number: int
    id: str
    side: Side
    cohort: str
    diagnosis: Diagnosis
    sex: Literal["female", "male"]
    smoker: bool
    mutated: dict[str, bool]  # by MUTATIONS in NSCLC, else empty
    treated: bool  # in the arm whose response is known
    responded: bool | None
    site: str
    scanner: str
    stain: Stain
    trait_R: np.ndarray  # float64 [R] by TRAITS; drawn in the H&E
    tumour_share: float
    cell_spacing: float  # factor on the distance between cells
    vessel_density: float  # factor
    aggregates_per_mm2: float
    lumen: float  # how open the glands are, 0 to 1
    necrosis: float  # share of tumour that is necrotic
    level_U: np.ndarray  # float64 [U] by UNSEEN_STATES; not drawn
    efficiency: float  # detections made of expected ones; mean 1; not drawn

    def trait(self, name: str) -> float:
        return float(self.trait_R[TRAITS.index(name)])

    def columns(self) -> dict[str, str]:
        """Of the patients' table: what a clinic would know."""
        known = {
            "diagnosis": self.diagnosis.name, "sex": self.sex, "smoker": str(self.smoker).lower(), "site": self.site,
            "scanner": self.scanner, "grade": str(1 + int(self.trait("grade") > -0.6) + int(self.trait("grade") > 0.6)),
            "treated": str(self.treated).lower(),
            "response": "" if self.responded is None else str(self.responded).lower(),
        }  # fmt: skip
        mutations = {name: str(self.mutated[name]).lower() if name in self.mutated else "" for name in MUTATIONS}
        return known | mutations


def _diagnosis(cohort: str, side: Side, rng: np.random.Generator) -> Diagnosis:
    known = [d for d in DIAGNOSES if d.cohort == cohort and (side == "held_out" or not d.held_out_only)]
    level = np.cumsum([d.share for d in known])
    return known[int((rng.random() * level[-1] >= level).sum())]


def _site_and_scanner(mutated: dict[str, bool], side: Side, rng: np.random.Generator) -> tuple[str, str]:
    level = np.cumsum(site_chances(mutated))
    site = int((rng.random() * level[-1] >= level).sum())
    # a site has its scanner, and now and then sends slides elsewhere
    choice, elsewhere = rng.random(2)
    scanner = site % 4 if choice < 0.8 else int(elsewhere * 4)
    if side == "held_out" and rng.random() < 0.12:
        return SITES[site], HELD_OUT_SCANNER
    return SITES[site], SCANNERS[scanner]


# what a site does to the stain (log factors on haematoxylin and eosin), and a scanner to the light
_GAIN = np.array([1.58, 0.95])  # fitted to real slides: both stains as dense as there (`tario check --realism`)
_SITE_STAIN = np.array([(0.0, 0.0), (0.12, -0.12), (-0.12, 0.10), (0.06, 0.20), (-0.10, -0.15), (0.15, 0.08)])
_SCANNER_WHITE = np.array([(244, 243, 244), (240, 236, 239), (247, 247, 245), (238, 240, 243), (246, 240, 232)])
_SCANNER_FOCUS_PX = (0.60, 0.85, 0.70, 1.05, 0.95)
_SCANNER_QUALITY = (90, 80, 85, 75, 70)


def _stain(site: str, scanner: str, rng: np.random.Generator) -> Stain:
    which, machine = SITES.index(site), SCANNERS.index(scanner)
    gain = _GAIN * np.exp(_SITE_STAIN[which] + [0.10, 0.12] * rng.standard_normal(2))
    vector_2x3 = rgb_from_hed[:2] + 0.03 * rng.standard_normal((2, 3))
    vector_2x3 += 0.02 * np.sin(1.7 * which + np.arange(6).reshape(2, 3))  # the site's own dyes
    vector_2x3 = np.clip(vector_2x3, 0.03, None)
    vector_2x3 /= np.linalg.norm(vector_2x3, axis=1, keepdims=True)
    white_3 = np.minimum(_SCANNER_WHITE[machine] * np.exp(0.008 * rng.standard_normal(3)), 254)
    turn, length_um = rng.uniform(0, 2 * np.pi), rng.uniform(0, 5)
    return Stain(
        float(gain[0]), float(gain[1]), vector_2x3, white_3,
        focus_px=float(_SCANNER_FOCUS_PX[machine] * np.exp(0.15 * rng.standard_normal())),
        noise=1.6, jpeg_quality=int(np.clip(_SCANNER_QUALITY[machine] + rng.integers(-4, 5), 60, 95)),
        shift_um_2=length_um * np.array([np.cos(turn), np.sin(turn)]),
    )  # fmt: skip


def draw_patient(number: int, seed: int) -> Patient:
    """Patient `number` of the cohort with this seed: a function of both numbers alone."""
    identity = patient_id(number)
    side = side_of(number)
    rng = generator(seed, number, Stream.PATIENT)
    cohort = cohort_of(number)
    kind = _diagnosis(cohort, side, rng)
    female = bool(rng.random() < female_share(cohort))
    smoker = bool(rng.random() < smoker_share(cohort))
    mutated = draw_genotype(cohort, female, smoker, rng)
    low, high = ndtr([-TRAIT_LIMIT, TRAIT_LIMIT])
    trait_R = ndtri(low + (high - low) * rng.random(len(TRAITS))) + shifts(mutated, TRAITS)
    level_U = rng.standard_normal(len(UNSEEN_STATES)) + shifts(mutated, UNSEEN_STATES)
    trait = dict(zip(TRAITS, trait_R, strict=True))
    site, scanner = _site_and_scanner(mutated, side, rng)
    stain = _stain(site, scanner, rng)
    treated = bool(rng.random() < 0.6)
    responds = rng.random() < logistic(
        -0.9 + 1.1 * trait["immune_border"] + 0.3 * trait["immune"] - 1.2 * mutated.get("STK11", False)
    )
    return Patient(
        number, identity, side, cohort, kind, "female" if female else "male", smoker, mutated, treated,
        bool(responds) if treated else None, site, scanner, stain, trait_R,
        tumour_share=float(rng.uniform(*kind.tumour_share)),
        cell_spacing=float(np.exp(0.06 * rng.standard_normal())),
        vessel_density=float(kind.vessels * np.exp(0.25 * trait["vascularity"] + 0.15 * rng.standard_normal())),
        aggregates_per_mm2=float(4.0 * kind.lymphoid * np.exp(0.6 * trait["immune"])),
        lumen=logistic(-1.2 * trait["grade"] + 0.7 * rng.standard_normal()),
        necrosis=float(kind.necrosis * np.exp(0.7 * rng.standard_normal() + 0.4 * trait["grade"])),
        level_U=level_U,
        efficiency=float(np.exp(EFFICIENCY_SD * rng.standard_normal() - 0.5 * EFFICIENCY_SD**2)),
    )  # fmt: skip
