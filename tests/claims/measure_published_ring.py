"""Causal attention of the published package ringattention on 8 virtual CPU devices, forward + backward in float32,
beside a plain matmul that takes turns with it: `measure_published_ring.py OUT.json`.

The package does not import on the jax of this project, so it gets an environment of its own with the newest that it
runs with. Where it cannot be installed or run, the result says why and "ran" is false.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# jax 0.8 removed what the package's import asks for; flax 0.12.0 is the newest for jax 0.7
PINNED = {"ringattention": "0.1.2", "jax": "0.7.2", "jaxlib": "0.7.2", "flax": "0.12.0", "numpy": "2.4.6",
          "ml_dtypes": "0.6.0", "einops": "0.8.2"}  # fmt: skip
DEVICES = 8
CHUNKS = (128, 256, 512, 1024)  # of queries and of keys: every pair is tried; 64 is slower than 128
CHECKED_TOKENS, CHECKED_CHUNKS = 512, ((64, 64), (32, 16), (16, 32))
ALLOWED_ERROR = 1e-5
SIDE = 2048  # of the matmul


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path)
    parser.add_argument("--workdir", type=Path, help="default: a temporary folder, gone afterwards")
    parser.add_argument("--venv", type=Path, help="made where absent, reused where complete; default WORKDIR/published")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--width", type=int, default=64, help="of a head")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", type=Path, help="result of 'tario bench attention': ours beside the published one")
    parser.add_argument("--inside", action="store_true", help="measure with the Python that runs this")
    options = parser.parse_args()
    for name in ("tokens", "heads", "width", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}={getattr(options, name)}: expected at least 1")
    if options.tokens % DEVICES:
        parser.error(f"--tokens={options.tokens}: expected a multiple of {DEVICES}, the devices")
    if options.inside:
        try:
            result = measure(options.tokens, options.heads, options.width, options.rounds)
        except Exception as failure:  # whatever the package fails with is what is reported
            raise SystemExit(f"{type(failure).__name__}: {first_line(str(failure))}") from None
        options.json.write_text(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            python = environment(options.venv or (options.workdir or Path(folder)) / "published")
            result = {"ran": True, "why": ""} | measured_in(python, options, Path(folder) / "inside.json")
        except RuntimeError as failure:
            why = str(failure)
            result = {"ran": False, "why": why, "table": f"ringattention {PINNED['ringattention']}: not run: {why}"}
    if options.beside and result["ran"]:
        ours = json.loads(options.beside.read_text())
        result["ours_of_matmul"] = ours["ways"]["ring"]["share_of_matmul"]
        result["beside_ours"] = result["ours_of_matmul"] / result["share_of_matmul"]
        result["table"] += f"\nours, in its own process: {result['ours_of_matmul']:.2f} of its matmul\n" + ours["table"]
    print(result["table"])
    options.json.write_text(json.dumps(result, indent=1))


def environment(folder: Path) -> Path:
    """The Python of a virtual environment with what is pinned. `RuntimeError` where it cannot be made."""
    python = folder.resolve() / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if complete(python):
        return python
    print(f"installing {', '.join(f'{name} {version}' for name, version in PINNED.items())}", flush=True)
    pins = [f"{name}=={version}" for name, version in PINNED.items()]
    for what, command in (
        ("made", [sys.executable, "-m", "venv", folder]),
        ("filled", [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins]),
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"its environment could not be {what}: {complaint(done.stderr or done.stdout)}")
    return python


def complete(python: Path) -> bool:
    """Whether that environment exists, has what is pinned, and the package imports in it."""
    if not python.exists():
        return False
    versions = "{name: importlib.metadata.version(name) for name in sys.argv[1:]}"
    code = f"import importlib.metadata, json, sys, ringattention; print(json.dumps({versions}))"
    done = subprocess.run([python, "-I", "-c", code, *PINNED], capture_output=True, text=True, env=variables())
    return done.returncode == 0 and json.loads(done.stdout) == PINNED


def variables() -> dict[str, str]:
    """This environment's variables without settings of jax, but for the virtual devices."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return kept | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}"}


def measured_in(python: Path, options: argparse.Namespace, said: Path) -> dict:
    sizes = [f"--{name}={getattr(options, name)}" for name in ("tokens", "heads", "width", "rounds")]
    done = subprocess.run([python, "-I", __file__, said, "--inside", *sizes], env=variables(), text=True,
                          stderr=subprocess.PIPE)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {complaint(done.stderr)}")
    return json.loads(said.read_text())


def complaint(text: str) -> str:
    """The line of a program's output that says what went wrong: its first ERROR, else its last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it said nothing"]
    return next((line for line in lines if line.startswith("ERROR")), lines[-1])


def first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")


def measure(tokens: int, heads: int, width: int, rounds: int) -> dict:
    """Runs in the environment of the package. `RuntimeError` where it computes something else than attention."""
    import importlib.metadata

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("sp",))
    by_token = NamedSharding(mesh, PartitionSpec(None, "sp"))

    def placed(tokens: int) -> list:
        """q, k, v and the cotangent of the output, each [1, tokens, heads, width]."""
        rng = np.random.default_rng(0)
        shape = (1, tokens, heads, width)
        return [jax.device_put(rng.normal(size=shape).astype(np.float32), by_token) for _ in range(4)]

    small = placed(CHECKED_TOKENS)
    expected = dense(*(np.asarray(x[0], np.float64) for x in small))
    errors = dict.fromkeys(("out", "dq", "dk", "dv"), 0.0)
    for chunks in CHECKED_CHUNKS:
        for name, found, value in zip(errors, ring(mesh, chunks)(*small), expected, strict=True):
            off = float(np.abs(np.asarray(found[0], np.float64) - value).max() / np.abs(value).max())
            errors[name] = max(errors[name], off) if off == off else float("inf")
    error = max(errors.values())
    if not error <= ALLOWED_ERROR:
        raise RuntimeError(f"it is off by {error:.1e} of dense attention in float64; expected {ALLOWED_ERROR:.0e}")

    arrays = placed(tokens)
    a, b = (jax.random.normal(jax.random.key(number), (SIDE, SIDE), jnp.float32) for number in range(2))
    matmul = jax.jit(jnp.matmul).lower(a, b).compile()
    here = tokens // DEVICES
    sizes = [size for size in CHUNKS if here % size == 0] or [here]
    programs = {}
    for chunks in itertools.product(sizes, repeat=2):
        programs[chunks] = ring(mesh, chunks).lower(*arrays).compile()
        timed(programs[chunks], *arrays)
    tried = {chunks: [] for chunks in programs}
    for _ in range(3):
        for chunks, program in programs.items():
            tried[chunks].append(timed(program, *arrays))
    best = min(tried, key=lambda chunks: min(tried[chunks]))
    for chunks, found in tried.items():
        print(f"chunks of {chunks[0]} queries x {chunks[1]} keys: {min(found) * 1e3:,.0f} ms", flush=True)

    # as many products in a turn as take the package's time, so that both see the same machine
    repeats = max(1, round(min(tried[best]) / min(timed(matmul, a, b) for _ in range(3))))
    turns: dict[str, list[float]] = {"package": [], "matmul": []}
    for number in range(rounds):
        for name in list(turns)[:: 1 if number % 2 else -1]:  # by turns the first
            if name == "package":
                turns[name].append(timed(programs[best], *arrays))
            else:
                turns[name].append(sum(timed(matmul, a, b) for _ in range(repeats)) / repeats)
        said = ", ".join(f"{name} {found[-1] * 1e3:,.1f} ms" for name, found in turns.items())
        print(f"round {number + 1}/{rounds}: {said}", flush=True)
    seconds, matmul_seconds = (statistics.median(turns[name]) for name in turns)
    flops = 14 * width * heads * (tokens * (tokens + 1) // 2)  # a pair: 4 D forward, 10 D backward
    result = {
        "seconds": seconds, "matmul_seconds": matmul_seconds, "gflops": 1e-9 * flops / seconds,
        "matmul_gflops": 2e-9 * SIDE**3 / matmul_seconds,
        "share_of_matmul": (flops / seconds) / (2 * SIDE**3 / matmul_seconds),
        "error": error, "errors": errors, "tokens": tokens, "heads": heads, "width": width, "devices": DEVICES,
        "dtype": "float32", "query_chunk": best[0], "key_chunk": best[1], "rounds": rounds,
        "tried_seconds": {f"{q}x{k}": min(found) for (q, k), found in tried.items()},
        "versions": {name: importlib.metadata.version(name) for name in PINNED},
    }  # fmt: skip
    return result | {"table": table(result)}


def ring(mesh, chunks: tuple[int, int]) -> Callable:
    """(q, k, v, cotangent) -> output and the three gradients, by the package; chunks of queries and of keys."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec
    from ringattention import ringattention

    settings = {
        "causal_block_size": 1, "query_chunk_size": chunks[0], "key_chunk_size": chunks[1], "deterministic": True,
        "dropout_rng": None, "attn_pdrop": 0.0, "dtype": jnp.float32, "precision": None, "prevent_cse": False,
        "policy": jax.checkpoint_policies.nothing_saveable,
    }  # fmt: skip
    by_token = PartitionSpec(None, "sp")
    attend = jax.shard_map(
        lambda q, k, v: ringattention(q, k, v, None, None, None, "sp", True, settings),
        mesh=mesh, in_specs=(by_token, by_token, by_token), out_specs=by_token,
        check_vma=False,  # the package is older than that check
    )  # fmt: skip

    def both(q, k, v, d_out):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(d_out)

    return jax.jit(both)


def dense(q_SxHxD, k_SxHxD, v_SxHxD, g_SxHxD) -> tuple:
    """Causal attention and its gradients in NumPy, all pairs at once."""
    import numpy as np

    tokens, _, width = q_SxHxD.shape
    scores_HxQxK = np.einsum("qhd,khd->hqk", q_SxHxD, k_SxHxD) / np.sqrt(width)
    scores_HxQxK = np.where(np.tri(tokens, dtype=bool), scores_HxQxK, -np.inf)
    p_HxQxK = np.exp(scores_HxQxK - scores_HxQxK.max(-1, keepdims=True))
    p_HxQxK /= p_HxQxK.sum(-1, keepdims=True)
    dp_HxQxK = np.einsum("qhd,khd->hqk", g_SxHxD, v_SxHxD)
    ds_HxQxK = p_HxQxK * (dp_HxQxK - (p_HxQxK * dp_HxQxK).sum(-1, keepdims=True)) / np.sqrt(width)
    return (
        np.einsum("hqk,khd->qhd", p_HxQxK, v_SxHxD),
        np.einsum("hqk,khd->qhd", ds_HxQxK, k_SxHxD),
        np.einsum("hqk,qhd->khd", ds_HxQxK, q_SxHxD),
        np.einsum("hqk,qhd->khd", p_HxQxK, g_SxHxD),
    )


def timed(program: Callable, *arrays) -> float:
    import jax

    began = time.perf_counter()
    jax.block_until_ready(program(*arrays))
    return time.perf_counter() - began


def table(result: dict) -> str:
    versions = result["versions"]
    return "\n".join([
        f"ringattention {versions['ringattention']} on jax {versions['jax']}: causal, {result['tokens']:,} tokens, "
        f"{result['heads']} heads of {result['width']}, float32, {DEVICES} virtual CPU devices, "
        f"medians of {result['rounds']} rounds",
        f"chunks of {result['query_chunk']} queries x {result['key_chunk']} keys, the fastest of "
        f"{len(result['tried_seconds'])}; off by {result['error']:.1e} of dense float64 at {CHECKED_TOKENS} tokens",
        f"{'':<26}{'ms':>10}{'GFLOP/s':>10}{'of matmul':>11}",
        f"{'forward + backward':<26}{result['seconds'] * 1e3:>10,.1f}{result['gflops']:>10,.1f}"
        f"{result['share_of_matmul']:>11.2f}",
        f"{f'matmul of {SIDE:,} cubed':<26}{result['matmul_seconds'] * 1e3:>10,.1f}"
        f"{result['matmul_gflops']:>10,.1f}{1:>11.2f}",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
