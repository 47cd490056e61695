"""The table of genes' start: axes of correspondence analysis, against a dense float64 one."""

import jax
import numpy as np
import pytest
from tiny_tissue import tiny_config

from tario_jax.bench.made_batch import made_batch
from tario_jax.model.build import build
from tario_jax.parallel.mesh import make_mesh
from tario_jax.train import principal
from tario_jax.train.aot import pod_layout
from tario_jax.train.calibrate import calibrate
from tario_jax.train.principal import principal_table

GENES, PADDED, BINS, AXES = 60, 64, 400, 5


class _Batch:
    """As much of a batch as the table is made from: two rows of one window each."""

    def __init__(self, counts_RxNxG, measured_RxG):
        rows, bins, _ = counts_RxNxG.shape
        entries = [np.nonzero(counts_NxG) for counts_NxG in counts_RxNxG]
        most = max(len(at[0]) for at in entries) + 3
        self.bin_step_BxTxN = np.ones((rows, 2, bins // 2), int)
        self.window_BxT = np.zeros((rows, 2), int)
        self.count_bin_BxC, self.count_gene_BxC, self.count_BxC = (np.full((rows, most), fill) for fill in (-1, 0, 0))
        self.measured_gene_BxWxG = np.zeros((rows, 1, PADDED), bool)
        self.measured_gene_BxWxG[:, 0, :GENES] = measured_RxG
        for row, (bin_E, gene_E) in enumerate(entries):
            self.count_bin_BxC[row, : len(bin_E)], self.count_gene_BxC[row, : len(bin_E)] = bin_E, gene_E
            self.count_BxC[row, : len(bin_E)] = counts_RxNxG[row][bin_E, gene_E]


@pytest.fixture
def tissue():
    """Counts [2, N, G] that follow three axes, and those axes [3, G] of the log rates."""
    rng = np.random.default_rng(0)
    axis_KxG = rng.normal(0, 1, (3, GENES)) * np.array([[0.9], [0.6], [0.4]])
    share_G = rng.gamma(1.0, 1.0, GENES)
    logits = np.log(share_G) + rng.normal(0, 1, (2, BINS, 3)) @ axis_KxG
    rate = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) * rng.gamma(4.0, 100.0, (2, BINS, 1))
    return rng.poisson(rate), axis_KxG


def test_it_spans_the_axes_that_bins_differ_along(tissue):
    counts, axis_KxG = tissue
    table_Gxw = principal_table([_Batch(counts, np.ones((2, GENES), bool))], GENES, AXES, AXES, 0)
    # dense, with no sparse trick: singular vectors of the standardised residuals
    counts_NxG = counts.reshape(-1, GENES).astype(float)
    counts_NxG = counts_NxG[counts_NxG.sum(1) >= 20]
    total_N, found_G = counts_NxG.sum(1), counts_NxG.sum(0)
    share_G = found_G / found_G.sum()
    shrunk_G = found_G / (found_G + 30)
    residual = (counts_NxG - np.outer(total_N, share_G)) / np.sqrt(np.outer(total_N, share_G)) * shrunk_G
    _, value_A, axis_AxG = np.linalg.svd(residual, full_matrices=False)
    above_A = np.sqrt(np.maximum(value_A[:AXES] ** 2 - 0.9 * value_A[AXES - 1] ** 2, 0))
    expected = (axis_AxG[:AXES] * (above_A / np.linalg.norm(above_A) * 0.5)[:, None]).T
    expected *= (shrunk_G / np.sqrt(share_G))[:, None]
    for column in range(3):  # later ones are noise, and nearly equal
        sign = np.sign(expected[:, column] @ table_Gxw[:, column])
        np.testing.assert_allclose(sign * table_Gxw[:, column], expected[:, column], atol=2e-4)
    # and what it spans is what was put in: the first is found nearly whole in three columns
    centred_G = axis_KxG[0] - share_G @ axis_KxG[0]
    weight_G = np.sqrt(share_G)
    basis, _ = np.linalg.qr(table_Gxw[:, :3] * weight_G[:, None])
    assert np.linalg.norm(basis.T @ (centred_G * weight_G)) > 0.95 * np.linalg.norm(centred_G * weight_G)


def test_genes_that_a_window_did_not_measure_are_no_axis():
    """Tissue without structure, two panels: what a window did not measure says nothing of its bins."""
    rng = np.random.default_rng(1)
    measured_RxG = np.ones((2, GENES), bool)
    measured_RxG[1, ::2] = False
    counts = rng.poisson(400 * rng.dirichlet(np.full(GENES, 2.0)), (2, BINS, GENES)) * measured_RxG[:, None]
    share_G = counts.sum((0, 1)) / counts.sum()

    def spread_between_panels(table_Gxw):
        """Share of the first axis that lies between genes that all windows measured and the others."""
        column_G = table_Gxw[:, 0] - share_G @ table_Gxw[:, 0]
        half_G = measured_RxG[1] - share_G @ measured_RxG[1]
        return (share_G @ (column_G * half_G)) ** 2 / ((share_G @ column_G**2) * (share_G @ half_G**2))

    blind = principal_table([_Batch(counts, np.ones((2, GENES), bool))], GENES, AXES, AXES, 0)
    found = principal_table([_Batch(counts, measured_RxG)], GENES, AXES, AXES, 0)
    assert spread_between_panels(blind) > 0.9 and spread_between_panels(found) < 0.3


def test_genes_that_no_window_measured_leave_the_axes_as_they_are(tissue):
    """Two panels, and four genes that neither holds: the mean composition is not taken for an axis."""
    counts, _ = tissue
    measured_RxG = np.ones((2, GENES), bool)
    measured_RxG[1, ::3] = False
    counts = counts * measured_RxG[:, None]
    alone = principal_table([_Batch(counts, measured_RxG)], GENES, AXES, AXES, 0)
    found = principal_table([_Batch(counts, measured_RxG)], PADDED, AXES, AXES, 0)
    np.testing.assert_allclose(found[:GENES, :3], alone[:, :3], atol=1e-4)


def test_of_many_bins_some_are_drawn_in_their_order_and_of_few_all_count(tissue, monkeypatch):
    counts, _ = tissue
    batch = _Batch(counts, np.ones((2, GENES), bool))
    looked_at = []
    singular = principal._singular

    def watched(counts, *rest):
        looked_at.append(counts.toarray())
        return singular(counts, *rest)

    monkeypatch.setattr(principal, "_singular", watched)
    kept = counts.reshape(-1, GENES)
    kept = kept[kept.sum(1) >= 20]
    tables = []
    for most, seed in ((2 * BINS, 0), (len(kept), 0), (300, 0), (300, 0), (300, 1)):
        monkeypatch.setattr(principal, "MOST_BINS", most)
        tables.append(principal_table([batch], GENES, AXES, AXES, seed))
    all_, none_left_out, some, again, others = looked_at
    np.testing.assert_array_equal(all_, kept)
    np.testing.assert_array_equal(tables[0], tables[1])
    np.testing.assert_array_equal(some, again)
    np.testing.assert_array_equal(tables[2], tables[3])
    assert len(some) == 300 and not np.array_equal(some, others)
    at = [int(np.flatnonzero((kept == bin_G).all(1))[0]) for bin_G in some]
    assert at == sorted(set(at))
    # the first axis is the same one
    assert abs(np.corrcoef(tables[0][:, 0], tables[2][:, 0])[0, 1]) > 0.95


def test_of_few_bins_it_is_random_and_of_the_same_spread(tissue):
    counts, _ = tissue
    few = _Batch(counts[:, :2], np.ones((2, GENES), bool))
    one, same, other = (principal_table([few], GENES, 16, 16, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1
    assert one.std() == pytest.approx(0.5 / 4, rel=0.1)


def test_a_table_that_is_to_begin_at_random_is_left_alone(tiny_corpus):
    config = tiny_config(data={"groups": ((1, 1.0),)})
    genes = len(tiny_corpus.panel)
    batch = made_batch(config, pod_layout(config, genes), genes, 0)
    built = build(config.model, genes, config.data.patch_px, content=False)
    start = jax.device_get(built.initialise(0, make_mesh(config.mesh)))
    left, set_ = (
        calibrate(built, *start, [batch], list(tiny_corpus.sections), genes, principal=principal)[0]
        for principal in (False, True)
    )
    assert left["gene_table"] is start[0]["gene_table"]
    assert np.abs(set_["gene_table"] - left["gene_table"]).max() > 0.01
    np.testing.assert_array_equal(left["gene_bias"], set_["gene_bias"])
