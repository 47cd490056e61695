"""muP: every parameter's start and rate are those of the tables; at the base the model is the standard one."""

import functools

import jax
import numpy as np
import pytest
from refusals import refused
from tiny_tissue import PANEL, tiny_config

from tario_jax.bench.made_batch import made_batch
from tario_jax.config import ModelConfig
from tario_jax.model.build import build
from tario_jax.parallel.mesh import make_mesh
from tario_jax.train.aot import pod_layout

GENES = len(PANEL)


@functools.cache
def started(seed=0, **model):
    """Config, split model, parameters and calibration."""
    config = tiny_config(model=model)
    built = build(config.model, GENES, config.data.patch_px, content=True)
    return config, built, *jax.device_get(built.initialise(seed, make_mesh(config.mesh)))


def loss_and_gradients(config, built, parameters, calibration):
    batch = made_batch(config, pod_layout(config, GENES), GENES, 0)

    def nats(parameters):
        nll = built.merge(parameters, calibration).loss(batch)
        return nll.total_nats + nll.gene_nats

    return jax.device_get(jax.jit(jax.value_and_grad(nats))(parameters))


def test_at_the_base_it_is_the_standard_model_to_the_bit():
    own = {"base_width": 32, "base_head_dim": 16, "base_gene_dim": 16, "base_stem_width": 8}
    standard, mup = started(), started(**own)
    assert set(jax.tree.leaves(mup[1].rates())) == {1.0}
    jax.tree.map(np.testing.assert_array_equal, standard[2:], mup[2:])
    jax.tree.map(np.testing.assert_array_equal, loss_and_gradients(*standard), loss_and_gradients(*mup))


# of a model twice as wide as its base: where n is its growth, (variance of the start over the standard one's, rate)
INPUT, HIDDEN, OUTPUT = (1.0, 1.0), (1.0, 1 / 2), (1 / 2, 1 / 2)
MATRICES = ("q", "k", "v", "attention_out", "mlp_gate", "mlp_in", "mlp_out", "query_he", "near_in", "texture_hidden")
ALWAYS = {
    **dict.fromkeys(MATRICES, HIDDEN),
    **dict.fromkeys(("texture_in", "query_size", "query_depth", "content_total", "content_depth", "stem_in"), INPUT),
    "total_weight": OUTPUT,
}  # fmt: skip
FIXED_SIZES = ALWAYS | {
    "gene_in": OUTPUT,
    **dict.fromkeys(("gene_table", "content_in", "stem_conv", "stem_join", "wide_conv", "stem_out"), INPUT),
}
# entries of the table are those of the base: a standard one's fall in variance as gene_dim grows
GROWN_SIZES = ALWAYS | {"gene_in": HIDDEN, "gene_table": (2.0, 1.0), "content_in": HIDDEN, "stem_conv": HIDDEN,
                        "stem_join": HIDDEN, "wide_conv": HIDDEN, "stem_out": HIDDEN}  # fmt: skip


@pytest.mark.parametrize(
    ("bases", "expected"),
    [({}, FIXED_SIZES), ({"base_gene_dim": 8, "base_stem_width": 4}, GROWN_SIZES)],
    ids=("all else fixed", "all grown"),
)
@pytest.mark.parametrize("tied", [True, False], ids=("tied", "untied"))
def test_starts_and_rates_are_those_of_the_tables(bases, expected, tied):
    _, _, standard, _ = started(tie_genes=tied)
    _, built, parameters, _ = started(base_width=16, **bases, tie_genes=tied)
    seen = set()
    for (path, rate), start, usual in zip(
        jax.tree.leaves_with_path(built.rates()), *map(jax.tree.leaves, (parameters, standard)), strict=True
    ):
        name = path[-1].key
        if name not in expected:  # norms and biases
            assert rate == 1.0 and start.tobytes() == usual.tobytes(), path
            continue
        seen.add(name)
        variance, expected_rate = expected[name]
        assert rate == pytest.approx(expected_rate), path
        np.testing.assert_allclose(start, variance**0.5 * usual, rtol=1e-6, err_msg=str(path))
    assert seen == expected.keys()


@pytest.mark.slow
def test_scores_are_divided_by_the_dimension_of_a_head_and_logits_by_that_of_the_table():
    """Against the standard model of the same weights, its queries' norm and table scaled by hand."""
    _, standard, parameters, calibration = started()
    config, mup, *_ = started(base_width=32, base_head_dim=4, base_gene_dim=4)
    batch = made_batch(config, pod_layout(config, GENES), GENES, 0)

    def rates(built, parameters):
        return np.asarray(jax.jit(lambda p: built.merge(p, calibration).rates(batch))(parameters))

    by_hand = jax.tree.map(np.copy, parameters)
    by_hand["decoder"]["q_norm"] *= (4**0.5 / 16) / (1 / 16**0.5)
    by_hand["gene_in"] *= 4 / 16  # the content encoder shares the table
    found, usual = rates(mup, parameters), rates(standard, parameters)
    np.testing.assert_allclose(found, rates(standard, by_hand), rtol=1e-4)
    assert np.abs(found - usual).max() > 0.05 * usual.max()


def content_size(mup: bool, growth: int) -> float:
    """Root mean square of contents' tokens at the start, over draws of it: a narrow table is few numbers."""
    return float(np.sqrt(np.mean([_content_square(mup, growth, seed) for seed in range(3)])))


def _content_square(mup: bool, growth: int, seed: int) -> float:
    bases = {"base_width": 32, "base_gene_dim": 16} if mup else {}
    config, built, parameters, calibration = started(seed, width=32 * growth, gene_dim=16 * growth, **bases)
    encoder = parameters["bin_encoder"] | {"content_total": np.zeros((2, 32 * growth), np.float32)}
    model = built.merge(parameters | {"bin_encoder": encoder}, calibration)
    batch = made_batch(config, pod_layout(config, GENES), GENES, 0)
    no_query = np.zeros((*batch.bin_step_BxTxN.shape, 32 * growth), np.float32)
    tokens = model.bin_encoder.content(batch, no_query, parameters["gene_table"], parameters["gene_bias"], np.float32)
    return float(np.mean(np.square(tokens)))


@pytest.mark.slow
def test_contents_keep_their_size_as_the_table_grows():
    at_base = content_size(True, 1)
    assert content_size(True, 16) == pytest.approx(at_base, rel=0.1)
    assert content_size(False, 16) == pytest.approx(at_base / 4, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"base_width": -1}, ("model.base_width is -1", "at least 0")),
        ({"base_gene_dim": 32}, ("model.base_gene_dim is 32 without muP", "model.base_width")),
    ],
)
def test_bases_that_do_not_fit(fields, words):
    refused(lambda: ModelConfig(**fields), *words)
