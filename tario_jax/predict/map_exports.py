"""What other programs read of a slide's maps: AnnData, SpatialData, GeoJSON, OME-TIFF, and pictures of genes.

Bins lie in px of the slide's finest level, as other programs see the slide; x to the right, y downwards.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.config import InputError
from tario_jax.predict.map_store import MapStore
from tario_jax.predict.whole_output import refuse_full, whole_output

_MOST_CHANNELS = 4096  # of an OME-TIFF, and columns of a table in GeoJSON: beyond, nobody opens it
_LARGEST_TIFF = 4 << 30  # bytes, of which its numbers of 32 bits can tell
_ROWS = 1024  # of a chunk of AnnData's X


def write_h5ad(store: MapStore, path: Path, symbols: Sequence[str] | None = None,
               progress: Callable[[int, int], None] = lambda done, of: None) -> None:  # fmt: skip
    """AnnData in HDF5, of some genes or all of them: written run by run, in little memory."""
    h5py = _needed("h5py", "io")
    with whole_output(path) as partial:
        _frame(store, symbols).write_h5ad(partial)
        with h5py.File(partial, "r+") as file:
            _fill(file, store, symbols, progress, partial, compression="lzf")


def write_anndata_zarr(store: MapStore, path: Path, symbols: Sequence[str] | None = None,
                       progress: Callable[[int, int], None] = lambda done, of: None) -> None:  # fmt: skip
    """AnnData in zarr: as `write_h5ad`."""
    zarr, anndata = _needed("zarr", "io"), _needed("anndata", "io")
    wanted = {"zarr_write_format": 3, "auto_shard_zarr_v3": False}  # the second is of later versions
    with whole_output(path) as partial:
        group = zarr.open_group(partial, mode="w", zarr_format=3)
        with anndata.settings.override(**{name: of for name, of in wanted.items() if hasattr(anndata.settings, name)}):
            anndata.io.write_elem(group, "/", _frame(store, symbols))
        _fill(zarr.open_group(partial, mode="r+"), store, symbols, progress, partial)


def _frame(store: MapStore, symbols: Sequence[str] | None) -> Any:
    """AnnData without values: places, genes with what is known of them, and where it comes from."""
    anndata, pandas = _needed("anndata", "io"), _needed("pandas", "io")
    symbols = store.panel.symbols if symbols is None else tuple(symbols)
    places = {"x_um": store.x_um_N, "y_um": store.y_um_N, "size_um": np.full(len(store), store.bin_um),
              "detections": store.total_N}  # fmt: skip
    names = [f"{x:.1f}_{y:.1f}" for x, y in zip(store.x_um_N, store.y_um_N, strict=True)]
    validation = store.validation
    columns = {} if validation is None else {
        f"{name}_{cohort}": values for cohort in validation.cohorts
        for name, values in validation.of(cohort, symbols).items()}  # fmt: skip
    obs, var = pandas.DataFrame(places, index=names), pandas.DataFrame(columns, index=list(symbols))
    found = anndata.AnnData(obs=obs, var=var)
    found.obsm["spatial"] = pixels_of(store)
    plain = {name: value for name, value in store.about.items() if isinstance(value, str | int | float)}
    if validation is not None:
        plain |= validation.count_numbers(store.bin_um) | {"validation_split_by": validation.split_by}
    found.uns["tario"] = plain | {"warnings": "; ".join(store.warnings)}
    return found


def _fill(group: Any, store: MapStore, symbols: Sequence[str] | None, progress: Callable[[int, int], None],
          path: Path, **more: Any) -> None:  # fmt: skip
    """Writes X and layers into AnnData that is on disk at `path`, as its format has it.

    Raises `OSError` before the disk is full.
    """
    genes = slice(None) if symbols is None else store.positions(symbols)
    number = len(store.panel) if symbols is None else len(symbols)
    for name, array in (("X", "rates"), *((f"layers/{more}", more) for more in store.arrays[1:])):
        chunks = (min(_ROWS, max(1, len(store))), min(256, number))
        # AnnData without values has an empty X
        if name in group:
            del group[name]
        make = group.create_dataset if hasattr(group, "create_dataset") and more else group.create_array
        values = make(name, shape=(len(store), number), dtype="float32", chunks=chunks, **more)
        values.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for run in range(len(store.slots)):
            bins, _ = store.slots.run(run)
            refuse_full(path, (bins.stop - bins.start) * number * 4)
            values[bins] = store.run(run, array, genes)
            progress(bins.stop, len(store))


def pixels_of(store: MapStore) -> np.ndarray:
    """Centres of bins in px of the finest level, float64 [N, 2]; of a section's, of the image that it was cut from."""
    return np.stack([store.x_um_N, store.y_um_N], 1) / store.full_um_per_px + store.origin_px


def write_geojson(store: MapStore, path: Path, symbols: Sequence[str]) -> None:
    """Squares with measurements, as QuPath reads them. Raises `InputError` for more genes than it is good for."""
    _refuse_many(symbols, "GeoJSON")
    half_px = store.bin_um / store.full_um_per_px / 2
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]) * half_px
    with whole_output(path) as partial, partial.open("w", encoding="utf-8") as file:
        told = {"section": store.about["section"], "banner": store.about["banner"]}
        file.write(f'{{"type": "FeatureCollection", "tario": {json.dumps(told)}, "features": [\n')
        centre_Nx2, first = pixels_of(store), True
        genes = store.positions(symbols)
        for run in range(len(store.slots)):
            bins, _ = store.slots.run(run)
            for centre, values in zip(centre_Nx2[bins], store.run(run, genes=genes), strict=True):
                square = {"type": "Feature", "geometry": {
                    "type": "Polygon", "coordinates": [np.round(centre + corners, 2).tolist()]},
                    "properties": {"objectType": "tile", "measurements": dict(
                        zip(symbols, (float(f"{value:.5g}") for value in values), strict=True))}}  # fmt: skip
                file.write(("" if first else ",\n") + json.dumps(square))
                first = False
        file.write("\n]}\n")


def write_ome_tiff(store: MapStore, path: Path, symbols: Sequence[str]) -> None:
    """A channel a gene, a px a bin; NaN where no bin is."""
    tifffile = _needed("tifffile", "io")
    _refuse_many(symbols, "OME-TIFF")
    size = {f"PhysicalSize{axis}": store.bin_um for axis in "XY"} | {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    told = f"{store.about['section']}: {store.about['unit']}. {store.about['banner']}".strip()
    metadata = {"axes": "CYX", "Channel": {"Name": list(symbols)}, "Description": told, **size}
    rows, columns = plane_shape(store)

    def planes() -> Iterator[np.ndarray]:
        for symbol in symbols:
            yield plane(store, store.gene(symbol))

    large = len(symbols) * rows * columns * 4 > _LARGEST_TIFF  # before it is compressed
    with whole_output(path) as partial, tifffile.TiffWriter(partial, ome=True, bigtiff=large) as file:
        file.write(planes(), shape=(len(symbols), rows, columns), dtype=np.float32, photometric="minisblack",
                   compression="zlib", metadata=metadata)  # fmt: skip


def plane_shape(store: MapStore) -> tuple[int, int]:
    """Rows and columns of the grid of bins that covers the slide."""
    row_N, column_N = grid_of(store)
    width_px, height_px = store.about["slide_px"]
    rows, columns = (int(-(-px * store.about["he_um_per_px"] // store.bin_um)) for px in (height_px, width_px))
    return max(rows, int(row_N.max()) + 1), max(columns, int(column_N.max()) + 1)


def grid_of(store: MapStore) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each bin, int [N] each."""
    return tuple(np.floor(at_um / store.bin_um).astype(int) for at_um in (store.y_um_N, store.x_um_N))


def plane(store: MapStore, value_N: np.ndarray) -> np.ndarray:
    """Values of bins as a picture, float32 [rows, columns]; NaN where no bin is."""
    found = np.full(plane_shape(store), np.nan, np.float32)
    found[grid_of(store)] = value_N
    return found


def write_thumbnail(store: MapStore, path: Path, symbol: str) -> None:
    """The slide beside a map of one gene, as PNG."""
    plt = _needed("matplotlib.pyplot", "eval")
    from skimage.io import imread

    value_YxX = plane(store, store.gene(symbol))
    height_um, width_um = (size * store.bin_um for size in value_YxX.shape)
    overview = store.folder / "overview.jpg"
    shown = 1 + overview.exists()
    figure, axes = plt.subplots(1, shown, figsize=(4.6 * shown + 0.8, 4.6 * height_um / width_um + 0.5),
                                squeeze=False, layout="constrained")  # fmt: skip
    extent = (0, width_um / 1e3, height_um / 1e3, 0)
    if overview.exists():
        slide_mm = [px * store.about["he_um_per_px"] / 1e3 for px in store.about["slide_px"]]
        axes[0, 0].imshow(imread(overview), extent=(0, slide_mm[0], slide_mm[1], 0))
        axes[0, 0].set(title="H&E", xlabel="mm", xlim=extent[:2], ylim=extent[2:])
    high = float(np.nanquantile(value_YxX, 0.995)) or 1.0
    drawn = axes[0, -1].imshow(value_YxX, extent=extent, vmin=0, vmax=high, cmap="magma", interpolation="nearest")
    axes[0, -1].set(title=symbol, xlabel="mm", yticks=[] if shown > 1 else axes[0, -1].get_yticks())
    figure.colorbar(drawn, ax=axes[0, -1], label=f"expected detections per bin of {store.bin_um:g} µm")
    if store.about["banner"]:
        figure.suptitle(
            "a model of virtual tissue: shows that the software runs, nothing else", fontsize=8, color="firebrick"
        )
    with whole_output(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
    plt.close(figure)


def write_spatialdata(store: MapStore, path: Path, symbols: Sequence[str] | None = None) -> None:
    """SpatialData: the bins as squares with a table of genes, in px of the slide's finest level."""
    spatialdata, geopandas = _needed("spatialdata", "spatial"), _needed("geopandas", "spatial")
    import shapely

    table = _frame(store, symbols)
    genes = np.arange(len(store.panel)) if symbols is None else store.positions(symbols)
    table.X = store.genes(genes)
    for name in store.arrays[1:]:
        table.layers[name] = store.genes(genes, name)
    half_px = store.bin_um / store.full_um_per_px / 2
    x_N, y_N = pixels_of(store).T
    squares = geopandas.GeoDataFrame(geometry=shapely.box(x_N - half_px, y_N - half_px, x_N + half_px, y_N + half_px),
                                     index=table.obs_names)  # fmt: skip
    table.obs["region"], table.obs["bin"] = "bins", table.obs_names
    table.obs["region"] = table.obs["region"].astype("category")
    models = spatialdata.models
    whole = spatialdata.SpatialData(
        shapes={"bins": models.ShapesModel.parse(squares)},
        tables={"table": models.TableModel.parse(table, region="bins", region_key="region", instance_key="bin")},
    )
    with whole_output(path) as partial:
        whole.write(partial)


def _refuse_many(symbols: Sequence[str], what: str) -> None:
    if len(symbols) > _MOST_CHANNELS:
        raise InputError(f"{what} of {len(symbols):,} genes: expected at most {_MOST_CHANNELS:,}; name some by "
                         "--genes, or write AnnData")  # fmt: skip


def _needed(name: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"{name} is not installed; pip install 'tario-jax[{extra}]'") from None
