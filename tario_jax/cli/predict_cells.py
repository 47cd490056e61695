"""tario predict --cells: the flags, and which outlines are meant."""

import argparse
from pathlib import Path

from tario_jax.cli.options import say, say_about_ten_times
from tario_jax.config import InputError

_DEPENDENT = ("grow_um", "reading", "cells_unit", "outlines")


def cell_flags(parser: argparse.ArgumentParser) -> None:
    cells = parser.add_argument_group("cells", "In place of bins: expected counts of each cell.")
    cells.add_argument(
        "--cells", nargs="?", const="nuclei", metavar="FILE.geojson",
        help="nuclei found in the H&E (no value, or 'nuclei'), 'corpus' for the cell ids of the section's detections, "
             "or polygons of a file",
    )  # fmt: skip
    cells.add_argument("--cells-unit", choices=("px", "um"),
                       help="of FILE.geojson: px of the full-resolution H&E (as QuPath writes them, the default), or "
                            "µm in the section's frame")  # fmt: skip
    cells.add_argument("--grow-um", type=float,
                       help="what a cell has around its outline, as far as no other is nearer; 3 for nuclei, 0 for "
                            "other outlines by default")  # fmt: skip
    cells.add_argument("--reading", choices=("bins", "queries"),
                       help="the density of 9 µm bins times the area that a cell has in them (the default), or a "
                            "query a cell, of its size")  # fmt: skip
    cells.add_argument("--outlines", type=Path, metavar="FILE.geojson", help="write the outlines too")


def check_cells(options: argparse.Namespace) -> None:
    """Everything that can be refused before jax starts."""
    if options.cells is None:
        for name in _DEPENDENT:
            if getattr(options, name) is not None:
                raise InputError(f"--{name.replace('_', '-')}: goes with --cells only; add it, or leave this out")
        return
    for name in ("steps", "samples", "order", "seed"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name}: cells are predicted from the H&E at once; leave it out, or leave --cells out")
    if options.bin_um is not None:
        raise InputError(f"--bin-um={options.bin_um:g}: means nothing to --cells, whose bins are 9 µm; leave it out")
    if options.grow_um is not None and not 0 <= options.grow_um <= 30:
        raise InputError(f"--grow-um={options.grow_um:g}: expected 0 to 30 µm")
    if options.cells in ("nuclei", "corpus"):
        if options.cells_unit is not None:
            raise InputError(
                f"--cells-unit: is of the polygons of a file, not of --cells={options.cells}; leave it out"
            )
    elif not Path(options.cells).is_file():
        raise InputError(f"--cells={options.cells}: no such file; expected 'nuclei', 'corpus' or GeoJSON of polygons")
    if options.cells == "corpus" and options.image is not None:
        raise InputError("--cells=corpus: --image has no detections with cell ids; give 'nuclei' or polygons")
    if options.outlines is not None:
        options.outlines.parent.mkdir(parents=True, exist_ok=True)


def maps_of_cells(options: argparse.Namespace, predictor, section, tissue: str, overlap: float):
    """Rates of the cells that were asked for."""
    from tario_jax.predict.cells import GROW_UM, READING, predict_cells
    from tario_jax.predict.nuclei import find_nuclei
    from tario_jax.predict.outlines import outlines_of_cells, read_geojson

    frame = (section.he_full_um_per_px, section.he_origin_px)
    if options.cells == "nuclei":
        outlines = find_nuclei(section, progress=say_about_ten_times("nuclei", "tiles"))
    elif options.cells == "corpus":
        outlines = outlines_of_cells(section.all_detections(), section.id) if section.has_detections else None
        if outlines is None:
            raise InputError(f"--cells=corpus: section {section.id} has no detections; give 'nuclei' or polygons")
    else:
        outlines = read_geojson(Path(options.cells), *(frame if options.cells_unit != "um" else ()))
    say(f"cells: {len(outlines)} outlines")
    if options.outlines is not None:
        outlines.write_geojson(options.outlines, *frame)
    grow_um = (GROW_UM if options.cells == "nuclei" else 0.0) if options.grow_um is None else options.grow_um
    maps = predict_cells(
        predictor, section, outlines, tissue=tissue, grow_um=grow_um, reading=options.reading or READING,
        overlap=overlap, progress=say_about_ten_times("predict", "windows"),
    )  # fmt: skip
    if len(maps.x_um_N) < len(outlines):
        say(f"cells: {len(outlines) - len(maps.x_um_N)} outlines lie outside of the section or under others: left out")
    return maps
