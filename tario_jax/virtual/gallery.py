"""A gallery of fields without labels, for a reader who is to name the diagnoses, and the answers."""

import json

import numpy as np
from PIL import Image, ImageDraw

from tario_jax.virtual.architecture import build_architecture
from tario_jax.virtual.cells import draw_cells
from tario_jax.virtual.diagnoses import COHORT_SHARE, COHORTS, DIAGNOSES
from tario_jax.virtual.fields import Stream, generator
from tario_jax.virtual.patients import FIRST_NUMBER, Patient, draw_patient
from tario_jax.virtual.regions import region_of
from tario_jax.virtual.stain import UM_PER_PX, draw_he

FIELDS = 12
COLUMNS = 4
FIELD_UM = 400.0
TILE_PX = 450
GAP_PX = 8


def gallery_diagnoses() -> tuple[str, ...]:
    """The most frequent diagnosis of each cancer type, then the next most frequent ones of all, FIELDS together."""
    often = sorted(DIAGNOSES, key=lambda kind: -kind.share * COHORT_SHARE[kind.cohort])
    first = [next(kind for kind in often if kind.cohort == cohort) for cohort in COHORTS]
    rest = [kind for kind in often if kind not in first and not kind.held_out_only]
    return tuple(kind.name for kind in [*first, *rest[: FIELDS - len(first)]])


def gallery_patients(seed: int) -> list[Patient]:
    """The first held-out patient with each of those diagnoses, in an order that the seed shuffles."""
    wanted, found, number = set(gallery_diagnoses()), [], FIRST_NUMBER["held_out"]
    while wanted:
        patient = draw_patient(number, seed)
        if patient.diagnosis.name in wanted:
            wanted.remove(patient.diagnosis.name)
            found.append(patient)
        number += 1
    order = generator(seed, FIRST_NUMBER["held_out"], Stream.STAIN).permutation(FIELDS)
    return [found[k] for k in order]


def draw_gallery(path, answers_path, *, seed: int) -> None:
    """Writes a PNG of FIELDS numbered fields of FIELD_UM from the cores of as many patients, and a JSON of the answers.

    The JSON holds a list of objects with the field's number, patient, diagnosis and cancer type.
    """
    rows = -(-FIELDS // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (TILE_PX + GAP_PX) + GAP_PX, rows * (TILE_PX + GAP_PX) + GAP_PX), "white")
    pen = ImageDraw.Draw(sheet)
    answers = []
    for k, patient in enumerate(gallery_patients(seed)):
        left, top = (GAP_PX + (k % COLUMNS) * (TILE_PX + GAP_PX), GAP_PX + (k // COLUMNS) * (TILE_PX + GAP_PX))
        sheet.paste(Image.fromarray(_field(patient, seed)), (left, top))
        pen.rectangle((left, top, left + 30, top + 22), fill="white")
        pen.text((left + 5, top + 2), str(k + 1), fill="black", font_size=18)
        answers.append(
            {"field": k + 1, "patient": patient.id, "diagnosis": patient.diagnosis.name, "cohort": patient.cohort}
        )
    sheet.save(path)
    with open(answers_path, "w", encoding="utf-8") as file:
        json.dump(answers, file, indent=1)


def _field(patient: Patient, seed: int) -> np.ndarray:
    """The core of the patient's tumour, uint8 [TILE_PX, TILE_PX, 3]."""
    region = region_of(patient, "core", FIELD_UM)
    streams = [
        generator(seed, patient.number, s, region.index) for s in (Stream.ARCHITECTURE, Stream.CELLS, Stream.STAIN)
    ]
    plan = build_architecture(patient, region, streams[0])
    cells = draw_cells(patient, plan, streams[1])
    he = Image.fromarray(draw_he(patient, plan, cells, streams[2]))
    return np.asarray(he.resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS, box=(0, 0, *[FIELD_UM / UM_PER_PX] * 2)))
