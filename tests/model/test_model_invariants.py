"""What the model may see: every invariant of the sequence, on the whole model, with content read and without."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from tiny_tissue import PANEL, tiny_config, tiny_section, write_corpus

from tario_jax.model.build import build
from tario_jax.predict.predictor import Predictor
from tario_jax.tokens.batch import Batch, tokenise
from tario_jax.tokens.pipeline import corpus_layout
from tario_jax.tokens.window import read_window
from tario_jax.train.checkpoint import Provenance

GENES = len(PANEL)
GROUPS = {"one-shot": ((1, 1.0),), "content": ((1, 1.0), (4, 1.0))}


@functools.cache
def config_of(kind: str, **model):
    return tiny_config(data={"groups": GROUPS[kind]}, model=model)


def arbitrary(abstract):
    """Parameters and calibration without a zero or a one among them, so that nothing passes by its start alone."""
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        name = path[-1].key
        if "scale" in name or "norm" in name:
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = leaf.shape[0] if leaf.ndim == 2 else leaf.shape[1] if leaf.ndim > 2 else 1
        return (rng.standard_normal(leaf.shape) / fan_in**0.5).astype(np.float32)

    parameters, calibration = jax.tree.map_with_path(draw, abstract)
    # as after calibration: padding of the gene axis has no share in the mean composition
    parameters["gene_bias"][GENES:] = -30.0
    return parameters, calibration


class Model:
    """A model of arbitrary parameters, with its jitted rates and loss."""

    def __init__(self, kind: str, **model):
        self.config = config_of(kind, **model)
        content = not self.config.data.one_shot
        self.built = build(self.config.model, GENES, self.config.data.patch_px, content=content)
        self.parameters, self.calibration = arbitrary(self.built.abstract())
        self._rates = jax.jit(lambda p, batch: self.built.merge(p, self.calibration).rates(batch))
        self._loss = jax.jit(lambda p, batch: self.built.merge(p, self.calibration).loss(batch))
        self._gradient = jax.jit(
            jax.value_and_grad(lambda p, batch: sum(self.built.merge(p, self.calibration).loss(batch)[:2]))
        )

    def rates(self, batch: Batch, parameters=None) -> np.ndarray:
        """Rates of every gene of the panel [B, bins of a row, genes]."""
        return np.asarray(self._rates(parameters or self.parameters, batch))[..., :GENES]

    def loss(self, batch: Batch):
        return jax.device_get(self._loss(self.parameters, batch))

    def gradient(self, batch: Batch):
        return jax.device_get(self._gradient(self.parameters, batch))


@functools.cache
def model_of(kind: str, **model) -> Model:
    return Model(kind, **model)


@pytest.fixture(scope="module")
def windows(tiny_corpus):
    """Two windows of different sections, one with a part that is not on the section."""
    data = config_of("content").data
    corners = ((20.0, 30.0), (130.0, 60.0))
    return [read_window(section, *corner, data) for section, corner in zip(tiny_corpus.sections, corners, strict=False)]


@pytest.fixture(scope="module")
def layout(tiny_corpus):
    return corpus_layout(tiny_corpus.sections, config_of("content").data, GENES)


def batch_of(rows, layout, *, groups: int = 4, shape: tuple[int, int] = (2, 2), **sizes) -> Batch:
    """Rows of windows, with missing ones as padding; a window draws its order from a generator of its own.

    All batches have one shape (rows, windows a row) where they can: a model is compiled for each.
    """
    layout = dataclasses.replace(layout, windows_per_row=shape[1], count_capacity=512, **sizes)
    data = dataclasses.replace(config_of("content").data, windows_per_row=shape[1])
    rows = [*rows, *[[]] * (shape[0] - len(rows))]
    rngs = [[np.random.default_rng(int(window.bins.count_E.sum())) for window in row] for row in rows]
    return tokenise(rows, data, layout, np.full(shape, groups), rngs)


def valid_bins(batch: Batch) -> np.ndarray:
    return (batch.bin_measured_BxTxN > 0).reshape(len(batch.bin_measured_BxTxN), -1)


@pytest.mark.parametrize("kind", GROUPS)
def test_prediction_is_the_training_pass_with_one_group(kind, tmp_path, layout):
    """A section of one window, predicted from its H&E alone, against the batch of training with all its counts."""
    model, side = model_of(kind), 72.0
    section = tiny_section("A1", "A", 5, width_um=side, height_um=side, detections=600)
    corpus = write_corpus(tmp_path / "c", [section])
    section = corpus.sections[0]
    provenance = Provenance(model.config, PANEL, corpus.seal, "virtual", "patient", ("A1",), (), layout)
    maps = Predictor(provenance, model.parameters, model.calibration).predict_section(section, tissue="virtual")
    window = read_window(section, 0.0, 0.0, model.config.data)
    batch = batch_of([[window]], layout, groups=1)
    assert batch.count_BxC.sum() == 600
    rates_NxG = model.rates(batch)[0]
    x_um, y_um = batch.bin_xy_um_BxTxNx2[0].reshape(-1, 2).T
    rates_NxG, x_um, y_um = (array[valid_bins(batch)[0]] for array in (rates_NxG, x_um, y_um))
    order = np.lexsort((x_um, y_um))
    np.testing.assert_allclose(np.stack([maps.x_um_N, maps.y_um_N]), np.stack([x_um, y_um])[:, order])
    np.testing.assert_allclose(maps.rates_NxG, rates_NxG[order], rtol=1e-6)


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("attention", ["auto", "blockwise"])
def test_a_packed_row_is_its_windows_alone(kind, attention, windows, layout):
    model = model_of(kind, attention=attention, attention_block=32)
    packed, alone = batch_of([windows], layout), batch_of([[window] for window in windows], layout)
    assert 16 < valid_bins(packed).sum() < 32  # the second window leaves bins out
    rates_packed, rates_alone = (model.rates(batch)[valid_bins(batch)] for batch in (packed, alone))
    np.testing.assert_allclose(rates_packed, rates_alone, rtol=2e-5)
    np.testing.assert_allclose(model.loss(packed), model.loss(alone), rtol=1e-5)


def with_counts_changed(batch: Batch, slot: int) -> Batch:
    """The same batch with other counts in one bin: trebled, on other genes, and more."""
    mine = batch.count_bin_BxC == slot
    assert mine.any()
    return batch._replace(
        count_BxC=np.where(mine, 3 * batch.count_BxC + 2, batch.count_BxC),
        count_gene_BxC=np.where(mine, (batch.count_gene_BxC + 5) % GENES, batch.count_gene_BxC),
    )


@pytest.mark.parametrize("attention", ["auto", "blockwise"])
def test_a_query_sees_content_of_earlier_groups_only(attention, windows, layout):
    """Change one bin: bit for bit the same for itself, its group and all before; different for every later group."""
    model = model_of("content", attention=attention, attention_block=32)
    batch = batch_of([windows[:1]], layout)
    step = batch.bin_step_BxTxN[0, :4].ravel()
    assert set(step) == {1, 2, 3, 4}
    before = model.rates(batch)[0, :16]
    for group in (1, 2, 3, 4):
        slot = int(np.flatnonzero(step == group)[0])
        after = model.rates(with_counts_changed(batch, slot))[0, :16]
        np.testing.assert_array_equal(after[step <= group], before[step <= group])
        assert (after[step > group] != before[step > group]).any(1).all()


def test_bins_one_by_one_are_next_token_prediction(windows, layout):
    """K = number of bins: a change is seen by exactly the bins that are written after it."""
    model = model_of("content")
    batch = batch_of([windows[:1]], layout, groups=0)
    step = batch.bin_step_BxTxN[0, :4].ravel()
    np.testing.assert_array_equal(np.sort(step), np.arange(1, 17))
    before = model.rates(batch)[0, :16]
    for slot in (0, 7):
        changed = (model.rates(with_counts_changed(batch, slot))[0, :16] != before).any(1)
        np.testing.assert_array_equal(changed, step > step[slot])


def test_without_content_counts_do_not_matter(windows, layout):
    model = model_of("one-shot")
    batch = batch_of([windows[:1]], layout, groups=1)
    nothing = batch._replace(count_BxC=np.zeros_like(batch.count_BxC))
    np.testing.assert_array_equal(model.rates(batch), model.rates(nothing))


@pytest.mark.parametrize("kind", GROUPS)
def test_padding_changes_nothing(kind, windows, layout):
    """An empty window beside it, empty bin slots in its tiles, an empty row below it; and garbage in all of them."""
    model = model_of(kind)
    rows = [windows[1:]]
    plain = batch_of(rows, layout, shape=(1, 1))
    expected, loss = model.rates(plain)[0][valid_bins(plain)[0]], model.loss(plain)

    padded = batch_of(rows, layout, bins_per_tile=layout.bins_per_tile + 3)
    rng = np.random.default_rng(0)
    filler_tile = padded.segment_BxT < 0
    filler_bin = padded.bin_measured_BxTxN == 0
    he = np.where(filler_tile[:, :, None, None, None, None], rng.integers(0, 256, padded.he_BxTxPxYxXx3.shape, np.uint8),
                  padded.he_BxTxPxYxXx3)  # fmt: skip
    places = np.where(filler_bin[..., None], rng.uniform(-500, 500, padded.bin_xy_um_BxTxNx2.shape),
                      padded.bin_xy_um_BxTxNx2).astype(np.float32)  # fmt: skip
    steps = np.where(filler_bin, rng.integers(0, 5, filler_bin.shape, np.int32), padded.bin_step_BxTxN)
    garbage = padded._replace(he_BxTxPxYxXx3=he, bin_xy_um_BxTxNx2=places, bin_step_BxTxN=steps)
    for batch in (padded, garbage):
        np.testing.assert_allclose(model.rates(batch)[0][valid_bins(padded)[0]], expected, rtol=2e-5)
        np.testing.assert_allclose(model.loss(batch), loss, rtol=1e-5)
    np.testing.assert_array_equal(
        model.rates(padded)[0][valid_bins(padded)[0]], model.rates(garbage)[0][valid_bins(padded)[0]]
    )


@pytest.mark.parametrize("kind", GROUPS)
def test_a_row_of_padding_gives_no_loss_and_finite_gradients(kind, windows, layout):
    model = model_of(kind)
    padded, twice = batch_of([windows[:1]], layout), batch_of([windows[:1], windows[:1]], layout)
    nats, gradients = model.gradient(padded)
    double, doubled = model.gradient(twice)
    assert 2 * nats == pytest.approx(float(double), rel=1e-5)
    for (path, leaf), other in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(doubled), strict=True):
        assert np.isfinite(leaf).all(), path
        assert np.linalg.norm(2 * leaf - other) <= 1e-4 * np.linalg.norm(other) + 1e-6, path
    nothing, gradients = model.gradient(batch_of([], layout))
    assert nothing == 0 and all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(("kind", "tied"), [("one-shot", {}), ("content", {}), ("content", {"tie_genes": False})])
def test_permuting_the_panel_permutes_the_prediction(kind, tied, windows, layout):
    model = model_of(kind, **tied)
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(GENES), np.arange(GENES, layout.genes_padded)])
    measured = np.arange(GENES) % 5 > 0  # some genes are not measured, and take their mask along
    batch = batch_of([windows[:1]], layout)
    kept = measured[batch.count_gene_BxC % GENES]
    mask = batch.measured_gene_BxWxG.copy()
    mask[..., :GENES] &= measured
    batch = batch._replace(count_BxC=np.where(kept, batch.count_BxC, 0), measured_gene_BxWxG=mask)
    tables = ["gene_table", "gene_bias"]
    parameters = dict(model.parameters)
    parameters["gene_bias"] = np.where(np.arange(len(order)) < GENES, rng.normal(size=len(order)), -30).astype(np.float32)
    permuted = parameters | {name: parameters[name][order] for name in tables}
    if "gene_table" in parameters["bin_encoder"]:
        encoder = parameters["bin_encoder"]
        permuted["bin_encoder"] = encoder | {"gene_table": encoder["gene_table"][order]}
    inverse = np.argsort(order).astype(np.int32)
    rates = model.rates(batch, parameters)
    again = model.rates(
        batch._replace(count_gene_BxC=inverse[batch.count_gene_BxC], measured_gene_BxWxG=mask[..., order]), permuted
    )
    np.testing.assert_allclose(again, rates[..., order[:GENES]], rtol=2e-5, atol=1e-9)
    rates_NxG = rates[valid_bins(batch)]
    assert (rates_NxG[:, ~measured] == 0).all() and (rates_NxG[:, measured] > 0).all()
    assert np.abs(again[valid_bins(batch)] - rates[valid_bins(batch)]).max() > 1e-3  # the permutation was no identity


@pytest.mark.parametrize("kind", GROUPS)
def test_blockwise_is_reference_in_the_whole_model(kind, windows, layout):
    pattern = ("local", "global")
    reference, blockwise = model_of(kind, pattern=pattern), model_of(
        kind, attention="blockwise", attention_block=32, pattern=pattern
    )
    batch = batch_of([windows, windows[::-1]], layout)
    valid = valid_bins(batch)
    np.testing.assert_allclose(blockwise.rates(batch)[valid], reference.rates(batch)[valid], rtol=2e-5)
    if kind == "one-shot":
        return  # the same path backwards: compiled once
    nats, gradients = blockwise.gradient(batch)
    expected_nats, expected = reference.gradient(batch)
    assert nats == pytest.approx(float(expected_nats), rel=1e-5)
    for (path, leaf), other in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(expected), strict=True):
        error = np.linalg.norm(leaf - other) / max(np.linalg.norm(other), 1e-3)
        assert error < 1e-4, (path, error)


@pytest.mark.parametrize("kind", GROUPS)
def test_the_loss_is_the_likelihood_of_the_rates(kind, windows, layout):
    """Poisson of the total and multinomial over genes, dense and in float64, from the rates that the model reports."""
    model = model_of(kind)
    batch = batch_of([windows, windows[:1]], layout)
    mu = model.rates(batch).astype(np.float64)
    counts = np.zeros(mu.shape)
    entries = batch.count_bin_BxC >= 0
    row = np.broadcast_to(np.arange(2)[:, None], entries.shape)[entries]
    np.add.at(counts, (row, batch.count_bin_BxC[entries], batch.count_gene_BxC[entries]), batch.count_BxC[entries])
    valid = valid_bins(batch)
    mu, counts = mu[valid], counts[valid]
    total, n = mu.sum(-1), counts.sum(-1)
    total_nats = (total - n * np.log(total) + np.array([math.lgamma(k + 1) for k in n])).sum()
    gene_nats = -(counts * np.log(mu / total[:, None])).sum()
    said = model.loss(batch)
    assert said.detections == counts.sum() == sum(w.bins.count_E.sum() for w in (*windows, windows[0]))
    assert said.total_nats == pytest.approx(total_nats, rel=1e-5)
    assert said.gene_nats == pytest.approx(gene_nats, rel=1e-5)


@pytest.mark.parametrize("kind", GROUPS)
def test_local_layers_see_their_own_tile_only(kind, windows, layout):
    """With local layers alone a tile is a world of its own; one global layer joins them."""
    batch = batch_of([windows[:1]], layout)
    he = batch.he_BxTxPxYxXx3.copy()
    he[:, 1] = 255 - he[:, 1]
    other = with_counts_changed(batch, layout.bins_per_tile)._replace(he_BxTxPxYxXx3=he)  # pixels and counts of tile 1
    tile = np.arange(4 * layout.bins_per_tile) // layout.bins_per_tile
    bins = len(tile)
    for pattern, joined in ((("local",), False), (("local", "global"), True)):
        model = model_of(kind, pattern=pattern)
        changed = (model.rates(other)[0, :bins] != model.rates(batch)[0, :bins]).any(1)
        assert changed[tile == 1].all()
        assert changed[tile != 1].any() == joined


def test_the_window_is_its_own_frame(windows, layout):
    """A window is predicted alike wherever it stands in the row and whatever its tiles are numbered."""
    model = model_of("content", pattern=("local", "global"))
    forth, back = batch_of([windows], layout), batch_of([windows[::-1]], layout)
    bins = 4 * layout.bins_per_tile
    valid = valid_bins(forth)[0]
    swapped = np.roll(model.rates(back)[0], bins, axis=0)
    np.testing.assert_allclose(model.rates(forth)[0][valid], swapped[valid], rtol=2e-5)
