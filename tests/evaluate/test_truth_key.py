"""What is kept of virtual truth is told from that of another truth, and of another simulator."""

import dataclasses

import numpy as np
import pytest
from refusals import refused
from tiny_tissue import tiny_section, write_corpus

from tario_jax.evaluate import scope
from tario_jax.evaluate.scope import truth_key
from tario_jax.virtual import cell_truth

STORED = {"cells": np.arange(6.0).reshape(2, 3), "numbers": np.array([1, 2])}


@pytest.fixture
def sections(tmp_path):
    """The first two are of one truth, the third's differs a little, the last one has none."""
    other = {**STORED, "cells": STORED["cells"] + 1e-9}
    truths = {"A1": STORED, "B1": dict(STORED), "C1": other, "D1": None}
    made = [dataclasses.replace(tiny_section(name, name[0], seed), truth=truth)
            for seed, (name, truth) in enumerate(truths.items())]  # fmt: skip
    return write_corpus(tmp_path / "c", made).sections


def test_another_truth_has_another_key_and_no_truth_has_none(sections):
    one, same, other, none = map(truth_key, sections)
    assert one == same != other and none == "" and other
    (sections[0].place / "truth.npz").local.unlink()
    refused(lambda: truth_key(sections[0]), "truth.npz")


def test_another_simulator_has_another_key(sections, monkeypatch, tmp_path):
    now = truth_key(sections[0])
    # read at every call, as in a process of its own
    monkeypatch.setattr(scope, "_cells_code", scope._cells_code.__wrapped__)
    assert truth_key(sections[0]) == now
    (tmp_path / "cell_truth.py").write_text("# the cells are told otherwise")
    with monkeypatch.context() as patched:
        patched.setattr(cell_truth, "__file__", str(tmp_path / "cell_truth.py"))
        assert truth_key(sections[0]) != now
    monkeypatch.setattr(scope, "checksum", lambda: "0" * 64)
    assert truth_key(sections[0]) != now
