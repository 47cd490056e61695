"""The step on eight devices beside that on one: run with OUT.json.

Loss and gradients of the first batch, and the parameters after five steps, f32, from the loader's batches of a small
virtual corpus, content and local layers included: on one device with dense attention, on eight virtual CPU devices as
each of six meshes, and on two processes of four. Errors are relative L2 norms over all parameters.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MESHES = (8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 8, 1), (1, 1, 1, 8), (2, 2, 2, 1), (1, 2, 2, 2)
GATHERED = (1, 1, 8, 1)  # once more, keys gathered in place of the ring
_STEPS = 5
_MINUTES = 20
_SIMULATE = ("simulate", "--patients=4", "--validation=0", "--held-out=1", "--section-um=144", "--panel=curated",
             "--regions=core", "--workers=2")  # fmt: skip


def main() -> None:
    answer = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        _started([_tario() + [*_SIMULATE, f"--out={corpus}"]])
        for processes in (1, 2):
            out = Path(folder) / str(processes)
            out.mkdir()
            words = [sys.executable, __file__, "steps", str(corpus), str(out), str(processes)]
            _started([[*words, str(process)] for process in range(processes)], devices=8 // processes)
        result = _compare(Path(folder))
    print(result["table"])
    answer.write_text(json.dumps(result, indent=1))


def _tario() -> list[str]:
    return [sys.executable, "-m", "tario_jax.cli"]


def _started(commands: list[list[str]], devices: int = 1) -> None:
    """Runs commands side by side, each on so many virtual devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")))),
    }  # fmt: skip
    running = [subprocess.Popen(command, env=environment) for command in commands]
    try:
        statuses = [one.wait(timeout=60 * _MINUTES) for one in running]
    finally:
        for one in running:
            one.kill()
    if any(statuses):
        raise SystemExit(f"{commands[0][1:4]}: exit statuses {statuses}")


# What each process of a measurement does


def take_steps(corpus_root: str, out: Path, processes: int, process: int) -> None:
    """Writes <mesh>.npz for each mesh into `out`; one process alone writes that of one device too."""
    from tario_jax.corpus.read import Corpus
    from tario_jax.parallel.clusters import find_cluster
    from tario_jax.parallel.hosts import join
    from tario_jax.tokens.capacity import corpus_layout

    if processes > 1:
        port = 20000 + os.getppid() % 10000
        flags = {"coordinator": f"localhost:{port}", "processes": processes, "process": process}
        join(find_cluster({}, **flags), 120, print, lambda: None)
    import jax

    corpus = Corpus.open(corpus_root)
    config = _config()
    layout = corpus_layout(corpus.sections, config.data, len(corpus.panel))
    if processes == 1:
        _on_mesh(config, corpus, layout, (1, 1, 1, 1), "reference", jax.devices()[:1], out / "alone.npz")
    for mesh in MESHES:
        attention = "ring" if mesh[2] > 1 else "auto"  # auto would gather keys as few as these
        _on_mesh(config, corpus, layout, mesh, attention, jax.devices(), out / f"{_name(mesh)}.npz")
    if processes == 1:
        _on_mesh(config, corpus, layout, GATHERED, "all_gather", jax.devices(), out / "gathered.npz")


def _name(mesh: tuple[int, ...]) -> str:
    return "x".join(map(str, mesh))


def _config():
    from tario_jax.config import Config, DataConfig, ModelConfig, OptimConfig

    return Config(
        name="mesh_equality",
        # bins of 24 µm reach over the edges of tiles of 36 µm; eight tiles a row, for eight devices along context
        data=DataConfig(window_um=72.0, tile_um=36.0, bin_um=24.0, he_um_per_px=1.0, patch_px=9, rows=8,
                        windows_per_row=2, groups=((1, 1.0), (4, 1.0))),
        model=ModelConfig(width=64, layers=4, heads=16, kv_heads=8, head_dim=8, mlp_width=128, gene_dim=32,
                          stem_width=8, loss_chunk=16, pattern=("local", "global")),
        optim=OptimConfig(learning_rate=5e-3, warmup_steps=2),
    )  # fmt: skip


def _on_mesh(config, corpus, layout, sizes: tuple[int, ...], attention: str, devices, out: Path) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from tario_jax.config import MeshConfig
    from tario_jax.model.build import build
    from tario_jax.parallel.collectives import collectives
    from tario_jax.parallel.mesh import batch_shardings, local_rows, make_mesh, traced_on
    from tario_jax.tokens.pipeline import BatchSource
    from tario_jax.train.optimiser import make_optimiser
    from tario_jax.train.state import TrainState, make_train_step, state_shardings, to_devices

    mesh = make_mesh(MeshConfig(*sizes), devices)
    model = dataclasses.replace(config.model, attention=attention)
    built = build(model, len(corpus.panel), config.data.patch_px, content=True)
    optimiser = make_optimiser(config.optim, 2 * _STEPS, built)
    rng = np.random.default_rng(0)  # nothing starts at zero, where a gradient is noise or nothing
    parameters, calibration = jax.tree.map(
        lambda leaf: (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32), built.abstract()
    )
    calibration = jax.tree.map(lambda leaf: 1 + abs(leaf), calibration)
    moments = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(optimiser.init, parameters))
    shardings = state_shardings(built, optimiser, mesh)
    state = jax.device_put(TrainState.begin(parameters, calibration, moments), shardings)
    source = BatchSource(corpus.sections, config.data, layout, steps=_STEPS, rows=local_rows(mesh, config.data.rows))

    def loss(parameters, calibration, batch):
        nll = built.merge(parameters, calibration).loss(batch)
        return (nll.total_nats + nll.gene_nats) / jnp.maximum(nll.detections, 1.0)

    whole = NamedSharding(mesh, PartitionSpec())
    gather = jax.jit(lambda tree: tree, out_shardings=whole)
    of_batch = jax.jit(
        traced_on(mesh, jax.value_and_grad(loss)), out_shardings=(whole, shardings.parameters),
        in_shardings=(shardings.parameters, shardings.calibration, batch_shardings(mesh)),
    )  # fmt: skip
    first, gradients = of_batch(state.parameters, state.calibration, to_devices(source[0], mesh))
    gradients = jax.device_get(gather(gradients))
    step = make_train_step(built, optimiser, mesh).lower(state, to_devices(source[0], mesh)).compile()
    sent, _ = collectives(step.as_text(), dict(mesh.shape))
    for t in range(_STEPS):
        state, _ = step(state, to_devices(source[t], mesh))
    reached = jax.device_get(gather(state.parameters))
    if jax.process_index():
        return
    leaves = jax.tree.leaves_with_path(gradients)
    # what one device receives where the keys and values of a row's eight tiles are gathered once a layer
    seen = layout.tiles * (layout.patches_per_tile + layout.bins_per_tile)
    of_keys = 2 * 4 * config.data.rows * seen * model.kv_heads * model.head_dim * model.layers
    told = {
        "loss": float(first), "names": [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves],
        "permutes": sum(one.count for one in sent if one.kind == "collective-permute" and "context" in one.axes),
        "gathers_of_keys": sum(one.bytes for one in sent if one.kind == "all-gather" and one.axes == ("context",))
        / (of_keys * (1 - 1 / mesh.shape["context"]) or 1),
    }  # fmt: skip
    np.savez(out, told=json.dumps(told), **{f"gradient{i}": leaf for i, (_, leaf) in enumerate(leaves)},
             **{f"parameter{i}": leaf for i, leaf in enumerate(jax.tree.leaves(reached))})  # fmt: skip
    print(f"{out.parent.name} process(es), {out.stem}: loss {float(first):.6f}", flush=True)


# What comes of it


def _compare(folder: Path) -> dict:
    alone = _read(folder / "1" / "alone.npz")
    rows = [{"mesh": mesh} | _beside(_read(folder / "1" / f"{_name(mesh)}.npz"), alone)
            for mesh in MESHES]  # fmt: skip
    gathered = {"mesh": GATHERED} | _beside(_read(folder / "1" / "gathered.npz"), alone)
    processes = [{"mesh": mesh} | _beside(_read(folder / "2" / f"{_name(mesh)}.npz"),
                                          _read(folder / "1" / f"{_name(mesh)}.npz")) for mesh in MESHES]  # fmt: skip
    over_context = [row for row in rows if row["mesh"][2] > 1]
    beside = next(row for row in rows if row["mesh"] == GATHERED)
    rows.append(gathered)
    result = {
        "meshes": rows, "two_processes": processes, "worst": max(map(_largest, rows)),
        "two_processes_worst": max(map(_largest, processes)),
        "two_processes_to_the_bit": sum(row["same_bits"] for row in processes),
        # 1: with context > 1 keys travel in a ring, and with all_gather in no ring but gathered, once a layer at least
        "as_asked": int(all(row["permutes"] > 0 for row in over_context) and gathered["permutes"] == 0
                        and gathered["gathers_of_keys"] - beside["gathers_of_keys"] >= 1),
    }  # fmt: skip
    lines = [
        f"relative L2 over all parameters, f32, {_STEPS} steps; mesh: replica, fsdp, context, tensor",
        f"{'':<24}{'loss':>9}{'gradients':>11}{'parameters':>12}{'worst':>9}  of one parameter",
    ]
    lines += [_line(f"{_mesh(row)}, {_attention(row)}", row) for row in rows]
    lines += ["two processes of four devices beside one of eight"]
    lines += [_line(_mesh(row), row) + (", same bits" if row["same_bits"] else "") for row in processes]
    return result | {"table": "\n".join(lines)}


def _read(path: Path) -> dict:
    import numpy as np

    with np.load(path) as stored:
        told = json.loads(str(stored["told"]))
        leaves = range(len(told["names"]))
        return told | {kind: [stored[f"{kind}{i}"].astype(np.float64) for i in leaves]
                       for kind in ("gradient", "parameter")}  # fmt: skip


def _beside(found: dict, expected: dict) -> dict:
    import numpy as np

    def apart(kind: str) -> tuple[float, list[float]]:
        off = [np.linalg.norm(a - b) for a, b in zip(found[kind], expected[kind], strict=True)]
        size = [np.linalg.norm(b) for b in expected[kind]]
        of_each = [error / max(norm, 1e-12) for error, norm in zip(off, size, strict=True)]
        return float(np.linalg.norm(off) / np.linalg.norm(size)), of_each

    (gradients, _), (parameters, of_each) = apart("gradient"), apart("parameter")
    worst = int(np.argmax(of_each))
    return {
        "loss_error": abs(found["loss"] / expected["loss"] - 1), "gradients": gradients, "parameters": parameters,
        "worst_parameter": float(of_each[worst]), "worst_name": found["names"][worst],
        "permutes": found["permutes"], "gathers_of_keys": found["gathers_of_keys"],
        "same_bits": all(np.array_equal(a, b) for kind in ("gradient", "parameter")
                         for a, b in zip(found[kind], expected[kind], strict=True)),
    }  # fmt: skip


def _largest(row: dict) -> float:
    return max(row["loss_error"], row["gradients"], row["parameters"])


def _mesh(row: dict) -> str:
    return "(" + ",".join(map(str, row["mesh"])) + ")"


def _attention(row: dict) -> str:
    if row["mesh"][2] == 1:
        return "own tokens"
    return "ring" if row["permutes"] else "all-gather"


def _line(name: str, row: dict) -> str:
    return (f"{name:<24}{row['loss_error']:>9.1e}{row['gradients']:>11.1e}{row['parameters']:>12.1e}"
            f"{row['worst_parameter']:>9.1e}  {row['worst_name']}")  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "steps":
        take_steps(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
