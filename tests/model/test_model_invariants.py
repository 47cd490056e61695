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
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.window import read_window
from tario_jax.train.provenance import Provenance

GENES = len(PANEL)
# Few models, since each is compiled: all tests of one kind share its programs.
MODELS = {
    "one-shot": ({"groups": ((1, 1.0),)}, {}),
    "content": ({}, {"pattern": ("local", "global")}),
    "content, blockwise": ({}, {"pattern": ("local", "global"), "attention": "blockwise", "attention_block": 32}),
    "content, local, untied": ({}, {"pattern": ("local",), "tie_genes": False}),
}


@functools.cache
def config_of(kind: str):
    data, model = MODELS[kind]
    return tiny_config(data={"groups": ((1, 1.0), (4, 1.0))} | data, model=model)


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

    def __init__(self, kind: str):
        self.config = config_of(kind)
        content = not self.config.data.one_shot
        self.built = build(self.config.model, GENES, self.config.data.patch_px, content=content)
        self.parameters, self.calibration = arbitrary(self.built.abstract())

        def both(parameters, batch):
            model = self.built.merge(parameters, self.calibration)
            return model.rates(batch), model.loss(batch)

        self._both = jax.jit(both)
        self._gradient = jax.jit(
            jax.value_and_grad(lambda p, batch: sum(self.built.merge(p, self.calibration).loss(batch)[:2]))
        )

    def rates(self, batch: Batch, parameters=None) -> np.ndarray:
        """Rates of every gene of the panel [B, bins of a row, genes]."""
        return np.asarray(self._both(parameters or self.parameters, batch)[0])[..., :GENES]

    def loss(self, batch: Batch):
        return jax.device_get(self._both(self.parameters, batch)[1])

    def gradient(self, batch: Batch):
        return jax.device_get(self._gradient(self.parameters, batch))


@functools.cache
def model_of(kind: str) -> Model:
    return Model(kind)


@pytest.fixture(scope="module")
def windows(tiny_corpus):
    """Two windows of different sections, the second in part beyond its section."""
    data = config_of("content").data
    corners = ((20.0, 30.0), (130.0, 60.0))
    return [read_window(section, *corner, data) for section, corner in zip(tiny_corpus.sections, corners, strict=False)]


@pytest.fixture(scope="module")
def layout(tiny_corpus):
    """Of one bin slot a tile more than its bins need: padding is always there."""
    layout = corpus_layout(tiny_corpus.sections, config_of("content").data, GENES)
    return dataclasses.replace(layout, bins_per_tile=layout.bins_per_tile + 1)


def batch_of(rows, layout, *, groups=4, shape: tuple[int, int] = (2, 2), sequence: str = "window",
             **sizes) -> Batch:  # fmt: skip
    """Rows of windows, with missing ones as padding; a window draws its order from a generator of its own.

    groups: K of all, or by row and window.
    All batches have one shape (rows, windows a row) where they can: a model is compiled for each.
    """
    layout = dataclasses.replace(layout, windows_per_row=shape[1], count_capacity=512, **sizes)
    data = dataclasses.replace(config_of("content").data, windows_per_row=shape[1], sequence=sequence)
    groups = np.broadcast_to(groups, shape)
    rows = [*rows, *[[]] * (shape[0] - len(rows))]
    rngs = [[np.random.default_rng(int(window.bins.count_E.sum())) for window in row] for row in rows]
    return tokenise(rows, data, layout, groups, rngs)


def valid_bins(batch: Batch) -> np.ndarray:
    return (batch.bin_measured_BxTxN > 0).reshape(len(batch.bin_measured_BxTxN), -1)


def test_prediction_is_the_training_pass_with_one_group(tmp_path, layout):
    """A section of one window, predicted from its H&E alone, against the batch of training with all its counts."""
    model, side = model_of("content"), 72.0
    section = tiny_section("A1", "A", 5, width_um=side, height_um=side, detections=600)
    corpus = write_corpus(tmp_path / "c", [section])
    section = corpus.sections[0]
    provenance = Provenance(
        model.config, PANEL, corpus.seal, "virtual", "patient", ("A1",), (), layout, seen_patients=("A",), bin_um=18.0
    )
    maps = Predictor(provenance, model.parameters, model.calibration).predict_section(section, tissue="virtual")
    window = read_window(section, 0.0, 0.0, model.config.data)
    batch = batch_of([[window]], layout, groups=1)
    assert batch.count_BxC.sum() == 600
    rates_NxG = model.rates(batch)[0]
    x_um, y_um = batch.bin_xy_um_BxTxNx2[0].reshape(-1, 2).T
    rates_NxG, x_um, y_um = (array[valid_bins(batch)[0]] for array in (rates_NxG, x_um, y_um))
    order = np.lexsort((x_um, y_um))
    np.testing.assert_allclose(np.stack([maps.x_um_N, maps.y_um_N]), np.stack([x_um, y_um])[:, order])
    np.testing.assert_allclose(maps.rates_NxG, rates_NxG[order], rtol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_a_packed_row_is_its_windows_alone(kind, windows, layout):
    model = model_of(kind)
    packed, alone = batch_of([windows], layout), batch_of([[window] for window in windows], layout)
    assert 16 < valid_bins(packed).sum() < 32  # the second window leaves bins out
    rates_packed, rates_alone = (model.rates(batch)[valid_bins(batch)] for batch in (packed, alone))
    np.testing.assert_allclose(rates_packed, rates_alone, rtol=2e-5)
    np.testing.assert_allclose(model.loss(packed), model.loss(alone), rtol=1e-5)


def test_windows_of_one_sequence_see_each_other_with_their_own_genes(windows, layout):
    """Together, a bin's rates depend on the H&E and on earlier content of the other window; a gene stays unmeasured."""
    model = model_of("content")
    measured_G = windows[1].measured_gene_G.copy()
    measured_G[3] = False
    gone = windows[1].bins.gene_E == 3
    bins = dataclasses.replace(windows[1].bins, count_E=np.where(gone, 0, windows[1].bins.count_E))
    rows = [[windows[0], dataclasses.replace(windows[1], measured_gene_G=measured_G, bins=bins)]]
    together, apart = (batch_of(rows, layout, sequence=kind) for kind in ("patient", "window"))
    rates = model.rates(together)[0]
    first, second = np.split(valid_bins(together)[0].nonzero()[0], [16])
    assert (rates[second, 3] == 0).all() and (rates[first, 3] > 0).all()
    assert (np.abs(rates[first] / model.rates(apart)[0, first] - 1) > 1e-4).any(1).all()

    pale = together._replace(he_BxTxPxYxXx3=together.he_BxTxPxYxXx3.copy())
    pale.he_BxTxPxYxXx3[0, layout.tiles_per_window :] //= 2
    assert (model.rates(pale)[0, first] != rates[first]).any(1).all()

    step = together.bin_step_BxTxN[0].ravel()
    changed = int(second[step[second] == 2][0])
    after = model.rates(with_counts_changed(together, changed))[0, first]
    np.testing.assert_array_equal((after != rates[first]).any(1), step[first] > 2)


def with_counts_changed(batch: Batch, slot: int) -> Batch:
    """The same batch with other counts in one bin: trebled, on other genes, and more."""
    mine = batch.count_bin_BxC == slot
    assert mine.any()
    return batch._replace(
        count_BxC=np.where(mine, 3 * batch.count_BxC + 2, batch.count_BxC),
        count_gene_BxC=np.where(mine, (batch.count_gene_BxC + 5) % GENES, batch.count_gene_BxC),
    )


@pytest.mark.parametrize("kind", ["content", "content, blockwise"])
def test_a_query_sees_content_of_earlier_groups_only(kind, windows, layout):
    """Change one bin: bit for bit the same for itself, its group and all before; different for every later group."""
    model = model_of(kind)
    batch = batch_of([windows[:1]], layout)
    slots = np.flatnonzero(valid_bins(batch)[0])
    step = batch.bin_step_BxTxN[0].ravel()[slots]
    assert set(step) == {1, 2, 3, 4}
    before = model.rates(batch)[0, slots]
    for group in (1, 2, 3, 4):
        slot = int(slots[step == group][0])
        after = model.rates(with_counts_changed(batch, slot))[0, slots]
        np.testing.assert_array_equal(after[step <= group], before[step <= group])
        assert (after[step > group] != before[step > group]).any(1).all()


def test_bins_one_by_one_are_next_token_prediction(windows, layout):
    """K = number of bins: a change is seen by exactly the bins that are written after it."""
    model = model_of("content")
    batch = batch_of([windows[:1]], layout, groups=0)
    slots = np.flatnonzero(valid_bins(batch)[0])
    step = batch.bin_step_BxTxN[0].ravel()[slots]
    np.testing.assert_array_equal(np.sort(step), np.arange(1, 17))
    before = model.rates(batch)[0, slots]
    for bin_ in (0, 7):
        changed = (model.rates(with_counts_changed(batch, int(slots[bin_])))[0, slots] != before).any(1)
        np.testing.assert_array_equal(changed, step > step[bin_])


def test_without_content_counts_do_not_matter(windows, layout):
    model = model_of("one-shot")
    batch = batch_of([windows[:1]], layout, groups=1)
    nothing = batch._replace(count_BxC=np.zeros_like(batch.count_BxC))
    np.testing.assert_array_equal(model.rates(batch), model.rates(nothing))


def test_a_batch_without_any_padding_gives_the_same(windows, layout):
    model = model_of("content")
    padded = batch_of([windows[:1]], layout)
    exact = batch_of([windows[:1]], layout, shape=(1, 1), bins_per_tile=layout.bins_per_tile - 1)
    assert valid_bins(exact).all() and not valid_bins(padded).all(1).any()
    expected = model.rates(exact)[valid_bins(exact)]
    np.testing.assert_allclose(model.rates(padded)[valid_bins(padded)], expected, rtol=2e-5)
    np.testing.assert_allclose(model.loss(padded), model.loss(exact), rtol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_what_lies_in_padding_changes_nothing(kind, windows, layout):
    """Pixels of an empty window, places and steps of empty bin slots: bit for bit without effect."""
    model = model_of(kind)
    batch = batch_of([windows[1:]], layout)
    rng = np.random.default_rng(0)
    window_BxT, bin_BxTxN = batch.segment_BxT < 0, batch.bin_measured_BxTxN == 0
    noise = rng.integers(0, 256, batch.he_BxTxPxYxXx3.shape, np.uint8)
    he = np.where(window_BxT[:, :, None, None, None, None], noise, batch.he_BxTxPxYxXx3)
    places = rng.uniform(-500, 500, batch.bin_xy_um_BxTxNx2.shape).astype(np.float32)
    garbage = batch._replace(
        he_BxTxPxYxXx3=he,
        bin_xy_um_BxTxNx2=np.where(bin_BxTxN[..., None], places, batch.bin_xy_um_BxTxNx2),
        bin_step_BxTxN=np.where(bin_BxTxN, rng.integers(0, 9, bin_BxTxN.shape, np.int32), batch.bin_step_BxTxN),
    )
    valid = valid_bins(batch)
    np.testing.assert_array_equal(model.rates(garbage)[valid], model.rates(batch)[valid])
    np.testing.assert_array_equal(model.loss(garbage), model.loss(batch))


def test_a_row_of_padding_gives_no_loss_and_no_gradient(windows, layout):
    model = model_of("content, blockwise")
    padded, twice = batch_of([windows[:1]], layout), batch_of([windows[:1], windows[:1]], layout)
    nats, gradients = model.gradient(padded)
    double, doubled = model.gradient(twice)
    assert 2 * nats == pytest.approx(float(double), rel=1e-5)
    for (path, leaf), other in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(doubled), strict=True):
        assert np.isfinite(leaf).all(), path
        assert np.linalg.norm(2 * leaf - other) <= 1e-4 * np.linalg.norm(other) + 1e-6, path
    nothing, gradients = model.gradient(batch_of([], layout))
    assert nothing == 0 and all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("kind", MODELS)
def test_permuting_the_panel_permutes_the_prediction(kind, windows, layout):
    model = model_of(kind)
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
    parameters["gene_bias"] = np.where(np.arange(len(order)) < GENES, rng.normal(size=len(order)), -30).astype(
        np.float32
    )
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


def test_blockwise_is_reference_in_the_whole_model(windows, layout):
    reference, blockwise = model_of("content"), model_of("content, blockwise")
    batch = batch_of([windows, windows[::-1]], layout)
    valid = valid_bins(batch)
    np.testing.assert_allclose(blockwise.rates(batch)[valid], reference.rates(batch)[valid], rtol=2e-5)
    nats, gradients = blockwise.gradient(batch)
    expected_nats, expected = reference.gradient(batch)
    assert nats == pytest.approx(float(expected_nats), rel=1e-5)
    for (path, leaf), other in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(expected), strict=True):
        error = np.linalg.norm(leaf - other) / max(np.linalg.norm(other), 1e-3)
        assert error < 1e-4, (path, error)


@pytest.mark.parametrize("kind", MODELS)
def test_the_loss_is_the_likelihood_of_the_rates(kind, windows, layout):
    """Poisson of the total and multinomial over genes, dense and in float64, from the rates that the model reports."""
    batch = batch_of([windows, windows[:1]], layout)
    total_BxN, gene_BxN, n_BxN = nats_by_bin(model_of(kind), batch)
    said = model_of(kind).loss(batch)
    assert said.detections == n_BxN.sum() == sum(w.bins.count_E.sum() for w in (*windows, windows[0]))
    assert said.total_nats == pytest.approx(total_BxN.sum(), rel=1e-5)
    assert said.gene_nats == pytest.approx(gene_BxN.sum(), rel=1e-5)


def nats_by_bin(model: Model, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nats of the total and of the genes, and detections, of each bin slot; 0 where there is no bin."""
    mu = model.rates(batch).astype(np.float64)
    counts = np.zeros(mu.shape)
    entries = batch.count_bin_BxC >= 0
    row = np.broadcast_to(np.arange(2)[:, None], entries.shape)[entries]
    np.add.at(counts, (row, batch.count_bin_BxC[entries], batch.count_gene_BxC[entries]), batch.count_BxC[entries])
    valid = valid_bins(batch)
    total_nats, gene_nats, detections = np.zeros((3, *valid.shape))
    mu, counts = mu[valid], counts[valid]
    total, n = mu.sum(-1), counts.sum(-1)
    total_nats[valid] = total - n * np.log(total) + np.array([math.lgamma(k + 1) for k in n])
    gene_nats[valid] = -(counts * np.log(mu / total[:, None])).sum(-1)
    detections[valid] = n
    return total_nats, gene_nats, detections


@pytest.mark.parametrize(
    ("groups", "sequence", "steps"),
    [
        pytest.param(4, "window", [{1: 0, 4: 1}, {1: 0, 4: 1}, {1: 0, 4: 1}], id="one K"),
        pytest.param([[2, 4], [1, 1]], "window", [{1: 0, 2: 1}, {1: 0, 4: 1}, {1: 0}], id="two K a row, and one group"),
        pytest.param(1, "window", [{1: 0}] * 3, id="one-shot"),
        pytest.param([[4, 3], [2, 2]], "patient", [{1: 0, 4: 1}, {1: 0, 4: 1}, {1: 0, 2: 1}], id="two windows of one"),
    ],
)
def test_first_and_last_groups_are_told_apart(groups, sequence, steps, windows, layout):
    """steps: of the windows, row by row, which steps are first (0) and last (1)."""
    model = model_of("content")
    batch = batch_of([windows, windows[:1]], layout, groups=groups, sequence=sequence)
    total_BxN, gene_BxN, n_BxN = nats_by_bin(model, batch)
    step_BxN = batch.bin_step_BxTxN.reshape(n_BxN.shape)
    window_BxN = np.repeat(batch.window_BxT + [[0], [2]], batch.bin_step_BxTxN.shape[2], axis=1)
    said = model.loss(batch)
    for which, nats, detections in ((0, said.first_nats, said.first_detections),
                                    (1, said.last_nats, said.last_detections)):  # fmt: skip
        of_which = [(window, step) for window, of_window in enumerate(steps)
                    for step, is_ in of_window.items() if is_ == which]  # fmt: skip
        chosen_BxN = np.zeros(n_BxN.shape, bool)
        for window, step in of_which:
            chosen_BxN |= (window_BxN == window) & (step_BxN == step)
        assert nats == pytest.approx((total_BxN + gene_BxN)[chosen_BxN].sum(), rel=1e-5)
        assert detections == n_BxN[chosen_BxN].sum() and (detections > 0) == bool(of_which)
    assert (said.first_detections == said.detections) == (groups == 1)


def test_z_loss_is_added_for_each_detection(windows, layout):
    """A constant in every logit is a constant in log Z, and in nothing else that the loss reads."""
    model, batch = model_of("content"), batch_of([windows, windows[:1]], layout)

    @jax.jit
    def loss(constant):
        parameters = model.parameters | {"gene_bias": model.parameters["gene_bias"] + constant}
        return model.built.merge(parameters, model.calibration).loss(batch, 0.1)

    level, higher, highest = (jax.device_get(loss(constant)) for constant in (0.0, 1.0, 2.0))
    np.testing.assert_allclose(higher[:2], level[:2], rtol=1e-5)
    assert highest.z_nats - 2 * higher.z_nats + level.z_nats == pytest.approx(0.1 * 2 * level.detections, rel=1e-3)
    assert level.objective == pytest.approx(level.total_nats + level.gene_nats + level.z_nats, rel=1e-6)
    assert level.first_nats == pytest.approx(model.loss(batch).first_nats, rel=1e-5) and model.loss(batch).z_nats == 0


def test_depth_is_read_where_it_is_told(windows, layout):
    """Not told is another thing than any depth. Of a section that measured a part of the panel, it is the whole's."""
    model, batch = model_of("content"), batch_of([windows], layout)
    valid = valid_bins(batch)

    def at(depth: float, batch: Batch = batch) -> Batch:
        return batch._replace(log_depth_BxW=np.full_like(batch.log_depth_BxW, depth))

    usual = model.calibration["bin_encoder"]
    low, high = (float(usual["depth_mean"] + step * usual["depth_scale"]) for step in (-1, 1))
    untold, shallow, deep = (model.rates(at(depth))[valid] for depth in (-np.inf, low, high))
    assert (
        min(np.abs(shallow / deep - 1).max(), np.abs(untold / deep - 1).max(), np.abs(untold / shallow - 1).max())
        > 0.01
    )

    part_G = np.arange(GENES) < GENES // 2
    bias_G = model.parameters["gene_bias"][:GENES].astype(np.float64)
    share = np.exp(bias_G[part_G]).sum() / np.exp(bias_G).sum()
    of_part = batch.measured_gene_BxWxG.copy()
    of_part[..., :GENES] &= part_G
    merged = model.built.merge(model.parameters, model.calibration)
    query = jax.jit(lambda batch: merged.encoded(batch)[1])
    np.testing.assert_allclose(query(at(high + math.log(share), batch._replace(measured_gene_BxWxG=of_part))),
                               query(at(high)), rtol=1e-5, atol=1e-6)  # fmt: skip


def test_local_layers_see_their_own_tile_only(windows, layout):
    """With local layers alone a tile is a world of its own but for what queries are told of contents just beyond it;
    one global layer joins tiles."""
    batch = batch_of([windows[:1]], layout)
    batch = batch._replace(near_weight_BxTxNxV=np.zeros_like(batch.near_weight_BxTxNxV))
    he = batch.he_BxTxPxYxXx3.copy()
    he[:, 1] = 255 - he[:, 1]
    other = with_counts_changed(batch, layout.bins_per_tile)._replace(he_BxTxPxYxXx3=he)  # pixels and counts of tile 1
    slots = np.flatnonzero(valid_bins(batch)[0])
    tile = slots // layout.bins_per_tile
    for kind, joined in (("content, local, untied", False), ("content", True)):
        model = model_of(kind)
        changed = (model.rates(other)[0, slots] != model.rates(batch)[0, slots]).any(1)
        assert changed[tile == 1].all()
        assert changed[tile != 1].any() == joined


def test_a_model_without_bins_around_bins_is_one_whose_bins_have_none(windows, layout):
    model, batch = model_of("content"), batch_of([windows], layout)
    valid = valid_bins(batch)
    alone = batch._replace(near_weight_BxTxNxV=np.zeros_like(batch.near_weight_BxTxNxV))
    without = batch_of([windows], layout, near_bins=0)
    assert without.near_bin_BxTxNxV.shape[3] == 0
    expected = model.rates(alone)[valid]
    np.testing.assert_allclose(model.rates(without)[valid], expected, rtol=2e-5)
    assert np.abs(model.rates(batch)[valid] / expected - 1).max() > 0.01


def test_the_window_is_its_own_frame(windows, layout):
    """A window is predicted alike wherever it stands in the row and whatever its tiles are numbered."""
    model = model_of("content")
    forth, back = batch_of([windows], layout), batch_of([windows[::-1]], layout)
    bins = 4 * layout.bins_per_tile
    valid = valid_bins(forth)[0]
    swapped = np.roll(model.rates(back)[0], bins, axis=0)
    np.testing.assert_allclose(model.rates(forth)[0][valid], swapped[valid], rtol=2e-5)
