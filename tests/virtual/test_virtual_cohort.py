"""Who the virtual patients are, and the panel that they share."""

from collections import Counter

import pytest

from tario_jax.config import InputError
from tario_jax.virtual import cohort_split, patient_id, patient_number, virtual_panel
from tario_jax.virtual.genes import COHORTS, STATES, TRAITS, TYPES, _rows, program
from tario_jax.virtual.patients import draw_patient


def test_the_small_cohort_is_a_part_of_the_large_one_and_no_patient_is_on_two_sides():
    small, large = cohort_split(93, 7, 30), cohort_split(2545, 64, 213)
    assert len(small) == 130 and len(large) == 2822
    assert small.items() <= large.items()
    assert Counter(small.values()) == {"train": 93, "validation": 7, "held_out": 30}


@pytest.mark.parametrize("side, size", [("train", 93), ("validation", 6), ("held_out", 30)])
def test_every_side_is_balanced_over_the_cancer_types(side, size):
    ids = [patient for patient, where in cohort_split(93, 6, 30).items() if where == side]
    cohorts = [draw_patient(patient_number(patient), seed=0).cohort for patient in ids]
    assert Counter(cohorts) == {cohort: size // 3 for cohort in COHORTS}
    assert cohorts[:3] == list(COHORTS)


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


def test_the_panel_is_unique_and_its_table_speaks_of_known_types_and_drivers():
    rows = _rows()
    assert len(virtual_panel()) == len(rows) == len(set(virtual_panel().symbols)) > 550
    for row in rows:
        for tag in row["where"].split(","):
            name, _, cohort = tag.partition(":")
            assert name in (*TYPES, "all") and cohort in ("", *COHORTS), row
        assert row["drives"].lstrip("-") in ("", *STATES, *TRAITS), row
    classes = Counter(row["class"] for row in rows)
    assert classes["type_marker"] >= 120 and classes["null"] >= 20 and len(classes) == 8


def test_a_types_shares_sum_to_one_and_null_genes_have_one_share_in_all_of_them():
    genes = program()
    assert genes.share_CxTxG.sum(-1) == pytest.approx(1, abs=1e-5)
    null = genes.share_CxTxG[:, :, genes.genes_of("null")]
    assert null == pytest.approx(null[:1, :1].repeat(3, 0).repeat(len(TYPES), 1))
