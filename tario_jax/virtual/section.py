"""One virtual section, from the number of its patient to image, detections and what its truth is computed from."""

import dataclasses
from typing import Literal

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.section import SectionData
from tario_jax.virtual.architecture import Architecture, build_architecture
from tario_jax.virtual.assay import Assay, draw_assay
from tario_jax.virtual.cells import Cells, draw_cells
from tario_jax.virtual.detections import draw_detections
from tario_jax.virtual.fields import Stream, generator
from tario_jax.virtual.genes import Program, program
from tario_jax.virtual.hidden import Hidden, draw_fields, draw_hidden
from tario_jax.virtual.patients import Patient, draw_patient
from tario_jax.virtual.rates import DEPTHS, Expression, Loadings, express, null_fields, patient_weights
from tario_jax.virtual.regions import LARGE_UM, REGION_NAMES, Region, region_of, section_id
from tario_jax.virtual.stain import UM_PER_PX, draw_he
from tario_jax.virtual.truth import make_bins, reachable_rates, true_rates

LEAST_SECTION_UM = 64.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a cohort is simulated with; the same for all of its patients."""

    seed: int = 0
    section_um: float = 512.0  # side of core and border regions
    depth: Literal["low", "default", "high"] = "default"  # rates.DEPTHS
    panel: Literal["curated", "whole"] = "whole"

    def __post_init__(self):
        if not LEAST_SECTION_UM <= self.section_um <= LARGE_UM:
            raise InputError(
                f"virtual section: section_um is {self.section_um}; expected {LEAST_SECTION_UM:.0f} to {LARGE_UM:.0f}"
            )
        if not 0 <= self.seed < 2**63:
            raise InputError(f"virtual section: seed is {self.seed}; expected 0 to 2^63 - 1")
        if self.depth not in DEPTHS:
            raise InputError(f"virtual section: depth is {self.depth!r}; expected one of {', '.join(DEPTHS)}")

    @property
    def genes(self) -> Program:
        return program(self.panel == "curated")


def draw_tissue(patient: Patient, region: Region, settings: Settings) -> tuple[Architecture, Cells]:
    """Everything of a section that its H&E shows, before it is painted."""
    streams = settings.seed, patient.number
    plan = build_architecture(patient, region, generator(*streams, Stream.ARCHITECTURE, region.index))
    return plan, draw_cells(patient, plan, generator(*streams, Stream.CELLS, region.index))


def draw_expression(patient: Patient, region: Region, cells: Cells, settings: Settings,
                    hidden: Hidden | None = None) -> tuple[Expression, Hidden, Assay]:  # fmt: skip
    """What the cells of a section express and how the assay sees it; `hidden` is drawn where it is not given."""
    genes, streams = settings.genes, (settings.seed, patient.number)
    if hidden is None:
        rng = generator(*streams, Stream.HIDDEN, region.index)
        field_NxF = draw_fields(cells, region.side_um, rng, 1)[..., 0]
        hidden = draw_hidden(cells, region.side_um, field_NxF, patient.level_U, rng.random(len(cells)))
    assay = draw_assay(region.side_um, generator(*streams, Stream.ASSAY, region.index))
    null_NxK = null_fields(cells, region.side_um, len(genes.genes_of("null")),
                           generator(*streams, Stream.NULL, region.index))  # fmt: skip
    scale_N = DEPTHS[settings.depth] * patient.efficiency * assay.efficiency(cells.x_um_N, cells.y_um_N)
    weight_TxG = patient_weights(patient, genes, settings.seed, known=True)
    return express(weight_TxG, genes, Loadings.of(genes), cells, hidden, scale_N, null_NxK), hidden, assay


def simulate_section(number: int, region: str, settings: Settings) -> SectionData:
    """The region of that name of virtual patient `number`; H&E is uint8 at 0.5 µm per px.

    A pure function of its arguments: the same bits in any process, whatever other patients are simulated. The section
    carries the cells from which `truth_rates` computes T and V. Raises `InputError` where there is no such region.
    """
    patient = draw_patient(number, settings.seed)
    place = region_of(patient, region, settings.section_um)
    plan, cells = draw_tissue(patient, place, settings)
    he = draw_he(patient, plan, cells, generator(settings.seed, number, Stream.STAIN, place.index))
    expression, hidden, assay = draw_expression(patient, place, cells, settings)
    detections, probes = draw_detections(
        cells, expression, settings.genes, assay, generator(settings.seed, number, Stream.DETECTIONS, place.index)
    )
    return SectionData(
        section_id=section_id(patient, place), patient_id=patient.id, cohort=patient.cohort, width_um=place.side_um,
        height_um=place.side_um, he_um_per_px=UM_PER_PX, he=he, detections=detections,
        registration="same_section_after", quality={"cells": float(len(cells)), "negative_probes": float(probes)},
        patient=patient.columns(), truth=_stored(number, place, settings, cells, hidden),
    )  # fmt: skip


def _stored(number: int, region: Region, settings: Settings, cells: Cells, hidden: Hidden) -> dict[str, np.ndarray]:
    numbers = [number, region.index, settings.seed, list(DEPTHS).index(settings.depth), settings.panel == "whole"]
    stored = {f"cells_{field.name}": getattr(cells, field.name) for field in dataclasses.fields(Cells)}
    stored |= {f"hidden_{field.name}": getattr(hidden, field.name) for field in dataclasses.fields(Hidden)}
    return stored | {"numbers": np.array(numbers, np.int64), "section_um": np.array([settings.section_um])}


def truth_rates(stored: dict[str, np.ndarray], bin_um: float, wanted: np.ndarray | None = None,
                *, reachable: bool = True) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
    """T and V of a section from the truth that is stored beside it, float32 [rows, columns, G] each.

    wanted: positions of genes in the panel, in rising order (all by default). V is None unless `reachable`. Bins count
    from the section's origin; those that reach beyond it are left out.
    """
    number, index, seed, depth, whole = (int(value) for value in stored["numbers"])
    settings = Settings(seed, float(stored["section_um"][0]), list(DEPTHS)[depth], "whole" if whole else "curated")
    patient = draw_patient(number, seed)
    region = region_of(patient, REGION_NAMES[index], settings.section_um)
    cells, hidden = (
        kind(**{field.name: stored[f"{prefix}_{field.name}"] for field in dataclasses.fields(kind)})
        for kind, prefix in ((Cells, "cells"), (Hidden, "hidden"))
    )
    genes = settings.genes
    wanted = np.arange(len(genes.panel)) if wanted is None else wanted
    bins, loadings = make_bins(cells, region.side_um, bin_um), Loadings.of(genes)
    expression, _, assay = draw_expression(patient, region, cells, settings, hidden)
    true = true_rates(expression, cells, bins, genes, loadings, assay, wanted)
    if not reachable:
        return true, None
    return true, reachable_rates(
        patient, cells, bins, genes, loadings, seed=seed, region=index, section_um=region.side_um,
        depth=DEPTHS[settings.depth], wanted=wanted,
    )  # fmt: skip


def bulk_rates(patient: Patient, region: Region, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """T and V of a whole region, float64 [G] each, without painting it or drawing a detection."""
    genes = settings.genes
    _, cells = draw_tissue(patient, region, settings)
    expression, _, assay = draw_expression(patient, region, cells, settings)
    bins, loadings = make_bins(cells, region.side_um, region.side_um), Loadings.of(genes)
    wanted = np.arange(len(genes.panel))
    true = true_rates(expression, cells, bins, genes, loadings, assay, wanted)
    reachable = reachable_rates(
        patient, cells, bins, genes, loadings, seed=settings.seed, region=region.index, section_um=region.side_um,
        depth=DEPTHS[settings.depth], wanted=wanted,
    )  # fmt: skip
    return true[0, 0].astype(np.float64), reachable[0, 0].astype(np.float64)
