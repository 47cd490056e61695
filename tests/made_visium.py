"""Small output folders of Space Ranger, for Visium and Visium HD, whose every count the test knows."""

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image

UM_PER_PX = 0.5
MARGIN_PX = 640.0  # more than the margin that is kept: the H&E is cut
FEATURES = (
    # id, symbol, type
    ("ENSG00000000001", "TP53", "Gene Expression"),
    ("ENSG00000000002", "MYC", "Gene Expression"),
    ("ENSG00000000003", "TBCE", "Gene Expression"),
    ("ENSG00000000004", "TBCE", "Gene Expression"),  # two genes of one symbol
    ("ENSG00000000005.7", "AC012345.1", "Gene Expression"),
    ("CD3", "CD3", "Antibody Capture"),
    ("ENSG00000000006", "NEVER", "Gene Expression"),  # measured and not seen
    ("DEPRECATED_ENSG00000000007", "OLD", "Gene Expression"),
)


@dataclasses.dataclass
class Made:
    """What was written: positions by barcode and counts by barcode and feature (row of FEATURES)."""

    folder: Path
    positions: pd.DataFrame
    counts: pd.DataFrame
    image: Path


def write_h5(path: Path, counts: pd.DataFrame, features=FEATURES, dtype=np.int32) -> None:
    """Counts (barcodes × features) as Space Ranger's h5: CSC of features × barcodes."""
    values = counts.to_numpy()
    barcode, feature = np.nonzero(values)
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(list(counts.index), "S")
        matrix["data"] = values[barcode, feature].astype(dtype)
        matrix["indices"] = feature.astype(np.int64)
        matrix["indptr"] = np.concatenate([[0], np.cumsum((values != 0).sum(1))]).astype(np.int64)
        matrix["shape"] = np.array(values.T.shape, np.int32)
        for name, column in zip(("id", "name", "feature_type"), zip(*features, strict=True), strict=True):
            matrix[f"features/{name}"] = np.array(column, "S")


def write_positions(folder: Path, positions: pd.DataFrame, *, header: bool) -> Path:
    path = folder / ("tissue_positions.csv" if header else "tissue_positions_list.csv")
    positions.to_csv(path, index=False, header=header)
    return path


def write_image(path: Path, positions: pd.DataFrame, dot_px: int, seed: int = 0) -> Path:
    """Noise with a dark dot at every place in tissue."""
    end = positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]].max().to_numpy() + MARGIN_PX
    image = np.random.default_rng(seed).integers(190, 255, (int(end[1]), int(end[0]), 3), dtype=np.uint8)
    for x, y in positions.loc[positions.in_tissue == 1, ["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy():
        image[round(y) - dot_px : round(y) + dot_px, round(x) - dot_px : round(x) + dot_px] = (120, 40, 140)
    Image.fromarray(image).save(path)
    return path


def made_positions(columns, rows, step_px, barcode, angle=0.0) -> pd.DataFrame:
    """A lattice, slightly turned, of which the first row is not in tissue."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    place = np.column_stack([columns * step_px[0], rows * step_px[1]]) @ turn
    place += MARGIN_PX - place.min(0)
    return pd.DataFrame({
        "barcode": [barcode(c, r) for c, r in zip(columns, rows, strict=True)],
        "in_tissue": (rows > rows.min()).astype(int), "array_row": rows, "array_col": columns,
        "pxl_row_in_fullres": place[:, 1], "pxl_col_in_fullres": place[:, 0],
    })  # fmt: skip


def made_counts(barcodes, seed: int, mean: float = 2.0, features=FEATURES) -> pd.DataFrame:
    counts = np.random.default_rng(seed).poisson(mean, (len(barcodes), len(features)))
    counts[:, [row for row, feature in enumerate(features) if feature[1] == "NEVER"]] = 0
    return pd.DataFrame(counts, index=list(barcodes))


def made_visium(folder: Path, *, header: bool = True, flat: bool = False, seed: int = 0, features=FEATURES) -> Made:
    """6 × 5 spots at a pitch of 100 µm (200 px), a matrix of all of them, and the scan."""
    spatial = folder if flat else folder / "spatial"
    spatial.mkdir(parents=True)
    rows, half = (grid.ravel() for grid in np.meshgrid(np.arange(5), np.arange(6), indexing="ij"))
    columns = 2 * half + rows % 2
    step_px = (50 / UM_PER_PX, 50 * 3**0.5 / UM_PER_PX)
    positions = made_positions(columns, rows, step_px, lambda c, r: f"AAAC{r:02d}{c:02d}-1", angle=0.02)
    write_positions(spatial, positions, header=header)
    factors = {"spot_diameter_fullres": 65 / UM_PER_PX, "tissue_hires_scalef": 0.25, "tissue_lowres_scalef": 0.05}
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
    counts = made_counts(positions.barcode, seed, features=features)
    write_h5(folder / "filtered_feature_bc_matrix.h5", counts, features)
    image = write_image(folder / "scan.bmp", positions, 10, seed)
    with Image.open(image) as scan:
        scan.resize((scan.width // 4, scan.height // 4)).convert("RGBA").save(spatial / "tissue_hires_image.png")
    return Made(folder, positions, counts, image)


def made_visium_hd(folder: Path, *, square_um: int = 2, side: int = 60, seed: int = 0,
                   each: int = 0) -> Made:  # fmt: skip
    """side × side squares without gaps, turned by 1°, with a column of the grid out of tissue too.

    each: counts of every gene in every square; 0: some, and none at all in a third of the squares.
    """
    squares = folder / f"binned_outputs/square_{square_um:03d}um"
    (squares / "spatial").mkdir(parents=True)
    rows, columns = (grid.ravel() for grid in np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
    step_px = (square_um / UM_PER_PX,) * 2
    name = f"s_{square_um:03d}um_"
    positions = made_positions(columns, rows, step_px, lambda c, r: f"{name}{r:05d}_{c:05d}-1", angle=0.017)
    positions.to_parquet(squares / "spatial/tissue_positions.parquet", index=False)
    factors = {"microns_per_pixel": UM_PER_PX, "bin_size_um": float(square_um), "tissue_hires_scalef": 0.25}
    (squares / "spatial/scalefactors_json.json").write_text(json.dumps(factors))
    counted = (positions.index % 3 > 0) | bool(each)  # squares without a count have no barcode
    counts = made_counts(positions[(positions.in_tissue == 1) & counted].barcode, seed, mean=0.4)
    counts = counts if not each else counts * 0 + each
    write_h5(squares / "filtered_feature_bc_matrix.h5", counts)
    return Made(folder, positions, counts, write_image(folder / "scan.bmp", positions, 1, seed))
