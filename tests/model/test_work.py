"""What a device does in a step, against the compiler's own count of a program without loops."""

import dataclasses

import jax
import pytest

from tario_jax.config import MESH_AXES, Config, DataConfig, ModelConfig
from tario_jax.model.build import model_sizes
from tario_jax.model.flops import step_flops
from tario_jax.model.work import Machine, device_links, device_work
from tario_jax.train.aot import Plan, pod_layout

_CPU = Machine(element_bytes=4, kernel_block=0, parts=1, joins=False)
_TPU = Machine(element_bytes=2, kernel_block=512, parts=1, joins=True)
_GENES = 2000


def tissue(**model) -> Config:
    """Every bin from the H&E alone: then a dense mask hides nothing."""
    sizes = {"width": 320, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 32, "mlp_width": 1280, "gene_dim": 64,
             "stem_width": 16, "pattern": ("global", "global"), "attention": "reference",
             "loss_chunk": 10**6}  # fmt: skip
    return Config(data=DataConfig(window_um=288.0, tile_um=144.0, he_um_per_px=0.5, patch_px=32, rows=2),
                  model=ModelConfig(**sizes | model))  # fmt: skip


def work(config: Config, machine: Machine, **mesh):
    sizes = model_sizes(config, _GENES)
    of_mesh = dict.fromkeys(MESH_AXES, 1) | mesh
    return device_work(config, pod_layout(config, _GENES), of_mesh, machine, sizes.trunk + sizes.gene_tables)


def test_products_are_those_that_the_compiler_counts():
    """Scans run once here, and one device meets all pairs. XLA counts a few per cent more: sums, norms and texture."""
    config = tissue()
    counted = Plan.of(config, _GENES, jax.devices()).lowered().compile().cost_analysis()["flops"]
    products = sum(part.flops for part in work(config, _CPU))
    assert 0.9 < products / counted < 1.02
    told = step_flops(
        config, pod_layout(config, _GENES)
    ).total  # a mask of dense attention is not told of, nor contents
    assert 0.9 < told / products < 1.1


@pytest.mark.parametrize(("axis", "whole"), [
    ("replica", {"optimiser"}), ("fsdp", set()), ("context", {"optimiser"}), ("tensor", {"encoders"}),
])  # fmt: skip
def test_an_axis_divides_what_it_splits(axis, whole):
    """Products of all devices together are those of one device, but for parts that each device does in whole."""
    config = dataclasses.replace(tissue(), data=dataclasses.replace(tissue().data, groups=((4, 1.0),)))
    alone, spread = (work(config, _TPU, **mesh) for mesh in ({}, {axis: 2}))
    for one, part in zip(alone, spread, strict=True):
        of = "flops" if one.flops else "exponentials" if one.exponentials else "bytes"
        share = getattr(part, of) / getattr(one, of)
        if one.name in whole:
            assert share == 1
        elif axis == "tensor" and one.name == "gene head":
            assert 0.5 < share < 0.6  # the projection to the table's width is done by all
        else:
            assert share == pytest.approx(0.5)


def test_remat_computes_again_what_it_says():
    attention, layers = {}, {}
    for remat in ("none", "save_attention", "full"):
        parts = {part.name: part for part in work(tissue(remat=remat), _TPU)}
        attention[remat], layers[remat] = parts["attention"].flops, parts["projections and MLP"].flops
    assert attention["none"] == attention["save_attention"] and attention["full"] == attention["none"] * 11 / 9
    # 4 in place of 3 passes, but for the last product of the period
    assert 1.25 < layers["full"] / layers["none"] < 4 / 3 and layers["full"] == layers["save_attention"]


def test_what_is_sent_needs_another_device():
    config = tissue()
    sizes = model_sizes(config, _GENES)
    for mesh in ({}, {"fsdp": 2}, {"replica": 2}, {"tensor": 2}, {"context": 2}):
        sent = device_links(config, pod_layout(config, _GENES), dict.fromkeys(MESH_AXES, 1) | mesh, _TPU,
                            sizes.trunk + sizes.gene_tables)  # fmt: skip
        assert {axis for axis, size in sent.items() if size} == set(mesh)
