"""The TPU kernels compiled ahead of time for chips that are not here: that they do, and what memory they take.

Needs the compiler that is in libtpu (`pip install -e '.[tpu]'`, 700 MB), in the version that goes with jax.
"""

import json
import os
import subprocess
import sys

import pytest

from tario_jax.parallel.topology import ENVIRONMENT, why_not

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from tario_jax.ops.attention import tpu
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

topology, cases = sys.argv[1], json.loads(sys.argv[2])
chip = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
sharding = jax.sharding.SingleDeviceSharding(chip)

def array(*shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

for dtype, rows, length, heads, kv_heads, width, block in cases:
    q, k = (array(rows, length, h, width, dtype=dtype) for h in (heads, kv_heads))
    field, of_row = array(rows, length, dtype=jnp.int32), array(rows, length, heads, dtype=jnp.float32)
    visibility = QueryVisibility(field, field), KeyVisibility(field, field)
    numbers = dict(scale=width**-0.5, block=block)
    for name, function, arrays in (
        ("forward", lambda *x: tpu.forward(*x, **numbers, out_dtype=dtype), (q, k, k, *visibility)),
        ("backward", lambda *x: tpu.backward(*x, **numbers, grad_dtype=dtype),
         (q, k, k, *visibility, q, of_row, of_row)),
    ):
        assert tpu.unsupported(q, k) is None
        program = jax.jit(function).lower(*arrays).compile()
        memory = program.memory_analysis()
        text = program.as_text()
        kernels = text.count('custom_call_target="tpu_custom_call"')
        square = f"{length},{length}]" in text
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes
        print(json.dumps([name, kernels, square, held, memory.temp_size_in_bytes]), flush=True)
"""


LONG = [("bfloat16", 1, length, 8, 2, width, 512) for length in (8192, 32768) for width in (64, 128)]
ODD = [
    ("float32", 1, 4096, 8, 2, 128, 512),
    ("bfloat16", 3, 1000, 8, 8, 64, 512),  # as many key heads as heads; blocks padded
    ("bfloat16", 2, 2048, 16, 1, 128, 256),  # one key head, shared by several steps
    ("bfloat16", 2, 4096, 3, 1, 80, 1024),
    ("bfloat16", 1, 2048, 4, 2, 256, 512),
    ("bfloat16", 1, 262144, 4, 2, 64, 512),  # a list in parts
]


@pytest.mark.parametrize(
    ("topology", "cases"),
    [
        pytest.param("v5e:2x2", LONG, id="v5e"),
        pytest.param("v5p:2x2x1", LONG, id="v5p"),
        pytest.param("v6e:2x2", LONG[-1:], id="v6e"),
        pytest.param("v5p:2x2x1", ODD, id="odd shapes on v5p"),
    ],
)
def test_kernels_compile_and_hold_no_scores(topology, cases):
    refused = why_not()
    if refused:
        pytest.skip(refused)
    environment = os.environ | ENVIRONMENT
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # programs for a chip that is not here cannot be loaded again
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PROGRAM, topology, json.dumps(cases)],
        env=environment, capture_output=True, text=True, timeout=850, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 2 * len(cases)
    for (name, kernels, square, held, temporary), (_, _, length, *_) in zip(
        lines, [case for case in cases for _ in range(2)], strict=True
    ):
        parts = 2 if length == 262144 else 1
        assert kernels == {"forward": parts, "backward": 2 * parts}[name]
        assert not square
        assert temporary < 1.5 * held  # operands and results in the kernels' layout, once
