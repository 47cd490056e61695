"""Exports configs/tario2_4b.py from random weights, and watches the memory: `measure_large_export.py WORKDIR OUT.json`.

The checkpoint is written here as a pod would have left it, each array in shards, 16 GB in all. `tario export` reads it
in another process. Then parts of what it wrote are held against the numbers that were drawn.
"""

import json
import math
import subprocess
import sys
import time
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import tensorstore as ts
from flax import nnx
from safetensors import safe_open

from tario_jax.config_files import load_config
from tario_jax.model.build import build_of
from tario_jax.panel import Panel
from tario_jax.train.aot import pod_layout
from tario_jax.train.provenance import Provenance
from tario_jax.train.seal import seal

GENES, SHARDS, LOOKED_AT = 18963, 32, 40


def main() -> None:
    workdir, out = Path(sys.argv[1]), Path(sys.argv[2])
    run, bundle = workdir / "run", workdir / "bundle"
    config = load_config("configs/tario2_4b.py")
    panel = Panel(tuple(f"GENE{number}" for number in range(GENES)))
    built = build_of(config, GENES)
    step = run / "checkpoints" / "100"
    sizes = {}
    for item, state in (("parameters", built.parameters), ("calibration", built.calibration)):
        leaves = {".".join(map(str, path)): tuple(variable.shape) for path, variable in nnx.to_flat_state(state)}
        write_item(step / item, leaves)
        sizes |= {("calibration." if item == "calibration" else "") + name: shape for name, shape in leaves.items()}
    provenance = Provenance(config, panel, "made", "virtual", "patient", ("A1",), ("B1",), pod_layout(config, GENES),
                            ("A",), config.data.bin_um)  # fmt: skip
    (step / "provenance.json").write_text(json.dumps(provenance.to_json()))
    seal(step)
    written = sum(4 * math.prod(shape) for shape in sizes.values())
    print(f"a checkpoint of {written / 1e9:.1f} GB in {len(sizes)} arrays", flush=True)
    command = [sys.executable, "-m", "tario_jax.cli", "export", str(run), f"--out={bundle}", "--weights=bfloat16",
               "--compute=bfloat16", "--no-golden"]  # fmt: skip
    began, process = time.monotonic(), subprocess.Popen(command)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, peak_gb(process.pid))
        time.sleep(0.2)
    seconds = time.monotonic() - began
    if process.returncode:
        raise SystemExit(process.returncode)
    index = json.loads((bundle / "params.safetensors.index.json").read_text())
    wrong, rng = 0, np.random.default_rng(1)
    names = sorted(index["weight_map"])
    for name in rng.choice(names, min(LOOKED_AT, len(names)), replace=False).tolist():
        with safe_open(bundle / index["weight_map"][name], framework="np") as tensors:
            part = tensors.get_slice(name)
            row = int(rng.integers(sizes[name][0])) if sizes[name] else 0
            found = np.asarray(part[row : row + 1] if sizes[name] else tensors.get_tensor(name)).astype(np.float32)
        expected = rows_of(name.removeprefix("calibration."), sizes[name], row, row + 1)
        if name in json.loads((bundle / "signature.json").read_text())["parameters"]:
            kind = json.loads((bundle / "signature.json").read_text())["parameters"][name]["dtype"]
            expected = expected.astype(ml_dtypes.bfloat16).astype(np.float32) if kind == "bfloat16" else expected
        wrong += not np.array_equal(found, expected)
    files, total_gb = len(set(index["weight_map"].values())), index["metadata"]["total_size"] / 1e9
    looked_at = min(LOOKED_AT, len(names))
    table = (f"{written / 1e9:.1f} GB of float32 in {len(sizes)} arrays exported to {total_gb:.1f} GB in {files} files "
             f"in {seconds:.0f} s; peak memory of the process {peak:.2f} GB; {wrong} of {looked_at} arrays looked at "
             "differ")  # fmt: skip
    print(table)
    out.write_text(json.dumps({"peak_gb": peak, "seconds": seconds, "wrong": wrong, "table": table}))


def rows_of(name: str, shape: tuple[int, ...], first: int, end: int) -> np.ndarray:
    """Rows of a leaf: each has a generator of its own."""
    if not shape:
        return np.float32(0.5)
    rows = [np.random.Generator(np.random.Philox(key=[zlib.crc32(name.encode()), row])).standard_normal(
        shape[1:], dtype=np.float32) for row in range(first, end)]  # fmt: skip
    return np.stack(rows)


def write_item(folder: Path, leaves: dict[str, tuple[int, ...]]) -> None:
    """Arrays as Orbax lays them: zarr in one OCDBT store, each in shards, and the tree beside them."""
    folder.mkdir(parents=True)
    tree = {}
    for name, shape in leaves.items():
        keys = name.split(".")
        tree[str(tuple(keys))] = {"key_metadata": [{"key": key, "key_type": 2} for key in keys],
                                  "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False}}  # fmt: skip
        # as on a mesh with SHARDS devices along fsdp: a shard is all layers of a part of the second axis
        axis = min(1, len(shape) - 1)
        chunks = [-(-size // SHARDS) if number == axis else size for number, size in enumerate(shape)]
        kvstore = {"driver": "ocdbt", "base": f"file://{folder.resolve()}/", "path": f"{name}/"}
        metadata = {"shape": list(shape), "chunks": chunks, "dtype": "<f4", "compressor": None}
        spec = {"driver": "zarr", "kvstore": kvstore, "metadata": metadata}
        store = ts.open(spec, create=True, open=True).result()
        store.write(rows_of(name, shape, 0, shape[0] if shape else 1)).result()
    (folder / "_METADATA").write_text(json.dumps({"tree_metadata": tree, "use_ocdbt": True, "use_zarr3": False}))


def peak_gb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM")), 0.0)


if __name__ == "__main__":
    main()
