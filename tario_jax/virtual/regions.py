"""The regions of a patient that are imaged: one in the tumour's core, one at its border, of some a large one."""

import dataclasses

from tario_jax.config import InputError
from tario_jax.virtual.patients import RANGE, Patient, side_of

REGION_NAMES = ("core", "border", "large")
LARGE_UM = 2048.0
# every so many patients have a large region; together at least 200 of 2,545 + 64 + 213, 24 of them held out
LARGE_EVERY = {"train": 14, "validation": 14, "held_out": 8}


@dataclasses.dataclass(frozen=True)
class Region:
    """A square of tissue."""

    name: str  # of REGION_NAMES
    side_um: float
    tumour_share: float  # of its area
    at_border: bool  # the outer border of the tumour runs through it

    @property
    def index(self) -> int:
        """Its stream of random numbers within the patient."""
        return REGION_NAMES.index(self.name)


def region_of(patient: Patient, name: str, side_um: float) -> Region:
    """The patient's region of that name; core and border are of side_um. Raises `InputError` where there is none."""
    if name not in REGION_NAMES or (name == "large" and not has_large(patient.number)):
        raise InputError(f"virtual patient {patient.id}: has no region {name!r}; "
                         f"expected one of {', '.join(names_of_regions(patient.number))}")  # fmt: skip
    share = patient.tumour_share * {"core": 1.0, "border": 0.55, "large": 0.85}[name]
    return Region(name, LARGE_UM if name == "large" else side_um, share, name != "core")


def names_of_regions(number: int) -> tuple[str, ...]:
    """The regions of patient `number`."""
    return REGION_NAMES if has_large(number) else REGION_NAMES[:2]


def has_large(number: int) -> bool:
    return number % RANGE % LARGE_EVERY[side_of(number)] == 0


def section_id(patient: Patient, region: Region) -> str:
    return f"{patient.id}_{region.name}"
