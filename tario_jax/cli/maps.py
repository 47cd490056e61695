"""tario maps: what a folder of maps holds, and what other programs read of it."""

import argparse
from pathlib import Path

from tario_jax.cli.options import finish, say, say_about_ten_times
from tario_jax.config import InputError

SUMMARY = "what a slide's gene maps hold; exports to AnnData, SpatialData, GeoJSON, OME-TIFF, pictures; gene set scores"
EXAMPLES = """
    tario maps slide.maps
    tario maps slide.maps --h5ad=slide.h5ad
    tario maps slide.maps --genes=EPCAM,PTPRC,COL1A1 --geojson=slide.geojson --ome-tiff=slide.ome.tif
    tario maps slide.maps --genes=EPCAM,PTPRC --thumbnails=pictures
    tario maps slide.maps --signatures=cell-types --scores=cells.tsv
    tario maps slide.maps --signatures=hallmarks.gmt --scores=scores.parquet
"""
GROUPS_READ = ()
_OF_FEW = ("geojson", "ome_tiff", "thumbnails")
_SUFFIXES = {
    "h5ad": (".h5ad",), "anndata_zarr": (".zarr",), "spatialdata": (".zarr",), "geojson": (".geojson", ".json"),
    "ome_tiff": (".ome.tif", ".ome.tiff"), "scores": (".parquet", ".tsv", ".csv"),
}  # fmt: skip
_SHOWN = 10
_PLACES = ("x_um", "y_um")
_SHIPPED = "cell-types"  # among --signatures


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("maps", type=Path, metavar="NAME.maps", help="a folder that 'tario predict --slide' wrote")
    parser.add_argument("--genes", metavar="SYMBOL,…", help="to export; all by default")
    out = parser.add_argument_group("exports")
    out.add_argument("--h5ad", type=Path, metavar="FILE", help="AnnData in HDF5 (.h5ad)")
    out.add_argument("--anndata-zarr", type=Path, metavar="FOLDER", help="AnnData in zarr (.zarr)")
    out.add_argument("--spatialdata", type=Path, metavar="FOLDER", help="SpatialData (.zarr)")
    out.add_argument("--geojson", type=Path, metavar="FILE", help="squares with the rates of --genes, for QuPath")
    out.add_argument("--ome-tiff", type=Path, metavar="FILE", help="a channel for each of --genes (.ome.tif)")
    out.add_argument("--thumbnails", type=Path, metavar="FOLDER", help="a picture for each of --genes")
    sets = parser.add_argument_group("gene sets")
    sets.add_argument("--signatures", type=Path, metavar="FILE.gmt",
                      help="sets to score at each bin; 'cell-types': markers that come along")  # fmt: skip
    sets.add_argument("--scores", type=Path, metavar="FILE", help="bin × set (.parquet, .tsv, .csv)")


def run(options: argparse.Namespace) -> int:
    _check(options)
    from tario_jax.predict import map_exports
    from tario_jax.predict.map_store import MapStore

    store = MapStore(options.maps)
    symbols = None if options.genes is None else tuple(dict.fromkeys(filter(None, options.genes.split(","))))
    if symbols is not None:
        store.positions(symbols)  # raises before anything is written
    progress = say_about_ten_times("maps", "bins")
    for path, write, more in (
        (options.h5ad, map_exports.write_h5ad, (progress,)),
        (options.anndata_zarr, map_exports.write_anndata_zarr, (progress,)),
        (options.spatialdata, map_exports.write_spatialdata, ()),
        (options.geojson, map_exports.write_geojson, ()),
        (options.ome_tiff, map_exports.write_ome_tiff, ()),
    ):
        if path is not None:
            write(store, path, symbols, *more)
            say(f"wrote {path}")
    if options.thumbnails is not None:
        for symbol in symbols:
            map_exports.write_thumbnail(store, options.thumbnails / f"{symbol.replace('/', '_')}.png", symbol)
        say(f"wrote {len(symbols)} pictures to {options.thumbnails}")
    result = _described(store)
    if options.signatures is not None:
        result |= _scored(store, options)
    return finish(options, "\n".join(f"{name:<20} {value}" for name, value in result.items() if value != ""), result)


def _check(options: argparse.Namespace) -> None:
    if options.genes is None:
        for name in _OF_FEW:
            if getattr(options, name) is not None:
                raise InputError(f"--{name.replace('_', '-')}: is of some genes; name them by --genes=SYMBOL,…")
    if options.genes is not None and not any(options.genes.split(",")):
        raise InputError(f"--genes={options.genes}: names no gene; expected symbols with commas between them")
    if (options.signatures is None) != (options.scores is None):
        raise InputError("--signatures and --scores: which sets, and where their scores go; give both")
    for name, suffixes in _SUFFIXES.items():
        path = getattr(options, name)
        if path is not None and not path.name.endswith(suffixes):
            raise InputError(f"--{name.replace('_', '-')}={path}: expected a name that ends in {' or '.join(suffixes)}")


def _described(store) -> dict:
    about, validation = store.about, store.validation
    validated = "nothing"
    if validation is not None:
        known = zip(validation.cohorts, validation.patients_C, validation.validated_CxG, strict=True)
        validated = "; ".join(f"{cohort}: {int(validated_G.sum())} genes above density, {patients} patients"
                              for cohort, patients, validated_G in known)  # fmt: skip
    highest = [store.panel.symbols[g] for g in store.mean_G.argsort()[::-1][:_SHOWN]]
    return {
        "section": about["section"], "of": "/".join(about["place"].values()), "trained_on": about["trained_on"],
        "banner": about["banner"], "warnings": "; ".join(store.warnings), "um_per_px": about["he_um_per_px"],
        "bins": len(store), "bin_um": store.bin_um, "genes": len(store.panel), "checkpoint": about["checkpoint"],
        "validated": validated, "highest_genes": ", ".join(highest),
    }  # fmt: skip


def _scored(store, options: argparse.Namespace) -> dict:
    import pyarrow as pa

    from tario_jax.predict.signatures import CELL_TYPES, read_gmt, scores
    from tario_jax.predict.table_file import write_table

    signatures = read_gmt(CELL_TYPES if str(options.signatures) == _SHIPPED else options.signatures, store.panel)
    for one in signatures:
        if one.missing:
            say(f"{one.name}: {len(one.missing)} of its {len(one.missing) + len(one.positions)} genes are not in the "
                f"panel: {', '.join(one.missing[:5])}{' …' if len(one.missing) > 5 else ''}")  # fmt: skip
        if one.name in _PLACES:
            raise InputError(f"{options.signatures}: set {one.name!r} has the name of a column of --scores; rename it")
    score_NxS = scores(store, signatures)
    columns = dict(zip(_PLACES, (store.x_um_N, store.y_um_N), strict=True)) | {
        one.name: score_NxS[:, number] for number, one in enumerate(signatures)}  # fmt: skip
    write_table(pa.table(columns), options.scores, {name: str(store.about[name]) for name in ("section", "banner")})
    return {"sets": len(signatures), "scores": str(options.scores)}
