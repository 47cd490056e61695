"""Compiles ring attention for TPU pods that are not here, and counts its messages: run with OUT.json.

Needs libtpu (the extra [tpu]), no TPU. Attention, forward and backward, bf16, on v5p: 8 chips along context, and 256
chips as fsdp 16 × context 16. Nothing else is in these programs: every collective in them is attention's.
"""

import json
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec  # noqa: E402

from tario_jax.ops.attention import attention  # noqa: E402
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility  # noqa: E402

_PODS = {"v5p:2x2x2": (1, 8), "v5p:4x8x8": (16, 16)}  # fsdp, context
_TOKENS, _HEADS, _KEY_HEADS, _WIDTH = 4096, 16, 4, 128  # tokens a device
_COLLECTIVE = re.compile(r" (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")


def main() -> None:
    answer = Path(sys.argv[1])
    pods = {name: _pod(name, *axes) for name, axes in _PODS.items()}
    lines = [
        f"ring attention, forward and backward, bf16, {_TOKENS:,} tokens a device, {_HEADS} heads on {_KEY_HEADS} key "
        f"heads of {_WIDTH}",
        f"{'':<11}{'chips':>6}{'context':>9}{'compiled in':>13}{'temporary MiB':>15}{'messages a hop':>25}  others",
    ]
    for name, pod in pods.items():
        messages = f"{pod['forward_a_hop']} forward, {pod['backward_a_hop']} backward"
        lines.append(
            f"{name:<11}{pod['chips']:>6}{pod['context']:>9}{pod['seconds']:>11.1f} s{pod['temporary_mib']:>15.0f}"
            f"{messages:>25}  {pod['others'] or 'none'}"
        )
    table = "\n".join(lines)
    print(table)
    most = max(max(pod["forward_a_hop"], pod["backward_a_hop"]) for pod in pods.values())
    others = sum(len(pod["others"]) for pod in pods.values())
    answer.write_text(json.dumps({"pods": pods, "most_a_hop": most, "others": others, "table": table}))


def _pod(name: str, fsdp: int, context: int) -> dict:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    mesh = Mesh(np.array(devices).reshape(fsdp, context), ("fsdp", "context"), axis_types=(AxisType.Auto,) * 2)
    by_token = NamedSharding(mesh, PartitionSpec("fsdp", "context"))

    def shape(heads: int | None):
        size = (fsdp, context * _TOKENS) + ((heads, _WIDTH) if heads else ())
        return jax.ShapeDtypeStruct(size, jnp.bfloat16 if heads else jnp.int32, sharding=by_token)

    q, k, field = shape(_HEADS), shape(_KEY_HEADS), shape(None)

    def both(q, k, v, d_out, visibility):
        out, pull = jax.vjp(lambda *qkv: attention(*qkv, *visibility, strategy="ring"), q, k, v)
        return out, pull(d_out)

    began = time.monotonic()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        visibility = QueryVisibility(field, field), KeyVisibility(field, field)
        compiled = jax.jit(both).lower(q, k, k, q, visibility).compile()
    found = Counter(_COLLECTIVE.findall(compiled.as_text()))
    hops = sorted(count for count in _by_loop(compiled.as_text()) if count)
    return {
        "chips": len(devices), "context": context, "seconds": time.monotonic() - began,
        "temporary_mib": compiled.memory_analysis().temp_size_in_bytes / (1 << 20),
        "forward_a_hop": hops[0], "backward_a_hop": hops[-1], "loops": hops,
        "permutes": found.pop("collective-permute", 0), "others": dict(found),
    }  # fmt: skip


def _by_loop(text: str) -> list[int]:
    """Messages in the body of each loop."""
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    computations = re.split(r"\n(?=%?[\w.\-]+ \(|ENTRY)", text)
    named = {re.match(r"(?:ENTRY )?%?([\w.\-]+)", part)[1]: part for part in computations if part.strip()}
    return [len(re.findall(r" collective-permute(?:-start)?\(", named.get(body, ""))) for body in bodies]


if __name__ == "__main__":
    main()
