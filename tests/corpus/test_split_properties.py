"""Splits of random tables of patients: nobody leaks, cohorts keep their shares, small is a part of large."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused
from tiny_tissue import tiny_section, write_corpus

from tario_jax.cli.main import main
from tario_jax.config import InputError, SplitConfig
from tario_jax.corpus.split import draw_split, split_corpus, stratified_order

names = st.text("abcdefgh0123", min_size=1, max_size=6)
tables = st.dictionaries(names, st.sampled_from(["BRCA", "LUAD", "OV", "RCC"]), min_size=3, max_size=120)


@given(tables, st.integers(0, 40), st.integers(1, 40), st.integers(0, 3))
@settings(deadline=None, max_examples=200)
def test_everyone_is_on_one_side_and_cohorts_keep_their_shares(cohort_of, validation, held_out, seed):
    if validation + held_out >= len(cohort_of):
        with pytest.raises(InputError, match="left to train on"):
            draw_split(cohort_of, validation, held_out, seed)
        return
    sides = draw_split(cohort_of, validation, held_out, seed)
    assert set(sides) == set(cohort_of)
    assert Counter(sides.values()) == Counter(
        {side: number for side, number in (("validation", validation), ("held_out", held_out),
         ("train", len(cohort_of) - validation - held_out)) if number})  # fmt: skip
    sizes = Counter(cohort_of.values())
    held = Counter(cohort_of[patient] for patient, side in sides.items() if side == "held_out")
    for cohort, size in sizes.items():
        assert abs(held[cohort] - held_out * size / len(cohort_of)) <= 2.5


@given(tables, st.integers(0, 3))
@settings(deadline=None, max_examples=200)
def test_every_beginning_of_the_order_is_stratified_whatever_the_order_of_the_table(cohort_of, seed):
    order = stratified_order(cohort_of, seed)
    assert sorted(order) == sorted(cohort_of)
    assert order == stratified_order(dict(reversed(cohort_of.items())), seed)
    sizes = Counter(cohort_of.values())
    for length in range(1, len(order)):
        found = Counter(cohort_of[patient] for patient in order[:length])
        for cohort, size in sizes.items():
            assert abs(found[cohort] - length * size / len(order)) <= 2.5


@given(tables, names)
@settings(deadline=None, max_examples=100)
def test_a_new_patient_moves_nobody_within_a_cohort(cohort_of, newcomer):
    more = cohort_of | {newcomer: cohort_of.get(newcomer, "OV")}
    before, after = stratified_order(cohort_of), stratified_order(more)
    for cohort in set(cohort_of.values()):
        members = {patient for patient in cohort_of if cohort_of[patient] == cohort}
        assert [p for p in before if p in members] == [p for p in after if p in members]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    sections = [
        dataclasses.replace(tiny_section(f"p{k}_{part}", f"p{k}", 2 * k + part, detections=20),
                            cohort="OV" if k % 3 else "RCC")
        for k in range(9) for part in (0, 1)
    ]  # fmt: skip
    split = {f"p{k}": "held_out" if k < 2 else "train" for k in range(9)}
    return write_corpus(tmp_path_factory.mktemp("nested") / "c", sections, split=split, kind="real")


def test_fewer_training_patients_are_a_part_of_more_and_held_out_ones_stay(corpus):
    few, more, everyone = (split_corpus(corpus, SplitConfig(train_patients=size)) for size in (2, 5, 0))
    patients = [{section.patient for section in split.train} for split in (few, more, everyone)]
    assert patients[0] < patients[1] < patients[2] and list(map(len, patients)) == [2, 5, 7]
    assert few.held_out == more.held_out == everyone.held_out
    assert len(few.train) == 4  # both sections of each
    refused(lambda: split_corpus(corpus, SplitConfig(train_patients=8)), "names 7 training patients", "asks for 8")
    by_section = SplitConfig(by="section", train=("p3_0",), held_out=("p4_0",), train_patients=1)
    refused(lambda: split_corpus(corpus, by_section), "by='patient' only")


def test_who_cannot_train_is_not_counted(tmp_path):
    """H&E alone, or counts alone: 3 training patients are 3 of whom something is learnt."""
    whole = [tiny_section(f"p{k}", f"p{k}", k, detections=20) for k in range(5)]
    slides = [dataclasses.replace(tiny_section(f"q{k}", f"q{k}", 10 + k), detections=None) for k in range(20)]
    counts = [dataclasses.replace(tiny_section(f"r{k}", f"r{k}", 40 + k, detections=20), he=None, he_um_per_px=None)
              for k in range(3)]  # fmt: skip
    sides = {"p0": "held_out", "r0": "held_out", "r1": "validation"}
    names = [section.section_id for section in (*whole, *slides, *counts)]
    corpus = write_corpus(tmp_path / "c", [*whole, *slides, *counts], kind="real",
                          split={name: sides.get(name, "train") for name in names})  # fmt: skip
    split = split_corpus(corpus, SplitConfig(train_patients=3))
    assert len(split.train) == 3 and {section.id[0] for section in split.train} == {"p"}
    assert [section.id for section in split.held_out] == ["p0", "r0"] and split.without_he == ("r1",)
    assert split_corpus(corpus, SplitConfig()).without_he == ("r1", "r2")
    refused(lambda: split_corpus(corpus, SplitConfig(train_patients=5)), "names 4 training patients")


def test_the_he_of_those_on_no_side_is_learnt_from(tmp_path):
    sections = [tiny_section(f"p{k}", f"p{k}", k, detections=20) for k in range(3)]
    slides = [dataclasses.replace(tiny_section(f"q{k}", f"q{k}", 10 + k), detections=None) for k in range(2)]
    split = {"p0": "held_out", "p1": "validation", "p2": "train"}
    corpus = write_corpus(tmp_path / "c", [*sections, *slides], kind="real", split=split)
    found = split_corpus(corpus, SplitConfig(), he_alone=True)
    assert [section.id for section in found.train] == ["p2", "q0", "q1"]
    assert [section.id for section in found.held_out] == ["p0"]
    alone = write_corpus(tmp_path / "slides", slides, kind="real")  # as an ingest of slides leaves it: without a split
    assert [section.id for section in split_corpus(alone, SplitConfig(), he_alone=True).train] == ["q0", "q1"]
    with pytest.raises(InputError, match="no such file"):
        split_corpus(alone, SplitConfig())


def test_the_command_draws_a_map_that_is_kept_until_it_is_said_and_leaves_out_who_has_he_alone(tmp_path, capsys):
    sections = [tiny_section(f"p{k}_0", f"p{k}", k, detections=20) for k in range(6)]
    slides = [dataclasses.replace(tiny_section(f"q{k}", f"q{k}", 10 + k), detections=None) for k in range(9)]
    corpus = write_corpus(tmp_path / "c", [*sections, *slides], kind="real")
    words = ["corpus", "split", str(corpus.root), "--validation=1", "--held-out=2"]
    assert main(words) == 0 and "9 patients have H&E alone" in capsys.readouterr().out
    drawn = (tmp_path / "c/split.tsv").read_text()
    split = split_corpus(corpus, SplitConfig())
    assert [len(side) for side in (split.train, split.validation, split.held_out)] == [3, 1, 2]
    assert main(words) == 2 and "is there already; edit it, or give --replace" in capsys.readouterr().err
    assert main([*words, "--replace", "--seed=1"]) == 0 and (tmp_path / "c/split.tsv").read_text() != drawn
    assert main([*words, "--replace"]) == 0 and (tmp_path / "c/split.tsv").read_text() == drawn
    capsys.readouterr()
    assert main([*words[:3], "--held-out=6", "--replace"]) == 2
    assert "6 held out of 6 patients" in capsys.readouterr().err
