"""Peak memory of `tario ingest` on a section of 10^8 transcripts, CosMx (csv.gz) or Xenium (parquet), generated first.

The vendor's file takes 2 to 3 GB, temporary files and corpus about 4 GB more; generating it takes 3 minutes on one
core.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

TARIO = Path(sys.executable).parent / "tario"
SIDE_PX, UM_PER_PX = 4256, 0.12028
TARGETS, CONTROLS = 18_000, 50
ROWS_PER_FOV = 250_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path)
    parser.add_argument("--workdir", type=Path, required=True, help="of the vendor's file and the corpus")
    parser.add_argument("--source", choices=("cosmx", "xenium"), default="cosmx")
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--generate", action="store_true", help="only the vendor's files, and nothing is measured")
    options = parser.parse_args()
    folder, corpus = options.workdir / "vendor", options.workdir / "corpus"
    if options.generate:
        folder.mkdir(parents=True)
        {"cosmx": generate_cosmx, "xenium": generate_xenium}[options.source](folder, options.rows)
        return
    began = time.monotonic()
    # in a process of its own: what it holds must not count, nor be there when the next one starts
    subprocess.run([sys.executable, __file__, options.json, f"--workdir={options.workdir}", f"--rows={options.rows}",
                    f"--source={options.source}", "--generate"], check=True)  # fmt: skip
    generated = time.monotonic()
    said = options.workdir / "ingest.json"
    process = subprocess.Popen([TARIO, "ingest", f"--source={options.source}", f"--path={folder}", "--patient=P1",
                                "--cohort=LUAD", "--section=S1", f"--out={corpus}", f"--json={said}"])  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - generated
    if status:
        raise SystemExit("tario ingest failed")
    account = json.loads(said.read_text())
    (tally,) = (one for one in account["report"]["tallies"] if one["what"] == "detections")
    dropped = sum(tally["dropped"].values())
    if tally["read"] != options.rows or account["detections"] + dropped != options.rows:
        raise SystemExit(f"{account['detections']} in the corpus and {dropped} dropped are not {options.rows} rows")
    result = {
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
        "rows": options.rows,
        "kept": account["detections"],
        "dropped": dropped,
        "rows_per_second": options.rows / seconds,
        "ingest_seconds": seconds,
        "generate_seconds": generated - began,
        "vendor_gb": size_gb(folder),
        "corpus_gb": size_gb(corpus),
    }
    print(json.dumps(result, indent=1))
    options.json.write_text(json.dumps(result, indent=1))


def size_gb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def generate_cosmx(folder: Path, rows: int) -> None:
    """One block of an FOV's transcripts under every FOV's number and place: what is local stays as it is."""
    import gzip

    import numpy as np
    import pyarrow as pa
    from pyarrow import csv

    rng = np.random.default_rng(0)
    fovs = -(-rows // ROWS_PER_FOV)
    number = np.arange(fovs)
    start_px = np.stack([10_000 + SIDE_PX * (number % 20), 50_000 + SIDE_PX * (number // 20)], 1)
    start_mm = start_px * UM_PER_PX / 1000
    positions = {"FOV": number + 1, "x_global_px": start_px[:, 0], "y_global_px": start_px[:, 1],
                 "x_global_mm": start_mm[:, 0], "y_global_mm": start_mm[:, 1]}  # fmt: skip
    csv.write_csv(pa.table(positions), folder / "S1_fov_positions_file.csv")
    names = [f"GENE{gene}" for gene in range(TARGETS)] + [f"Negative{control}" for control in range(CONTROLS)]
    share = np.append(rng.pareto(1.2, TARGETS) + 0.05, np.full(CONTROLS, 0.5))
    local_px = np.round(rng.uniform(0, SIDE_PX, (ROWS_PER_FOV, 2)), 2)
    target_N = rng.choice(len(names), ROWS_PER_FOV, p=share / share.sum())
    target_N[: len(names)] = rng.permutation(len(names))  # every one of them
    target = pa.array(np.array(names)[target_N])
    cell = pa.array(rng.integers(0, 3000, ROWS_PER_FOV))
    part = pa.array(np.array(["Nuclear", "Cytoplasm", "Membrane", "None"])[rng.integers(0, 4, ROWS_PER_FOV)])
    plane = pa.array(rng.integers(0, 9, ROWS_PER_FOV))
    with gzip.open(folder / "S1_tx_file.csv.gz", "wb", compresslevel=1) as file:
        for fov in range(fovs):
            table = pa.table({
                "fov": np.full(ROWS_PER_FOV, fov + 1, np.int32), "cell_ID": cell,
                "x_local_px": local_px[:, 0], "y_local_px": local_px[:, 1],
                "x_global_px": np.round(start_px[fov, 0] + local_px[:, 0], 2),
                "y_global_px": np.round(start_px[fov, 1] + SIDE_PX - local_px[:, 1], 2),
                "z": plane, "target": target, "CellComp": part,
            })  # fmt: skip
            csv.write_csv(table[: rows - fov * ROWS_PER_FOV], file, csv.WriteOptions(include_header=fov == 0))


def generate_xenium(folder: Path, rows: int) -> None:
    """A section of 10 × 10 mm without H&E, 5,000 genes, half a million cells with names."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet

    rng = np.random.default_rng(0)
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": 0.2125}))
    names = pa.array([f"GENE{gene}" for gene in range(5000)] + [f"NegControlProbe_{one}" for one in range(40)])
    cells = pa.array([f"{number:x}-1" for number in range(500_000)])
    writer, at_once = None, 1_000_000
    for start in range(0, rows, at_once):
        number = min(at_once, rows - start)
        cell_N = (start / rows * 480_000 + rng.integers(0, 20_000, number)).astype(np.int32)
        table = pa.table({
            "transcript_id": np.arange(start, start + number, dtype=np.uint64),
            "cell_id": cells.take(pa.array(cell_N)),
            "overlaps_nucleus": rng.integers(0, 2, number).astype(np.uint8),
            "feature_name": names.take(pa.array(rng.integers(0, len(names), number))),
            "x_location": rng.uniform(0, 10_000, number).astype(np.float32),
            "y_location": rng.uniform(0, 10_000, number).astype(np.float32),
            "z_location": rng.uniform(0, 20, number).astype(np.float32),
            "qv": rng.uniform(10, 40, number).astype(np.float32),
        })  # fmt: skip
        writer = writer or parquet.ParquetWriter(folder / "transcripts.parquet", table.schema)
        writer.write_table(table)
    writer.close()


if __name__ == "__main__":
    main()
