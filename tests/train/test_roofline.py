"""How long a step takes at least: what is added, what goes on side by side, and what bounds it."""

import pytest

from tario_jax.model.work import Part
from tario_jax.parallel.chips import SLICE_LINK_BYTES_PER_SECOND, Rates, chip_of, chip_of_device
from tario_jax.train.roofline import link_seconds, roofline

PARTS = [Part("layers", flops=8e12, exponentials=1e9, bytes=1e9), Part("norms", bytes=3e9)]
RATES = Rates(matmul_flops=1e12, memory_bytes=1e9, exponentials=1e9)


def test_units_of_an_accelerator_work_side_by_side():
    line = roofline(PARTS, RATES, {"fsdp": 4.0, "context": 2.0}, counted_flops=6e12)
    assert [part.seconds for part in line.parts] == [8, 3] and [part.by for part in line.parts] == [
        "products",
        "memory",
    ]
    assert line.seconds == line.computing == 11 and line.bound_by == "products"
    assert line.mfu == pytest.approx(6 / 11) and line.mfu_without_overlap == pytest.approx(6 / 17)


def test_a_cpu_does_one_after_the_other():
    line = roofline(PARTS, RATES._replace(overlap=False), {"fsdp": 0.0}, counted_flops=6e12)
    assert [part.seconds for part in line.parts] == [8 + 1 + 1, 3]


def test_slow_links_and_slow_memory_bound_a_step():
    line = roofline(PARTS, RATES, {"fsdp": 4.0, "context": 20.0}, counted_flops=6e12)
    assert line.seconds == 20 and line.bound_by == "context"
    line = roofline(PARTS, RATES._replace(memory_bytes=1e8), {"fsdp": 4.0}, counted_flops=6e12)
    assert line.bound_by == "memory" and line.seconds == 10 + 30
    line = roofline(PARTS, RATES._replace(exponentials=1e7), {"fsdp": 4.0}, counted_flops=6e12)
    assert line.bound_by == "exponentials" and line.to_dict()["parts"]["layers"]["exponentials"] == 100


def test_only_replica_crosses_slices():
    chip = chip_of("v5p:4x4x4")
    received = {"replica": 1e9, "fsdp": 1e9}
    assert (
        link_seconds(received, chip, slices=1)["replica"]
        == link_seconds(received, chip, slices=2)["fsdp"]
        == 1e9 / 2e11
    )
    assert link_seconds(received, chip, slices=2)["replica"] == 1e9 / SLICE_LINK_BYTES_PER_SECOND


@pytest.mark.parametrize("kind", ["NVIDIA H100 80GB HBM3", "NVIDIA H200"])
def test_a_gpu_receives_through_all_of_its_links(kind):
    assert link_seconds({"fsdp": 450e9}, chip_of_device(kind), slices=1)["fsdp"] == pytest.approx(1.0)
