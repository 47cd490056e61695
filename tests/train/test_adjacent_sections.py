"""The H&E of an adjacent section shows other cells than those that were counted: fine bins are refused."""

import dataclasses

import pytest
from refusals import refused
from tiny_tissue import tiny_config, tiny_section, write_corpus

from tario_jax.evaluate.job import evaluate_checkpoint
from tario_jax.predict.predictor import load
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.train.loop import train

WORDS = ("section 'C1'", "adjacent section", "bins of 18 µm", "at least 36", "data.force_adjacent=True")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """One section of three is registered to an H&E next to it."""
    sides = {"A": "train", "B": "held_out", "C": "train"}
    sections = [
        tiny_section(f"{patient}1", patient, seed, registration="adjacent" if patient == "C" else "same_section_after")
        for seed, patient in enumerate(sides)
    ]
    return write_corpus(tmp_path_factory.mktemp("adjacent") / "c", sections, split=sides)


def test_training_on_fine_bins_is_refused_unless_forced(corpus, tmp_path):
    config = tiny_config()
    refused(lambda: train(config, corpus, tmp_path / "run", lambda line: None), *WORDS)
    for change in ({"force_adjacent": True}, {"bin_um": 36.0}):
        data = dataclasses.replace(config.data, **change)
        assert corpus_layout(corpus.sections, data, len(corpus.panel)).count_capacity > 0


def test_evaluation_on_fine_bins_is_refused(tiny_run, tmp_path):
    unseen = [tiny_section("C1", "Z", 9, registration="adjacent")]
    other = write_corpus(tmp_path / "c", unseen)
    predictor = load(tiny_run)
    config = predictor.provenance.config.evaluate
    refused(lambda: evaluate_checkpoint(predictor, other, config, tmp_path, title="x"), *WORDS)
