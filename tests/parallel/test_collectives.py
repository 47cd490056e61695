"""Collectives of compiled programs, counted: against programs whose messages are known."""

import json

import pytest
from refusals import refused

from tario_jax.parallel.collectives import Collective, collectives

_PROGRAM = """
import json

import pytest
import jax, jax.numpy as jnp, numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

mesh = Mesh(np.array(jax.devices()).reshape(2, 1, 4, 1), ("replica", "fsdp", "context", "tensor"),
            axis_types=(AxisType.Auto,) * 4)

def ring(x):  # three hops round context, then a sum over replica and a gather over both
    to_next = [(i, (i + 1) % 4) for i in range(4)]
    x = lax.fori_loop(0, 3, lambda _, x: lax.ppermute(x, "context", to_next) * 1.5, x)
    x = lax.psum(x, "replica")
    return lax.all_gather(jnp.sin(x), ("replica", "context"), tiled=True)

def unknown(x, n):
    return lax.fori_loop(0, n, lambda _, x: lax.psum(x, "context") / 4, x)

spread = NamedSharding(mesh, P(("replica", "context")))
x = jax.ShapeDtypeStruct((8 * 1000,), jnp.float32, sharding=spread)
programs = [
    jax.jit(jax.shard_map(ring, mesh=mesh, in_specs=P(("replica", "context")), out_specs=P(),
                          check_vma=False)).lower(x),
    jax.jit(jax.shard_map(unknown, mesh=mesh, in_specs=(P(("replica", "context")), P()), out_specs=P("replica"),
                          check_vma=False)).lower(x, jax.ShapeDtypeStruct((), jnp.int32)),
]
print(json.dumps([program.compile().as_text() for program in programs]))
"""
MESH = {"replica": 2, "fsdp": 1, "context": 4, "tensor": 1}


def test_of_eight_devices(devices8):
    known, unknown = json.loads(devices8(_PROGRAM).splitlines()[-1])
    found, loops = collectives(known, MESH)
    assert loops == 0
    assert sorted(found, key=lambda one: one.kind) == [
        Collective("all-gather", ("replica", "context"), 1, 7 * 4000),
        Collective("all-reduce", ("replica",), 1, 4000),  # 2 (n - 1) / n of 1,000 float32
        Collective("collective-permute", ("context",), 3, 3 * 4000),
    ]
    found, loops = collectives(unknown, MESH)
    assert loops == 1 and [(one.kind, one.axes, one.count) for one in found] == [("all-reduce", ("context",), 1)]


def test_groups_as_the_tpu_compiler_writes_them():
    text = """
%body.1 (p: (s32[], bf16[512,4])) -> (s32[], bf16[512,4]) {
  %g = (bf16[128,4]{1,0}, bf16[512,4]{1,0}) all-gather-start(%x), replica_groups=[2,4]<=[2,4], dimensions={0}
  %r = f32[100]{0} reduce-scatter(%y), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %e = bf16[8]{0} all-reduce(%z), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
}

ENTRY %main (a: bf16[512,4]) -> bf16[512,4] {
  %w = (s32[], bf16[512,4]) while(%t), condition=%c, body=%body.1, backend_config={"known_trip_count":{"n":"16"}}
  %p = (u32[10], u32[10], u32[], u32[]) collective-permute-start(%q), source_target_pairs={{0,4},{4,0},{1,5},{5,1}}
}
"""
    found, loops = collectives(text, MESH)
    assert loops == 0
    assert set(found) == {
        Collective("all-gather", ("context",), 16, 16 * 3 * 128 * 4 * 2),
        Collective("reduce-scatter", ("replica",), 16, 16 * 400),
        Collective("collective-permute", ("replica",), 1, 40),
    }  # an all-reduce of each device with itself sends nothing


@pytest.mark.parametrize(
    ("kind", "operands", "results"),
    [
        ("all-gather", ("bf16[128,4]{1,0:T(8,128)(2,1)}", "f32[64]{0}"),
         ("bf16[512,4]{1,0:T(8,128)(2,1)}", "f32[256]{0}")),
        ("reduce-scatter", ("f32[512,4]{1,0}", "bf16[64]{0}"), ("f32[128,4]{1,0}", "bf16[16]{0}")),
        ("all-reduce", ("f32[512]{0}", "f32[64]{0}"), ("f32[512]{0}", "f32[64]{0}")),
        ("all-to-all", ("f32[512]{0}", "f32[64]{0}"), ("f32[512]{0}", "f32[64]{0}")),
        ("collective-permute", ("f32[512]{0}", "f32[64]{0}"), ("f32[512]{0}", "f32[64]{0}")),
    ],
)  # fmt: skip
def test_several_that_are_started_together_are_what_they_are_at_once(kind, operands, results):
    among = "source_target_pairs={{0,1},{1,0}}" if kind == "collective-permute" else "replica_groups=[2,4]<=[2,4]"

    def found(shape, name):
        return collectives(f"ENTRY %main (a: f32[8]) -> f32[8] {{\n  %g = {shape} {name}(%x, %y), {among}\n}}\n", MESH)

    operands, results = (f"({', '.join(each)})" for each in (operands, results))
    assert found(f"({operands}, {results}, u32[], u32[])", f"{kind}-start") == found(results, kind)
    [one], _ = found(results, kind)
    assert one.bytes > 0


def test_between_slices_the_host_sends_and_receives():
    text = """
ENTRY %main (a: f32[512,1024]) -> f32[512,1024] {
  %recv.2 = (f32[64,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%after-all.2), channel_id=1, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv-done.2 = (f32[64,8,128]{2,1,0:T(8,128)}, token[]) recv-done(%recv.2), channel_id=1, is_host_transfer=true
}
"""
    assert collectives(text, MESH, slices=2) == ([Collective("all-reduce", ("replica",), 1, 64 * 8 * 128 * 4)], 0)


def test_a_loop_runs_from_its_start_to_the_constant_of_its_condition():
    text = """
%cond.1 (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]) parameter(0)
  %end = s32[]{:T(128)} constant(9)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %end), direction=LT
}

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r = f32[8]{0} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %begin = s32[] constant(2)
  %copy.1 = s32[] copy(%begin)
  %tuple.1 = (s32[], f32[8]) tuple(%copy.1, %a)
  %while.1 = (s32[], f32[8]) while(%tuple.1), condition=%cond.1, body=%body.1
}
"""
    assert collectives(text, MESH) == ([Collective("all-reduce", ("context",), 7, 7 * 48)], 0)


def test_a_collective_that_is_spread_over_fusions_counts_once():
    def part(number: int, chain: int) -> str:
        return (
            f"  %all-gather.{number} = bf16[64]{{0}} all-gather(%p.{number}), channel_id=3, "
            "replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}, "
            f'frontend_attributes={{chain_id="{chain}"}}, backend_config={{"async_collective_fusion_config":{{}}}}'
        )

    text = "\n".join(["ENTRY %main (a: f32[8]) -> f32[8] {", part(1, 7), part(2, 7), part(3, 8), "}"])
    assert collectives(text, MESH) == ([Collective("all-gather", ("context",), 2, 2 * 96)], 0)


def test_a_sum_of_which_a_chip_keeps_its_part_is_a_reduce_scatter():
    text = """
%all-reduce-scatter.1.clone (input: f32[512,64]) -> f32[128,64] {
  %all-reduce.3 = f32[512,64]{1,0} all-reduce(%input), channel_id=4, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %part = f32[128,64]{1,0} dynamic-slice(%all-reduce.3, %begin, %zero), dynamic_slice_sizes={128,64}
}

ENTRY %main (a: f32[512,64]) -> f32[128,64] {
  ROOT %sum = f32[128,64]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1.clone
}
"""
    assert collectives(text, MESH) == ([Collective("reduce-scatter", ("context",), 1, 3 * 128 * 64 * 4)], 0)


def test_groups_by_axes_of_turned_devices():
    """Devices 0 … 7 as 4 × 2, turned to 2 × 4: along its first axis are neighbours, which differ in context."""
    text = """
ENTRY %main (a: f32[]) -> f32[] {
  %r = f32[2]{0} all-reduce(%x), channel_id=4, replica_groups=mesh['axis_0'=2,'axis_1'=4], \
device_ids=([4,2]T(1,0)) {'axis_0'}, use_global_device_ids=true, to_apply=%add
  %s = f32[2]{0} all-reduce(%x), channel_id=5, replica_groups=mesh['axis_0'=2,'axis_1'=4], \
device_ids=([4,2]T(1,0)) {'axis_0','axis_1'}, use_global_device_ids=true, to_apply=%add
}
"""
    found, _ = collectives(text, MESH)
    assert set(found) == {Collective("all-reduce", ("context",), 1, 8),
                          Collective("all-reduce", ("replica", "context"), 1, 14)}  # fmt: skip


def test_groups_of_a_new_kind_are_not_guessed():
    text = (
        "ENTRY %main (a: f32[8]) -> f32[8] {\n  %r = f32[8]{0} all-reduce(%x), replica_groups=new<8>, to_apply=%add\n}"
    )
    refused(lambda: collectives(text, MESH), "groups of devices that are not understood", "new<8>")
