"""Means over sets of genes: with one patient, and where a gene is undefined on one side."""

import numpy as np
import pytest

from tario_jax.evaluate.finer.gene_sets import SetMean, with_interval
from tario_jax.evaluate.intervals import patient_resampling

GENES = np.array([0, 1])


def drawn(patients):
    return patient_resampling(patients, 50, np.random.default_rng(0))


def test_one_patient_has_a_mean_and_no_interval():
    r_SxG = np.array([[0.2, 0.4], [0.4, 0.6]])
    alone = SetMean.of(r_SxG, GENES, drawn(["a", "a"]))
    nothing = {"mean": pytest.approx(0.4), "low": None, "high": None}
    assert alone.to_dict() == nothing and with_interval(alone.to_dict()) == "0.400"
    for paired in (alone - alone, SetMean.change(r_SxG, r_SxG, GENES, drawn(["a", "a"]))):
        assert paired.to_dict() == {"mean": 0, "low": None, "high": None}
    two = SetMean.of(r_SxG, GENES, drawn(["a", "b"])).to_dict()
    assert two["low"] == pytest.approx(0.3) and two["high"] == pytest.approx(0.5)
    assert with_interval(two) == "0.400 [0.300, 0.500]" and with_interval(None) == "-"


def test_a_change_runs_over_what_both_sides_are_defined_for():
    before_SxG = np.array([[0.5, 0.9], [0.6, 0.8], [np.nan, 0.7]])
    after_SxG = np.array([[0.4, np.nan], [0.4, 0.7], [0.9, 0.5]])
    change = SetMean.change(after_SxG, before_SxG, GENES, drawn(["a", "b", "c"]))
    assert change.mean == pytest.approx(np.mean([(-0.1 - 0.2) / 2, (-0.1 - 0.2) / 2]))
    assert change.to_dict()["high"] < 0  # of what is defined on one side alone, some went up
