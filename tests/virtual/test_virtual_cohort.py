"""Who the virtual patients are."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from tario_jax.config import InputError, SourceConfig
from tario_jax.virtual import cohort_split, patient_id, patient_number
from tario_jax.virtual.cohort import sections_of, split_of
from tario_jax.virtual.diagnoses import COHORT_SHARE, COHORTS, DIAGNOSES, NSCLC
from tario_jax.virtual.genotype import MUTATIONS, SITE_OF, TRAIT_LIMIT, posterior
from tario_jax.virtual.patients import FIRST_NUMBER, HELD_OUT_SCANNER, TRAITS, cohort_of, draw_patient


@pytest.fixture(scope="module")
def cohort():
    """The 2,545 patients for training and the 213 held out."""
    return [draw_patient(patient_number(name), 0) for name in cohort_split(2545, 0, 213)]


@pytest.fixture(scope="module")
def lung():
    """3,200 patients with lung cancer."""
    numbers = (FIRST_NUMBER["held_out"] + k for k in range(10_000))
    return [draw_patient(number, 0) for number in numbers if cohort_of(number) in NSCLC]


def side(patients, name):
    return [patient for patient in patients if patient.side == name]


def test_the_small_cohort_is_a_part_of_the_large_one_and_no_patient_is_on_two_sides():
    small, large = cohort_split(93, 7, 30), cohort_split(2545, 64, 213)
    assert len(small) == 130 and len(large) == 2822
    assert small.items() <= large.items()
    assert Counter(small.values()) == {"train": 93, "validation": 7, "held_out": 30}


def test_cancer_types_come_as_often_as_their_shares_say_in_every_prefix(cohort):
    held_out = Counter(patient.cohort for patient in side(cohort, "held_out"))
    assert min(held_out.values()) >= 10 and set(held_out) == set(COHORTS)
    train = side(cohort, "train")
    for size in (93, 372, 2545):
        found = Counter(patient.cohort for patient in train[:size])
        for name, share in COHORT_SHARE.items():
            assert found[name] == pytest.approx(share * size, abs=2)


def test_named_cancer_types_take_turns_and_nest():
    few, more = (cohort_split(size, 0, 30, ("LUAD", "BRCA", "SKCM")) for size in (93, 372))
    assert few.items() <= more.items()
    found = Counter((draw_patient(patient_number(name), 0).cohort, where) for name, where in few.items())
    assert found == {(name, where): size for name in ("LUAD", "BRCA", "SKCM")
                     for where, size in (("train", 31), ("held_out", 10))}  # fmt: skip
    with pytest.raises(InputError, match="cancer type 'LAUD'; expected some of LUAD"):
        cohort_split(3, 0, 3, ("LAUD",))


def test_a_further_test_set_holds_no_patient_of_the_first():
    config = SourceConfig(train_patients=20, validation_patients=2, held_out_patients=30)
    further = dataclasses.replace(config, held_out_patients=12, cohorts=("LUAD", "LUSC"))
    first, second = split_of(config), split_of(further, held_out_after=30)
    assert len(second) == 12 and set(second.values()) == {"held_out"} and not set(first) & set(second)
    assert set(split_of(dataclasses.replace(further, cohorts=()), held_out_after=18)) == set(list(
        cohort_split(0, 0, 30))[18:])  # fmt: skip
    assert {name.rpartition("_")[0] for name in sections_of(further, held_out_after=30)} == set(second)


def test_the_tail_is_long_and_one_diagnosis_and_one_scanner_are_new_to_whoever_trained(cohort):
    train, held_out = side(cohort, "train"), side(cohort, "held_out")
    seen = Counter(patient.diagnosis.name for patient in train)
    assert len(seen) == len(DIAGNOSES) - 1 and max(seen.values()) > 15 * min(seen.values())
    new = {patient.diagnosis.name for patient in held_out} - set(seen)
    assert new == {kind.name for kind in DIAGNOSES if kind.held_out_only}
    scanners = Counter(patient.scanner for patient in held_out)
    assert HELD_OUT_SCANNER not in {patient.scanner for patient in train} and scanners[HELD_OUT_SCANNER] >= 10


def test_genotypes_are_as_frequent_and_as_exclusive_as_in_patients(cohort):
    adeno = [patient for patient in cohort if patient.cohort == "LUAD"]
    rate = {name: np.mean([patient.mutated[name] for patient in adeno]) for name in MUTATIONS}
    assert 0.12 < rate["EGFR"] < 0.25 and 0.25 < rate["KRAS"] < 0.42 and 0.1 < rate["STK11"] < 0.25
    both = np.mean([patient.mutated["EGFR"] and patient.mutated["KRAS"] for patient in adeno])
    assert both < 0.2 * rate["EGFR"] * rate["KRAS"]
    with_kras = np.mean([patient.mutated["STK11"] for patient in adeno if patient.mutated["KRAS"]])
    without = np.mean([patient.mutated["STK11"] for patient in adeno if not patient.mutated["KRAS"]])
    assert with_kras > 2 * without
    squamous = [patient for patient in cohort if patient.cohort == "LUSC"]
    assert np.mean([patient.mutated["PTEN"] for patient in squamous]) > 2 * rate["PTEN"]
    assert not any(patient.mutated for patient in cohort if patient.cohort not in ("LUAD", "LUSC"))


def test_the_invisible_mutation_goes_with_nothing_and_the_others_with_site_and_stain(lung):
    def gap(mutation: str, value) -> float:
        """Difference of means between mutated and not, in standard errors."""
        sides = [np.array([value(p) for p in lung if p.mutated[mutation] == is_]) for is_ in (True, False)]
        return abs(sides[0].mean() - sides[1].mean()) / np.sqrt(sum(v.var() / len(v) for v in sides))

    values = [lambda p, r=r: p.trait_R[r] for r in range(len(TRAITS))]
    values += [lambda p, site=site: p.site == site for site in {p.site for p in lung}]
    values += [lambda p: np.log(p.stain.haematoxylin), lambda p: p.cohort == "LUAD", lambda p: p.mutated["KRAS"]]
    assert max(gap("RBM10", value) for value in values) < 3.3
    for mutation, site in (("EGFR", "site_b"), ("KRAS", "site_c"), ("STK11", "site_d"), ("PTEN", "site_e")):
        assert gap(mutation, lambda p, site=site: p.site == site) > 4
        assert max(gap(mutation, value) for value in values[: len(TRAITS)]) > 3


@pytest.mark.slow
def test_the_posterior_of_a_genotype_is_calibrated(lung):
    # an oracle apart from it: the patients themselves, and how often those with a high posterior are mutated
    told, site_only = (
        np.array([[sum(p for some, p in posterior(q.cohort, q.trait_R * seen, TRAITS, q.site) if some[name])
                   for name in MUTATIONS] for q in lung]) for seen in (1.0, 0.0)
    )  # fmt: skip
    was = np.array([[q.mutated[name] for name in MUTATIONS] for q in lung])
    np.testing.assert_allclose(told.mean(0), was.mean(0), atol=0.02)
    for m in range(len(MUTATIONS) - 1):
        high = told[:, m] > np.quantile(told[:, m], 0.8)
        assert was[high, m].mean() == pytest.approx(told[high, m].mean(), abs=0.05)
        assert was[high, m].mean() > 1.3 * was[:, m].mean()
        drawn_to = np.array([q.site == SITE_OF[MUTATIONS[m]][0] for q in lung])
        assert site_only[drawn_to, m].mean() > 1.3 * site_only[~drawn_to, m].mean()
        assert was[drawn_to, m].mean() == pytest.approx(told[drawn_to, m].mean(), abs=0.04)
    assert np.ptp(told[:, -1]) < 1e-9  # nothing tells of RBM10
    assert posterior("BRCA", np.zeros(len(TRAITS)), TRAITS, "site_a") == [({}, 1.0)]


def test_a_genotype_that_the_traits_exclude_has_no_probability():
    # of all mutations, only EGFR lowers the grade
    trait_R = np.zeros(len(TRAITS))
    trait_R[TRAITS.index("grade")] = -TRAIT_LIMIT - 0.3
    told = posterior("LUAD", trait_R, TRAITS, "site_a")
    assert sum(p for mutated, p in told if mutated["EGFR"]) == pytest.approx(1)


def test_response_follows_the_immune_cells_at_the_border_and_stk11(cohort):
    treated = [patient for patient in cohort if patient.treated]
    assert all((patient.responded is None) != patient.treated for patient in cohort)
    border = np.array([patient.trait("immune_border") for patient in treated])
    responded = np.array([patient.responded for patient in treated])
    assert responded[border > 0.7].mean() > 2 * responded[border < -0.7].mean()
    lung = [patient for patient in treated if patient.mutated]
    rate = [np.mean([p.responded for p in lung if p.mutated["STK11"] == is_]) for is_ in (True, False)]
    assert rate[0] < 0.6 * rate[1]


def test_registration_errors_are_at_most_five_um(cohort):
    length_um = [np.linalg.norm(patient.stain.shift_um_2) for patient in cohort]
    assert max(length_um) <= 5 and 2 < np.mean(length_um) < 3


def test_two_hundred_patients_have_a_large_region_twenty_four_of_them_held_out():
    config = SourceConfig(train_patients=2545, validation_patients=64, held_out_patients=213,
                          regions=("core", "border", "large"))  # fmt: skip
    sections = sections_of(config)
    large = [patient for patient, region in sections.values() if region == "large"]
    assert len(large) >= 200 and sum(patient.startswith("vh") for patient in large) >= 24
    assert len(sections) == 2 * 2822 + len(large)
    with pytest.raises(InputError, match="source.regions"):
        sections_of(SourceConfig(regions=("large",)))


def test_ids_say_the_side_and_lead_back_to_the_number():
    assert [patient_id(number) for number in (17, 1_000_003, 2_000_012)] == ["vt00017", "vv00003", "vh00012"]
    for number in (0, 999_999, 1_000_000, 2_123_456):
        assert patient_number(patient_id(number)) == number


@pytest.mark.parametrize("wrong", ["x00017", "vt", "vt-0001", "vh1000000"])
def test_an_id_of_another_form_is_refused(wrong):
    with pytest.raises(InputError, match="expected an id"):
        patient_number(wrong)
    with pytest.raises(InputError, match="expected a number"):
        patient_id(3_000_000)
    with pytest.raises(InputError, match="held_out is -1"):
        cohort_split(1, 1, -1)
