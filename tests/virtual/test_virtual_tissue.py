"""Virtual tissue: every diagnosis draws, every trait shows where it should, and cells stand as cells stand."""

import dataclasses
import functools
import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from scipy import spatial

from tario_jax.virtual import gallery
from tario_jax.virtual.architecture import Architecture, between_nodes, build_architecture
from tario_jax.virtual.cells import Cells, draw_cells
from tario_jax.virtual.diagnoses import COHORTS, DIAGNOSES, Diagnosis
from tario_jax.virtual.fields import generator
from tario_jax.virtual.kinds import (
    ADIPOCYTE,
    EPITHELIUM,
    LYMPHOCYTE,
    MYELOID,
    STATE_LIMIT,
    TUMOUR,
    VESSEL_WALL,
    VISIBLE_STATES,
)
from tario_jax.virtual.patients import TRAITS, Patient, draw_patient
from tario_jax.virtual.regions import Region
from tario_jax.virtual.stain import UM_PER_PX, draw_he

SIDE_UM = 300.0


@functools.cache
def patient_with(name: str) -> Patient:
    """A held-out patient with that diagnosis, of middling traits and a plain stain."""
    number = 2_000_000
    while draw_patient(number, 0).diagnosis.name != name:
        number += 1
    found = draw_patient(number, 0)
    middling = {"tumour_share": 0.65, "cell_spacing": 1.0, "aggregates_per_mm2": 4.0, "lumen": 0.7}
    return dataclasses.replace(found, trait_R=np.zeros(len(TRAITS)), **middling)


def with_traits(patient: Patient, **values: float) -> Patient:
    return dataclasses.replace(patient, trait_R=np.array([values.get(name, 0.0) for name in TRAITS]))


def with_kind(patient: Patient, **values) -> Patient:
    return dataclasses.replace(patient, diagnosis=dataclasses.replace(patient.diagnosis, **values))


def with_stain(patient: Patient, **values) -> Patient:
    return dataclasses.replace(patient, stain=dataclasses.replace(patient.stain, **values))


def tissue(patient: Patient, *, side_um: float = SIDE_UM, at_border: bool = False, draw: int = 0):
    share = patient.tumour_share * (0.55 if at_border else 1.0)
    region = Region("border" if at_border else "core", side_um, share, at_border)
    plan = build_architecture(patient, region, generator(draw, 1, 1))
    return plan, draw_cells(patient, plan, generator(draw, 1, 2))


def image(patient: Patient, plan: Architecture, cells: Cells, draw: int = 0) -> np.ndarray:
    return draw_he(patient, plan, cells, generator(draw, 1, 4))


def counted(look: int, cells: Cells) -> int:
    return int((cells.look_N == look).sum())


def state(name: str, cells: Cells) -> np.ndarray:
    return cells.state_NxV[:, VISIBLE_STATES.index(name)]


def density(he_YxXx3: np.ndarray, patient: Patient) -> np.ndarray:
    return -np.log(np.maximum(he_YxXx3, 1) / patient.stain.white_3)


def on_pixels(grid: np.ndarray, he: np.ndarray) -> np.ndarray:
    """A grid of the plan at each pixel."""
    place_um = (np.arange(he.shape[0]) + 0.5) * UM_PER_PX
    return between_nodes(grid, *np.meshgrid(place_um, place_um))


def unmoved(patient: Patient) -> Patient:
    return with_stain(patient, shift_um_2=np.zeros(2))


@pytest.mark.parametrize("kind", DIAGNOSES, ids=lambda kind: kind.name)
def test_every_diagnosis_draws(kind: Diagnosis):
    patient = patient_with(kind.name)
    for at_border in (True, False):
        plan, cells = tissue(patient, side_um=160.0, at_border=at_border)
        assert ((cells.x_um_N >= 0) & (cells.x_um_N < 160) & (cells.y_um_N >= 0) & (cells.y_um_N < 160)).all()
        assert (cells.cell_um_Nx2 > cells.nucleus_um_Nx2).all()
        assert np.abs(cells.state_NxV).max() <= STATE_LIMIT
        assert cells.look_N.dtype == np.int8 and cells.state_NxV.dtype == np.float32
        assert all(np.isfinite(getattr(cells, field.name)).all() for field in dataclasses.fields(Cells))
    assert counted(TUMOUR, cells) > 1
    he = image(patient, plan, cells)
    assert he.dtype == np.uint8 and he.shape == (320, 320, 3)
    assert 10 < he.std()


def test_same_numbers_give_same_bits():
    def digest(draw: int) -> str:
        patient = draw_patient(2_000_001, 0)
        plan, cells = tissue(patient, side_um=128.0, draw=draw)
        arrays = [getattr(cells, field.name) for field in dataclasses.fields(Cells)] + [
            image(patient, plan, cells, draw)
        ]
        return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()

    assert digest(0) == digest(0)
    assert digest(0) != digest(1)


@pytest.mark.parametrize("side_um", [64.0, 100.5, 130.0])
def test_odd_sides_draw(side_um: float):
    patient = patient_with("breast carcinoma, ductal")
    plan, cells = tissue(patient, side_um=side_um)
    assert image(patient, plan, cells).shape == (round(side_um * 2), round(side_um * 2), 3)


# What each field of a diagnosis is tried on, and the value that must change the picture. `vessels` and `necrosis`
# act through the patient's own values, which have tests below.
FIELD_CHANGES = {
    "pattern": ("breast carcinoma, ductal", "sheets"), "pitch_um": ("breast carcinoma, ductal", 90.0),
    "compartment_um": ("breast carcinoma, ductal", 40.0), "cell_spacing": ("melanoma, epithelioid", 1.3),
    "nucleus_size": ("melanoma, epithelioid", 1.3), "nucleus_stretch": ("melanoma, spindle cell", 1.2),
    "nucleolus": ("melanoma, epithelioid", 0.1), "clear_cytoplasm": ("renal carcinoma, clear cell", 0.0),
    "eosinophilia": ("renal carcinoma, papillary", 0.7), "membrane": ("renal carcinoma, chromophobe", 0.0),
    "mucin": ("lung adenocarcinoma, mucinous", 0.0), "keratin": ("lung squamous carcinoma, keratinising", 0.0),
    "desmoplasia": ("breast carcinoma, ductal", 0.0), "pigment": ("melanoma, epithelioid", 0.0),
    "fat": ("breast carcinoma, ductal", 0.0), "lymphoid": ("breast carcinoma, ductal", 3.0),
    "fill": ("breast carcinoma, ductal", 0.3), "height_um": ("lung adenocarcinoma, acinar", 9.0),
    "apical_um": ("lung adenocarcinoma, mucinous", 3.0), "sieve_um": ("prostate adenocarcinoma, cribriform", 50.0),
    "pleomorphism": ("ovarian carcinoma, high-grade serous", 0.0),
    "calcification": ("ovarian carcinoma, high-grade serous", 4.0),
    "tubules": ("breast carcinoma, ductal", 0.9), "carbon": ("lung adenocarcinoma, acinar", 0.0),
}  # fmt: skip


@pytest.mark.parametrize("field", FIELD_CHANGES)
def test_every_field_of_a_diagnosis_shows(field: str):
    name, value = FIELD_CHANGES[field]
    patient = patient_with(name)
    before, after = (image(p, *tissue(p, side_um=176.0)) for p in (patient, with_kind(patient, **{field: value})))
    assert np.abs(before.astype(int) - after).mean() > 0.5


def test_no_field_of_a_diagnosis_is_forgotten():
    elsewhere = {"name", "cohort", "share", "tumour_share", "vessels", "necrosis", "held_out_only"}
    assert {field.name for field in dataclasses.fields(Diagnosis)} == elsewhere | set(FIELD_CHANGES)


def test_tumour_takes_its_share_and_ends_at_its_border():
    patient = patient_with("melanoma, epithelioid")
    plan, cells = tissue(patient, side_um=400.0)
    assert abs((plan.bed_um < 0).mean() - 0.65) < 0.06
    plan, cells = tissue(patient, side_um=400.0, at_border=True)
    assert abs((plan.bed_um < 0).mean() - 0.55 * 0.65) < 0.06
    edge_um = between_nodes(plan.edge_um, cells.x_um_N, cells.y_um_N)
    assert (edge_um > 60).sum() > 50
    assert not (cells.look_N[edge_um > 30] == TUMOUR).any()


def test_immune_border_lines_the_border():
    patient = patient_with("lung adenocarcinoma, acinar")
    lined = []
    for trait in (-1.5, 1.5):
        plan, cells = tissue(with_traits(patient, immune_border=trait), at_border=True)
        near = np.abs(between_nodes(plan.edge_um, cells.x_um_N, cells.y_um_N)) < 40
        lined.append((near & (cells.look_N == LYMPHOCYTE) & (cells.aggregate_um_N > 0)).sum())
    assert lined[1] > 2 * lined[0]


def test_immune_raises_lymphocytes_everywhere():
    patient = patient_with("colorectal adenocarcinoma")
    patient = dataclasses.replace(patient, aggregates_per_mm2=0.0)
    few, many = (tissue(with_traits(patient, immune=t)) for t in (-1.5, 1.5))
    for inside in (True, False):
        lymphocytes = [
            (
                (cells.look_N == LYMPHOCYTE)
                & ((between_nodes(plan.gland_um, cells.x_um_N, cells.y_um_N) < 0) == inside)
            ).sum()
            for plan, cells in (few, many)
        ]
        assert lymphocytes[1] > 1.7 * lymphocytes[0]


def test_grade_enlarges_nuclei_and_makes_them_differ():
    patient = patient_with("melanoma, epithelioid")
    low, high = (tissue(with_traits(patient, grade=t))[1] for t in (-2.0, 2.0))
    area = [cells.nucleus_um_Nx2[cells.look_N == TUMOUR].prod(1) for cells in (low, high)]
    assert np.median(area[1]) > 1.2 * np.median(area[0])
    assert np.log(area[1]).std() > 1.2 * np.log(area[0]).std()
    assert high.mitosis_N.sum() > low.mitosis_N.sum()


def test_fibrosis_thickens_collagen():
    patient = unmoved(patient_with("breast carcinoma, ductal"))
    green = []
    for trait in (-2.0, 2.0):
        plan, cells = tissue(with_traits(patient, fibrosis=trait))
        he = image(patient, plan, cells)
        stroma = (on_pixels(plan.gland_um, he) > 6) & (on_pixels(plan.fat_um, he) > 6)
        green.append(np.median(density(he, patient)[stroma][:, 1]))
    assert green[1] > 1.3 * green[0]


def test_vessel_density_and_cell_spacing_and_aggregates():
    patient = patient_with("lung adenocarcinoma, solid")
    spindle = patient_with("melanoma, spindle cell")
    few, many = (tissue(dataclasses.replace(spindle, vessel_density=v), side_um=400.0)[1] for v in (0.4, 2.0))
    assert counted(VESSEL_WALL, many) > 1.5 * counted(VESSEL_WALL, few)
    assert np.median(many.vessel_um_N) < np.median(few.vessel_um_N)
    dense, loose = (tissue(dataclasses.replace(patient, cell_spacing=s))[1] for s in (0.9, 1.15))
    assert len(dense) > 1.3 * len(loose)
    none, lots = (tissue(dataclasses.replace(patient, aggregates_per_mm2=a), side_um=400.0)[1] for a in (0.0, 25.0))
    assert not (none.aggregate_um_N < 0).any()
    assert (lots.aggregate_um_N < 0).sum() > 100


def test_aggregates_around_the_region_count():
    patient = dataclasses.replace(patient_with("melanoma, epithelioid"), aggregates_per_mm2=3.0)
    plans = [tissue(patient, side_um=100.0, draw=draw)[0] for draw in range(12)]
    outside = [plan.aggregate_um.min() for plan in plans if plan.aggregate_um.min() > 0]
    # most small regions hold none, and yet know how far the next one is
    assert len(outside) > 5 and np.mean(np.array(outside) < 400) > 0.6


@pytest.mark.parametrize("name", ["lung adenocarcinoma, acinar", "prostate adenocarcinoma, acinar"])
def test_openness_opens_glands_and_they_are_empty(name: str):
    patient = unmoved(with_kind(patient_with(name), mucin=0.0))
    closed, opened = (tissue(dataclasses.replace(patient, lumen=v)) for v in (0.05, 0.95))
    assert (opened[0].lumen_um < 0).sum() > 1.25 * (closed[0].lumen_um < 0).sum()
    plan, cells = opened
    assert not (between_nodes(plan.lumen_um, cells.x_um_N, cells.y_um_N) < 0)[cells.look_N == TUMOUR].any()
    he = image(patient, plan, cells)
    inside = on_pixels(np.where(plan.vessel_um > 8, plan.lumen_um, 50.0), he) < -4
    assert inside.sum() > 500
    assert np.median(density(he, patient)[inside]) < 0.06


def test_necrosis_is_the_patients_share_and_lies_far_from_vessels():
    patient = patient_with("lung adenocarcinoma, solid")
    _, none = tissue(dataclasses.replace(patient, necrosis=0.0))
    plan, some = tissue(dataclasses.replace(patient, necrosis=0.25), side_um=400.0)
    assert not none.necrotic_N.any()
    tumour = some.look_N == TUMOUR
    assert 0.1 < some.necrotic_N.sum() / tumour.sum() < 0.3
    assert some.vessel_um_N[some.necrotic_N].mean() > some.vessel_um_N[tumour & ~some.necrotic_N].mean() + 10
    assert not some.mitosis_N[some.necrotic_N].any()


def test_hypoxia_grows_with_the_distance_to_a_vessel():
    _, cells = tissue(patient_with("lung adenocarcinoma, solid"))
    order = np.argsort(cells.vessel_um_N)
    hypoxia = state("hypoxia", cells)[order]
    assert (np.diff(hypoxia) >= 0).all()
    assert hypoxia[-1] > hypoxia[0] + 1


def test_keratin_rises_to_the_middle_of_nests_and_is_pink():
    patient = unmoved(patient_with("lung squamous carcinoma, keratinising"))
    plan, cells = tissue(patient, side_um=400.0)
    tumour = cells.look_N == TUMOUR
    depth_um = -between_nodes(plan.gland_um, cells.x_um_N, cells.y_um_N)
    keratin = state("keratinisation", cells)
    assert keratin[tumour & (depth_um > 30)].mean() > keratin[tumour & (depth_um < 8)].mean() + 0.7
    he = image(patient, plan, cells)
    pearl = on_pixels(plan.keratin, he) > 0.6
    assert pearl.sum() > 100
    blue_and_pink = [density(he, patient)[where].mean(0) for where in (pearl, ~pearl)]
    assert blue_and_pink[0][1] / blue_and_pink[0][0] > 1.5 * blue_and_pink[1][1] / blue_and_pink[1][0]


def test_emt_is_highest_at_the_border_and_lengthens_nuclei():
    patient = patient_with("melanoma, epithelioid")
    plan, cells = tissue(patient, side_um=400.0)
    tumour = cells.look_N == TUMOUR
    depth_um = -between_nodes(plan.gland_um, cells.x_um_N, cells.y_um_N)
    emt = state("emt", cells)
    assert emt[tumour & (depth_um < 6)].mean() > emt[tumour & (depth_um > 30)].mean() + 0.5
    ratio = cells.nucleus_um_Nx2[:, 0] / cells.nucleus_um_Nx2[:, 1]
    assert ratio[tumour & (emt > 0.5)].mean() > 1.05 * ratio[tumour & (emt < -0.5)].mean()


def test_melanin_is_brown_where_cells_hold_it():
    patient = unmoved(patient_with("melanoma, epithelioid"))
    plan, cells = tissue(patient)
    assert cells.pigment_N.sum() > 30
    bare = with_kind(patient, pigment=0.0)
    assert not tissue(bare)[1].pigment_N.any()
    clean = dataclasses.replace(cells, pigment_N=np.zeros(len(cells), bool))
    more = density(image(patient, plan, cells), patient) - density(image(patient, plan, clean), patient)
    held = np.flatnonzero(cells.pigment_N)
    row, column = ((v[held] / UM_PER_PX).astype(int) for v in (cells.y_um_N, cells.x_um_N))
    red, green, blue = more[row, column].mean(0)
    assert blue > green > red > 0.03


def test_fat_mucin_carbon_appear_where_the_diagnosis_has_them():
    breast = unmoved(patient_with("breast carcinoma, ductal"))
    plan, cells = tissue(breast, at_border=True)
    assert counted(ADIPOCYTE, cells) > 3
    assert not counted(ADIPOCYTE, tissue(with_kind(breast, fat=0.0), at_border=True)[1])
    he = image(breast, plan, cells)
    assert np.median(density(he, breast)[on_pixels(plan.fat_um, he) < -6]) < 0.06
    pools = unmoved(patient_with("breast carcinoma, mucinous"))
    plan, cells = tissue(pools)
    he = image(pools, plan, cells)
    mucin = np.median(density(he, pools)[(on_pixels(plan.lumen_um, he) < -5) & (on_pixels(plan.mucin, he) > 0.9)], 0)
    assert 0.04 < mucin[0] < 0.3 and mucin[0] > 0.62 * mucin[1]  # pale, and more blue than pink
    lung = unmoved(patient_with("lung adenocarcinoma, acinar"))
    plan, cells = tissue(lung)
    row, column = ((v[cells.look_N == MYELOID] / UM_PER_PX).astype(int) for v in (cells.y_um_N, cells.x_um_N))
    dusty, clean = (
        density(image(p, plan, cells), lung)[row, column].mean() for p in (lung, with_kind(lung, carbon=0.0))
    )
    assert dusty > clean + 0.1


@pytest.mark.parametrize("name", ["colorectal adenocarcinoma", "melanoma, epithelioid", "renal carcinoma, clear cell"])
def test_nuclei_of_epithelium_do_not_lie_on_each_other(name: str):
    _, cells = tissue(patient_with(name))
    epithelial = np.flatnonzero(np.isin(cells.look_N, (TUMOUR, EPITHELIUM)))
    places = np.stack([cells.x_um_N, cells.y_um_N], 1)[epithelial]
    distance = spatial.cKDTree(places).query(places, k=2)[0][:, 1]
    assert distance.min() > 3.5
    assert np.mean(distance < 1.2 * cells.nucleus_um_Nx2[epithelial, 1]) < 0.03


def test_columnar_nuclei_stand_across_and_files_run_along():
    plan, cells = tissue(patient_with("colorectal adenocarcinoma"))
    down, right = np.gradient(plan.gland_um)
    tumour = (cells.look_N == TUMOUR) & (between_nodes(plan.gland_um, cells.x_um_N, cells.y_um_N) > -9)
    radial = np.arctan2(
        between_nodes(down, cells.x_um_N, cells.y_um_N), between_nodes(right, cells.x_um_N, cells.y_um_N)
    )
    assert np.abs(np.cos(cells.angle_N - radial))[tumour].mean() > 0.85
    along = []
    for draw in range(6):
        plan, cells = tissue(patient_with("breast carcinoma, lobular"), draw=draw)
        tumour = cells.look_N == TUMOUR
        places = np.stack([cells.x_um_N, cells.y_um_N], 1)[tumour]
        nearest = spatial.cKDTree(places).query(places, k=2)[1][:, 1]
        step = places[nearest] - places
        along.append(np.abs(np.cos(np.arctan2(step[:, 1], step[:, 0]) - cells.angle_N[tumour])))
    assert np.concatenate(along).mean() > 0.75  # the next cell of a file lies ahead or behind; 0.64 by chance


def test_the_image_is_displaced_by_the_registration_error():
    patient = with_stain(patient_with("colorectal adenocarcinoma"), noise=0.0, jpeg_quality=95)
    plan, cells = tissue(patient, side_um=160.0)
    here = image(with_stain(patient, shift_um_2=np.zeros(2)), plan, cells).astype(float)
    there = image(with_stain(patient, shift_um_2=np.array([3.0, -2.0])), plan, cells).astype(float)
    inner = slice(20, -20)
    moved = np.roll(here, (-4, 6), (0, 1))  # 2 µm up, 3 µm to the right
    assert np.abs(there - moved)[inner, inner].mean() < 2.5
    assert np.abs(there - here)[inner, inner].mean() > 10


def test_stain_focus_and_scanner_are_the_patients():
    patient = with_stain(unmoved(patient_with("colorectal adenocarcinoma")), noise=0.0, jpeg_quality=95)
    plan, cells = tissue(patient, side_um=160.0)
    plain = image(patient, plan, cells).astype(float)
    stain = patient.stain
    redder = image(with_stain(patient, eosin=1.4 * stain.eosin), plan, cells).astype(float)
    bluer = image(with_stain(patient, haematoxylin=1.4 * stain.haematoxylin), plan, cells).astype(float)
    assert (plain - redder)[..., 1].mean() > 5 * abs((plain - redder)[..., 0].mean())
    assert (plain - bluer)[..., 0].mean() > 3
    soft = image(with_stain(patient, focus_px=2.5), plan, cells).astype(float)
    assert np.abs(np.diff(soft, axis=0)).mean() < 0.7 * np.abs(np.diff(plain, axis=0)).mean()
    dim = image(with_stain(patient, white_3=0.8 * stain.white_3), plan, cells).astype(float)
    assert abs(dim.mean() / plain.mean() - 0.8) < 0.02
    noisy = image(with_stain(patient, noise=8.0), plan, cells).astype(float)
    assert 4 < (noisy - plain).std() < 12
    blocky = image(with_stain(patient, jpeg_quality=20), plan, cells).astype(float)
    assert np.abs(blocky - plain).mean() > 1


def test_nuclei_are_blue_and_mitoses_dark():
    patient = unmoved(patient_with("melanoma, epithelioid"))
    patient = with_traits(with_kind(patient, pigment=0.0), grade=2.5)
    plan, cells = tissue(patient, side_um=400.0, draw=1)
    he = density(image(patient, plan, cells), patient)
    row, column = ((v / UM_PER_PX).astype(int) for v in (cells.y_um_N, cells.x_um_N))
    red = he[row, column, 0]
    assert np.median(red) > 3 * np.median(he[..., 0])
    assert cells.mitosis_N.sum() >= 3
    assert np.median(red[cells.mitosis_N]) > 1.2 * np.median(red[cells.look_N == TUMOUR])
    # the more a cell divides, the larger and darker its nucleus
    tumour, dividing = (cells.look_N == TUMOUR) & ~cells.mitosis_N, state("proliferation", cells)
    assert np.corrcoef(dividing[tumour], cells.nucleus_um_Nx2[tumour].prod(1))[0, 1] > 0.2


def test_the_gallery_has_twelve_fields_of_all_cancer_types(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "FIELD_UM", 80.0)
    gallery.draw_gallery(tmp_path / "gallery.png", tmp_path / "answers.json", seed=0)
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert [answer["field"] for answer in answers] == list(range(1, 13))
    assert len({answer["patient"] for answer in answers}) == 12
    assert len({answer["diagnosis"] for answer in answers}) == 12
    assert {answer["cohort"] for answer in answers} == set(COHORTS)
    assert all(answer["patient"].startswith("vh") for answer in answers)
    cohort_of = {kind.name: kind.cohort for kind in DIAGNOSES}
    assert all(cohort_of[answer["diagnosis"]] == answer["cohort"] for answer in answers)
    with Image.open(tmp_path / "gallery.png") as sheet:
        assert sheet.size == (4 * 458 + 8, 3 * 458 + 8)
