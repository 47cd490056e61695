"""One virtual section, from the number of its patient to image, detections and truth."""

from tario_jax.config import InputError
from tario_jax.corpus.section import SectionData
from tario_jax.virtual.architecture import Architecture, build_architecture
from tario_jax.virtual.cells import Cells, draw_cells
from tario_jax.virtual.expression import draw_detections, draw_unseen, draw_visible, section_truth, true_rates
from tario_jax.virtual.fields import Stream, generator
from tario_jax.virtual.patients import Patient, draw_patient
from tario_jax.virtual.stain import UM_PER_PX, draw_he

LEAST_SECTION_UM = 64.0


def draw_tissue(patient: Patient, *, seed: int, section_um: float) -> tuple[Architecture, Cells]:
    """Everything of a section that its H&E shows, before it is painted."""
    plan = build_architecture(patient, section_um, generator(seed, patient.number, Stream.ARCHITECTURE))
    return plan, draw_cells(patient, plan, generator(seed, patient.number, Stream.CELLS))


def simulate_section(patient: int, *, seed: int, section_um: float, with_truth: bool, truth_bin_um: float = 36.0,
                     detections_per_cell: float = 90.0) -> SectionData:  # fmt: skip
    """The section of virtual patient number `patient`, square, of side `section_um`.

    A pure function of its arguments: the same bits in any process, whatever other patients are simulated.
    H&E is uint8 at 0.5 µm per px. `detections_per_cell` is that of a typical cell, before efficiency. With
    `with_truth` the section carries T and V at `truth_bin_um`, floor(section_um / truth_bin_um) bins a side. What
    counts as drawn in V is in the docstring of `tario_jax.virtual`.
    Raises `InputError` for a section too small to hold tissue or a bin, a negative seed or depth.
    """
    if not section_um >= LEAST_SECTION_UM:
        raise InputError(f"virtual section: section_um is {section_um}; expected at least {LEAST_SECTION_UM:.0f}")
    if not 0 < truth_bin_um <= section_um:
        raise InputError(f"virtual section: truth_bin_um is {truth_bin_um}; expected more than 0, at most section_um")
    if not detections_per_cell > 0:
        raise InputError(f"virtual section: detections_per_cell is {detections_per_cell}; expected more than 0")
    if seed < 0:
        raise InputError(f"virtual section: seed is {seed}; expected 0 or more")
    person = draw_patient(patient, seed)
    plan, cells = draw_tissue(person, seed=seed, section_um=section_um)
    he = draw_he(person, plan, cells, generator(seed, patient, Stream.STAIN))

    rng = generator(seed, patient, Stream.HIDDEN)
    visible = draw_visible(cells, section_um, detections_per_cell, rng)
    hidden = draw_unseen(person, cells, section_um, rng)
    rate_NxG = true_rates(person, visible, hidden)
    detections = draw_detections(cells, rate_NxG, section_um, generator(seed, patient, Stream.DETECTIONS))
    truth = section_truth(person, cells, visible, rate_NxG, section_um, truth_bin_um, seed) if with_truth else None
    return SectionData(
        section_id=f"{person.id}_a", patient_id=person.id, cohort=person.cohort, width_um=section_um,
        height_um=section_um, he_um_per_px=UM_PER_PX, he=he, detections=detections,
        registration="same_section_after", quality={"cells": float(len(cells))},
        patient={name: f"{value:.3f}" for name, value in (("grade", person.trait("grade")),)}, truth=truth,
    )  # fmt: skip
