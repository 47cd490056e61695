"""Peak memory of `tario ingest` on a section of 10^8 transcripts, CosMx (csv.gz), Xenium (parquet, with an H&E of 1.6
gigapixels) or Visium HD (h5, squares of 2 µm, with one of 0.7), generated first.

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
    parser.add_argument("--source", choices=("cosmx", "xenium", "visium_hd"), default="cosmx")
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--generate", action="store_true", help="only the vendor's files, and nothing is measured")
    options = parser.parse_args()
    folder, corpus = options.workdir / "vendor", options.workdir / "corpus"
    if options.generate:
        folder.mkdir(parents=True)
        {"cosmx": generate_cosmx, "xenium": generate_xenium, "visium_hd": generate_visium_hd}[options.source](
            folder, options.rows
        )
        return
    began = time.monotonic()
    # in a process of its own: what it holds must not count, nor be there when the next one starts
    subprocess.run([sys.executable, __file__, options.json, f"--workdir={options.workdir}", f"--rows={options.rows}",
                    f"--source={options.source}", "--generate"], check=True)  # fmt: skip
    generated = time.monotonic()
    said = options.workdir / "ingest.json"
    words = [f"--image={folder / 'scan.tif'}"] if options.source == "visium_hd" else []
    process = subprocess.Popen([TARIO, "ingest", f"--source={options.source}", f"--path={folder}", "--patient=P1",
                                "--cohort=LUAD", "--section=S1", f"--out={corpus}", f"--json={said}",
                                *words])  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - generated
    if status:
        raise SystemExit("tario ingest failed")
    account = json.loads(said.read_text())
    (tally,) = (one for one in account["report"]["tallies"] if one["what"] in ("detections", "counts"))
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
    """A section of 10 × 10 mm with its H&E, 5,000 genes, half a million cells with names."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet

    rng = np.random.default_rng(0)
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": 0.2125}))
    write_scan(folder / "he_image.ome.tif", 40_000, 0.25)
    (folder / "he_imagealignment.csv").write_text(f"{0.25 / 0.2125},0.01,0\n-0.01,{0.25 / 0.2125},0\n0,0,1\n")
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


def generate_visium_hd(folder: Path, counts: int) -> None:
    """6.5 × 6.5 mm of squares of 2 µm, three quarters in tissue, 18,000 genes, on a scan of 0.25 µm per px."""
    import h5py
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(0)
    side, um_per_px, margin_px = 3250, 0.25, 200
    squares = folder / "binned_outputs/square_002um"
    (squares / "spatial").mkdir(parents=True)
    rows, columns = (grid.ravel().astype(np.int32) for grid in np.mgrid[:side, :side])
    of_row, of_column = ([f"{start}{number:05d}{end}" for number in range(side)]
                         for start, end in (("s_002um_", "_"), ("", "-1")))  # fmt: skip
    barcodes = np.char.add(np.array(of_row, "S")[:, None], np.array(of_column, "S")[None]).ravel()
    place_px = margin_px + np.stack([columns, rows], 1) * (2 / um_per_px)
    in_tissue = rows >= side // 4
    pd.DataFrame({
        "barcode": barcodes.astype(str), "in_tissue": in_tissue.astype(np.int64), "array_row": rows,
        "array_col": columns, "pxl_row_in_fullres": place_px[:, 1], "pxl_col_in_fullres": place_px[:, 0],
    }).to_parquet(squares / "spatial/tissue_positions.parquet", index=False)  # fmt: skip
    factors = {"microns_per_pixel": um_per_px, "bin_size_um": 2.0, "tissue_hires_scalef": 0.1}
    (squares / "spatial/scalefactors_json.json").write_text(json.dumps(factors))
    write_scan(folder / "scan.tif", 2 * margin_px + round(side * 2 / um_per_px) + 512, um_per_px)
    barcodes = barcodes[in_tissue]
    entries_B = np.full(len(barcodes), counts // len(barcodes))
    entries_B[: counts - entries_B.sum()] += 1  # every entry counts one
    with h5py.File(squares / "filtered_feature_bc_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        packed = {"chunks": (1 << 16,), "compression": "gzip", "compression_opts": 1}
        matrix.create_dataset("barcodes", data=barcodes, **packed)
        matrix.create_dataset("indptr", data=np.concatenate([[0], np.cumsum(entries_B)]), **packed)
        matrix["shape"] = np.array([TARGETS, len(barcodes)], np.int32)
        for name, value in (("id", "ENSG{:011d}"), ("name", "GENE{}"), ("feature_type", "Gene Expression")):
            matrix[f"features/{name}"] = np.array([value.format(gene) for gene in range(TARGETS)], "S")
        indices, data = (matrix.create_dataset(name, (counts,), kind, **packed)
                         for name, kind in (("indices", np.int64), ("data", np.int32)))  # fmt: skip
        for start in range(0, counts, 1 << 22):
            end = min(start + (1 << 22), counts)
            indices[start:end] = (TARGETS * rng.random(end - start) ** 3).astype(np.int64)
            data[start:end] = 1


def write_scan(path: Path, side_px: int, um_per_px: float) -> None:
    """A tiled JPEG of one tile of noise again and again: encoded once, decoded as often as it is read."""
    import numpy as np
    import tifffile

    tile_px, side_px = 512, side_px // 512 * 512
    noise = np.random.default_rng(0).integers(90, 255, (tile_px // 8, tile_px // 8, 3), dtype=np.uint8)
    options = {"tile": (tile_px, tile_px), "photometric": "rgb", "compression": "jpeg", "dtype": np.uint8}
    tifffile.imwrite(path, noise.repeat(8, 0).repeat(8, 1), **options, metadata=None)
    with tifffile.TiffFile(path) as file:
        offset, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    encoded = path.read_bytes()[offset : offset + size]
    axes = {"axes": "YXS", "PhysicalSizeX": um_per_px, "PhysicalSizeY": um_per_px}
    with tifffile.TiffWriter(path, bigtiff=True, ome=path.name.endswith(".ome.tif")) as file:
        tiles = (encoded for _ in range((side_px // tile_px) ** 2))
        file.write(tiles, shape=(side_px, side_px, 3), **options, metadata=axes)


if __name__ == "__main__":
    main()
