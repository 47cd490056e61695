"""What one evaluation keeps for others to be held against."""

import dataclasses

import numpy as np
import pytest

from tario_jax.config import InputError
from tario_jax.evaluate.score_file import ScoreTable, read_scores


def made_table(sections: int = 3, genes: int = 4) -> ScoreTable:
    rng = np.random.default_rng(0)
    patients = tuple(f"p{s}" for s in range(sections))
    return ScoreTable(
        36.0, 18.0, "seal", "1-a", "training sections", "{}", tuple(f"s{s}" for s in range(sections)),
        patients, ("LUAD",) * sections,
        tuple(f"G{g}" for g in range(genes)), ("",) * genes, np.array([0.1, np.nan, 0.3, 0.1][:genes]),
        rng.random((sections, genes)), rng.random(sections), rng.random(sections), rng.random(sections),
        {("model", "counts"): rng.random((sections, genes)).astype(np.float32)}, patients, ("LUAD",) * sections,
        rng.random((sections, genes)), rng.random(sections), rng.random((sections, genes)), rng.random(sections),
    )  # fmt: skip


@pytest.mark.parametrize("sections", [3, 0])
def test_what_is_read_is_what_was_written(tmp_path, sections):
    table = made_table(sections)
    table.write(tmp_path / "scores.npz")
    found = read_scores(tmp_path / "scores.npz")
    for field in dataclasses.fields(ScoreTable):
        expected, value = getattr(table, field.name), getattr(found, field.name)
        if isinstance(expected, dict):
            assert expected.keys() == value.keys()
            assert all(np.array_equal(expected[key], value[key], equal_nan=True) for key in expected)
        elif isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(value, expected)
        else:
            assert value == expected, field.name


def test_genes_are_ordered_by_moran_and_then_as_in_the_panel():
    assert made_table().order.tolist() == [2, 0, 3]


def test_a_broken_or_missing_file_is_told_in_a_line(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_scores(tmp_path / "scores.npz")
    made_table().write(tmp_path / "scores.npz")
    whole = (tmp_path / "scores.npz").read_bytes()
    (tmp_path / "scores.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        read_scores(tmp_path / "scores.npz")
