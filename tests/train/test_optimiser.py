"""Rates by step, what AdamW and Muon move, what stays frozen, and how their moments lie on a mesh."""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh
from refusals import refused
from tiny_tissue import PANEL, tiny_config

from tario_jax.config import MESH_AXES, MeshConfig, OptimConfig
from tario_jax.config_files import load_config
from tario_jax.model.build import build
from tario_jax.parallel.mesh import make_mesh
from tario_jax.train.optimiser import learning_rate, make_optimiser
from tario_jax.train.state import abstract_state, state_shardings

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MUPS = {"base_width": 16, "base_head_dim": 8, "base_gene_dim": 4, "base_stem_width": 4}
BOTH = pytest.mark.parametrize("optimiser", ["adamw", "muon"])


@functools.cache
def tiny_model(mup: bool = False):
    config = tiny_config(model=MUPS if mup else {})
    return build(config.model, len(PANEL), config.data.patch_px, content=True)


def drawn(built, seed: int):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), built.abstract()[0])


def updates_of(optimiser, gradients, parameters):
    """Of the last of several steps, and the state after it."""

    def all_of_them():
        state = optimiser.init(parameters)
        for of_step in gradients:
            updates, state = optimiser.update(of_step, state, parameters)
        return updates, state

    return jax.device_get(jax.jit(all_of_them)())


def test_a_cosine_falls_to_its_final_share():
    config = OptimConfig(learning_rate=4.0, warmup_steps=4, final_share=0.25)
    found = [float(learning_rate(config, 20)(step)) for step in range(21)]
    expected = [step if step < 4 else 1.0 + 3.0 * (1 + math.cos(math.pi * (step - 4) / 16)) / 2 for step in range(21)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_wsd_is_constant_between_warm_up_and_decay():
    config = OptimConfig(learning_rate=4.0, warmup_steps=4, schedule="wsd", decay_share=0.25, final_share=0.1)
    found = [float(learning_rate(config, 20)(step)) for step in range(21)]
    expected = [0.0, 1.0, 2.0, 3.0, *[4.0] * 11, *[4.0 - 3.6 * part / 5 for part in range(6)]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_warm_up_that_is_longer_than_the_run(steps):
    config = OptimConfig(warmup_steps=50, schedule="wsd", decay_share=1.0)
    rate = [float(learning_rate(config, steps)(step)) for step in range(steps + 1)]
    assert np.isfinite(rate).all() and rate[-1] == 0 and max(rate) == rate[steps - 1] == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"decay_share": 0.3}, ("optim.decay_share is 0.3", "optim.schedule=wsd")),
        ({"muon_rate": 5.0}, ("optim.muon_rate is 5.0", "optim.optimiser=muon")),
        ({"schedule": "wsd", "decay_share": 0.0}, ("optim.decay_share is 0.0", "above 0")),
        ({"final_share": 1.5}, ("optim.final_share is 1.5", "0 to 1")),
        ({"optimiser": "muon", "muon_rate": 0.0}, ("optim.muon_rate is 0.0", "more than 0")),
    ],
)
def test_fields_that_do_not_fit(fields, words):
    refused(lambda: OptimConfig(**fields), *words)


def test_muon_orthogonalises_hidden_matrices_layer_by_layer_and_leaves_the_rest_to_adamw():
    built = tiny_model()
    parameters, gradients = drawn(built, 0), [drawn(built, seed) for seed in (1, 2)]
    config = OptimConfig(learning_rate=0.5, warmup_steps=0, final_share=1.0, weight_decay=0.1, clip_norm=1e9)
    adamw, _ = updates_of(make_optimiser(config, 10, built), gradients, parameters)
    muon, _ = updates_of(
        make_optimiser(dataclasses.replace(config, optimiser="muon", muon_rate=2.0), 10, built), gradients, parameters
    )
    rows = {"q": 1, "k": 1, "v": 1, "attention_out": 2, "mlp_gate": 1, "mlp_in": 1, "mlp_out": 1}
    for name, summed in rows.items():
        direction = (muon["decoder"][name] + 0.5 * 0.1 * parameters["decoder"][name]) / (0.5 * 2.0)
        for layer in direction:
            into = math.prod(layer.shape[:summed])
            matrix = layer.reshape(into, -1)
            singular = np.linalg.svd(matrix, compute_uv=False) / max(1, matrix.shape[1] / into) ** 0.5
            # five steps of Newton and Schulz bring them near 1, not to it
            assert 0.6 < singular.min() and singular.max() < 1.3, name
    for name in ("gene_table", "gene_bias", "total_weight", "head_norm"):
        np.testing.assert_array_equal(muon[name], adamw[name], err_msg=name)
    for path in (("he_encoder", "stem_bias"), ("he_encoder", "texture_bias"), ("decoder", "q_norm")):
        np.testing.assert_array_equal(muon[path[0]][path[1]], adamw[path[0]][path[1]])
    for path in (
        ("bin_encoder", "query_he"),
        ("bin_encoder", "content_in"),
        ("he_encoder", "texture_hidden"),
        ("he_encoder", "stem_in"),
        ("he_encoder", "wide_conv"),
    ):
        assert np.abs(muon[path[0]][path[1]] - adamw[path[0]][path[1]]).max() > 0.1


def test_the_rate_of_width_multiplies_adams_direction_and_not_the_decay():
    built, same = tiny_model(mup=True), tiny_model()
    parameters, gradients = drawn(built, 0), [drawn(built, seed) for seed in (1, 2)]
    config = OptimConfig(learning_rate=0.5, warmup_steps=0, final_share=1.0, weight_decay=0.1)
    found, _ = updates_of(make_optimiser(config, 10, built), gradients, parameters)
    usual, _ = updates_of(make_optimiser(config, 10, same), gradients, parameters)
    # fan_in of the matrices is twice that of the base, of the table's readers four times
    for path, rate, decay in ((("decoder", "q"), 0.5, 0.1), (("bin_encoder", "content_in"), 0.25, 0.1),
                              (("he_encoder", "stem_conv"), 0.5, 0.1), (("total_weight",), 0.5, 0.0),
                              (("gene_table",), 1.0, 0.1), (("gene_bias",), 1.0, 0.0)):  # fmt: skip
        ours, theirs, weight = (functools.reduce(dict.get, path, tree) for tree in (found, usual, parameters))
        decayed = -0.5 * decay * weight
        np.testing.assert_allclose(ours - decayed, rate * (theirs - decayed), rtol=1e-4, atol=1e-5, err_msg=str(path))


@BOTH
def test_frozen_parameters_have_no_moments_and_no_part_in_the_clipping(optimiser):
    built = tiny_model(mup=True)
    parameters, gradients = drawn(built, 0), drawn(built, 1)
    trained = jax.tree.map(lambda _: False, parameters)
    trained["gene_table"] = trained["decoder"]["q"] = trained["head_norm"] = True
    config = OptimConfig(warmup_steps=0, weight_decay=0.1, optimiser=optimiser)
    updates, state = updates_of(make_optimiser(config, 10, built, trained), [gradients], parameters)
    for (path, update), moves in zip(jax.tree.leaves_with_path(updates), jax.tree.leaves(trained), strict=True):
        assert update.any() == moves, path
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    kept = {parameters["gene_table"].shape, parameters["decoder"]["q"].shape, parameters["head_norm"].shape}
    assert kept <= shapes <= kept | {(), (3,)}
    huge = jax.tree.map(lambda x, moves: x if moves else 1e6 * x, gradients, trained)
    others, _ = updates_of(make_optimiser(config, 10, built, trained), [huge], parameters)
    jax.tree.map(np.testing.assert_array_equal, updates, others)
    all_of_them = jax.tree.map(lambda _: True, parameters)
    whole, _ = updates_of(make_optimiser(config, 10, built), [gradients], parameters)
    same, _ = updates_of(make_optimiser(config, 10, built, all_of_them), [gradients], parameters)
    jax.tree.map(np.testing.assert_array_equal, whole, same)


@BOTH
@pytest.mark.parametrize("name", ["200m", "4b"])
def test_moments_lie_like_their_parameters(optimiser, name):
    config = load_config(str(CONFIGS / f"tario2_{name}.py"), {"optim.optimiser": optimiser})
    built = build(config.model, 18963, config.data.patch_px, content=True)
    mesh = AbstractMesh((1, 4, 1, 4), MESH_AXES)
    made = make_optimiser(config.optim, 10, built)
    shardings = state_shardings(built, made, mesh)
    moments = jax.eval_shape(made.init, built.abstract()[0])
    laid = {}
    for (path, leaf), sharding in zip(
        jax.tree.leaves_with_path(moments), jax.tree.leaves(shardings.optimiser), strict=True
    ):
        assert not leaf.weak_type, path  # it would become strong after a step, and the step be compiled twice
        laid.setdefault(path[-1].key if hasattr(path[-1], "key") else "", []).append((leaf.shape, sharding.spec))
    of_q = built.abstract()[0]["decoder"]["q"].shape, shardings.parameters["decoder"]["q"].spec
    assert "fsdp" in of_q[1] and "tensor" in of_q[1]
    assert laid["q"] == [of_q] * (1 if optimiser == "muon" else 2)
    held = sum(math.prod(sharding.shard_shape(leaf.shape)) for leaf, sharding in
               zip(jax.tree.leaves(moments), jax.tree.leaves(shardings.optimiser), strict=True))  # fmt: skip
    whole = sum(leaf.size for leaf in jax.tree.leaves(moments))
    assert 1 <= held * mesh.shape["fsdp"] * mesh.shape["tensor"] / whole < 1.05


@BOTH
def test_a_state_keeps_its_types_over_a_step(optimiser):
    built = tiny_model(mup=True)
    made = make_optimiser(OptimConfig(optimiser=optimiser, schedule="wsd"), 10, built)
    state = abstract_state(built, made, make_mesh(MeshConfig())).optimiser
    _, after = jax.eval_shape(made.update, built.abstract()[0], state, built.abstract()[0])
    assert [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(after)] == [
        (x.shape, x.dtype, False) for x in jax.tree.leaves(state)
    ]


def test_in_the_standard_parametrisation_the_optimiser_is_that_of_optax():
    built = tiny_model()
    parameters, gradients = drawn(built, 0), [drawn(built, seed) for seed in (1, 2, 3)]
    config = OptimConfig(warmup_steps=1)
    plain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 2e-3, 1, 10), 0.9, 0.98, weight_decay=0.05,
                    mask=built.by_axes(lambda axes: len(set(axes) - {"layers"}) > 1)),
    )  # fmt: skip
    ours, theirs = (updates_of(made, gradients, parameters) for made in (make_optimiser(config, 10, built), plain))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)  # a checkpoint of before can be restored
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
