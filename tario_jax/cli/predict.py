"""tario predict: gene maps of a section or an image."""

import argparse
import dataclasses
from pathlib import Path

from tario_jax.cli.options import (
    above_0,
    at_least_one,
    corpus_of,
    finish,
    model_flags,
    overlap_of,
    say,
    say_about_ten_times,
    steps_of,
)
from tario_jax.cli.predict_cells import cell_flags, check_cells, maps_of_cells
from tario_jax.cli.predict_slide import SAMPLES, check_slide, run_slide, say_if_seen, slide_flags, writes_folder
from tario_jax.config import GENERATED_ORDERS, RESOLUTIONS, InputError

SUMMARY = "gene maps of a slide, a section or an image, from the H&E alone"
EXAMPLES = """
    tario predict --workdir=runs/her2st --corpus=runs/her2st/corpus --section=C5 --out=C5.h5ad --table=C5.tsv
    tario predict --workdir=runs/her2st --slide=slide.svs --out=slide.maps
    tario predict --workdir=runs/quickstart --section=vh00000_core --out=vh00000.maps
    tario predict --workdir=runs/quickstart --section=vh00000_core --steps=16 --uncertainty --out=drawn.maps
    tario predict --workdir=runs/her2st --image=slide.png --um-per-px=0.5 --out=slide.h5ad
    tario predict --workdir=runs/quickstart --section=vh00000_core --steps=16 --samples=8 --uncertainty --out=maps.h5ad
    tario predict --workdir=runs/quickstart --section=vh00000_core --cells --out=cells.h5ad
    tario predict --workdir=runs/lung --image=slide.tif --um-per-px=0.25 --cells=cells.geojson --out=cells.h5ad
"""
GROUPS_READ = ("source", "evaluate.overlap")


def flags(parser: argparse.ArgumentParser) -> None:
    model_flags(parser)
    parser.add_argument("--corpus", metavar="PLACE", help="corpus of --section; by default that of the run")
    parser.add_argument("--section", help="a section of the corpus")
    parser.add_argument("--image", type=Path, help="an image file (PNG, JPEG, TIFF)")
    parser.add_argument("--um-per-px", type=above_0, help="of --image; of --slide, where what it says is wrong")
    parser.add_argument(
        "--out", type=Path, help="AnnData (.h5ad); for --slide, or a section with what was measured, a folder (.maps)"
    )
    parser.add_argument("--table", type=Path, help="place × gene, expected counts (.parquet, .tsv, .csv)")
    parser.add_argument("--overlap", type=float, help="of neighbouring windows; evaluate.overlap by default")
    parser.add_argument("--validation", type=Path, metavar="PARQUET",
                        help="what is known of each gene, from 'tario evaluate'; WORKDIR's by default")  # fmt: skip
    steps = parser.add_argument_group("generation", "One-shot by default. docs/decoding.md says what steps do.")
    steps.add_argument("--steps", type=int, metavar="K", help="groups that bins are written in; 0: a bin a step")
    steps.add_argument("--samples", type=at_least_one, metavar="S",
                       help=f"orders and draws that --uncertainty is between; {SAMPLES} by default; of .maps 1, and "
                            "more with --uncertainty only")  # fmt: skip
    steps.add_argument("--order", choices=GENERATED_ORDERS, help="in which bins are written; random by default")
    steps.add_argument("--seed", type=int, help="of orders and draws; 0 by default")
    steps.add_argument("--uncertainty", action="store_true",
                       help="in .h5ad a layer: count_variance, of counts around X, or with --steps "
                       "between_sample_variance, of rates; in .maps deviations between windows or samples")  # fmt: skip
    cell_flags(parser)
    slide_flags(parser)


def run(options: argparse.Namespace) -> int:
    _check(options)
    from tario_jax.train.compiled import compiled_kept

    with compiled_kept(options.workdir):
        if writes_folder(options):
            return run_slide(options, _load(options))
        maps = _maps_of_image(options) if options.image is not None else _maps_of_section(options)
    if options.out is not None:
        maps.write_h5ad(options.out, count_variance=options.uncertainty and options.steps is None)
    if options.table is not None:
        maps.write_table(options.table)
    mean_G = maps.rates_NxG.mean(0)
    highest = [maps.panel.symbols[g] for g in mean_G.argsort()[::-1][:5]]
    result = maps.metadata() | {
        "places": len(maps.x_um_N), "genes": len(maps.panel), "detections_per_place": float(mean_G.sum()),
        "highest_genes": highest, "out": str(options.out), "table": str(options.table),
    }  # fmt: skip
    return finish(options, "\n".join(f"{name:<22} {value}" for name, value in result.items() if value != ""), result)


def _check(options: argparse.Namespace) -> None:
    """Everything that can be refused before jax starts."""
    given = [name for name in ("section", "image", "slide") if getattr(options, name) is not None]
    if len(given) != 1:
        found = " and ".join(f"--{name}" for name in given) or "none"
        raise InputError(f"predict: found {found} of --section, --image and --slide; give one of them")
    check_slide(options)
    if writes_folder(options):
        if options.slide is not None and options.corpus is not None:
            raise InputError("--corpus: means nothing to --slide; leave it out")
        if options.slide is None and options.um_per_px is not None:
            raise InputError("--um-per-px: means nothing to --section; leave it out")
        _check_steps(options)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        return
    if options.out is None and options.table is None:
        raise InputError("predict: nothing to write; give --out=MAPS.h5ad, --table=RATES.tsv, or both")
    if options.table is not None and options.table.suffix not in (".parquet", ".tsv", ".csv"):
        raise InputError(f"--table={options.table}: ends in {options.table.suffix!r}; expected .parquet, .tsv or .csv")
    if options.out is not None and options.out.suffix != ".h5ad":
        raise InputError(f"--out={options.out}: ends in {options.out.suffix!r}; expected .h5ad (AnnData)")
    check_cells(options)
    for path in filter(None, (options.out, options.table)):  # a folder that cannot be written is found before the work
        path.parent.mkdir(parents=True, exist_ok=True)
    _check_steps(options)
    if options.uncertainty and options.out is None:
        raise InputError("--uncertainty: is a layer of --out=MAPS.h5ad; give it")
    if options.uncertainty and options.steps is not None and options.samples == 1:
        raise InputError("--uncertainty: is between the samples of --steps; give two --samples or more")
    if _writes_steps(options) and not options.uncertainty:
        raise InputError("--steps: X holds the rates of one-shot prediction, however many; add --uncertainty for how "
                         "far samples lie apart, or ask for --out=NAME.maps, which holds a draw")  # fmt: skip
    if options.uncertainty and options.cells is not None:
        raise InputError("--uncertainty: is of bins, and --cells asks for cells; leave one of them out")
    unused = "um_per_px" if options.section is not None else "corpus"
    if getattr(options, unused) is not None:
        raise InputError(f"--{unused.replace('_', '-')}: means nothing to "
                         f"--{'section' if options.section is not None else 'image'}; leave it out")  # fmt: skip
    if options.image is not None:
        if options.um_per_px is None:
            raise InputError(f"--image={options.image}: its µm per px is not stated; add --um-per-px")
        from tario_jax.predict.tissue import LARGEST_UM_PER_PX, SMALLEST_UM_PER_PX

        if not SMALLEST_UM_PER_PX <= options.um_per_px <= LARGEST_UM_PER_PX:
            raise InputError(f"--um-per-px={options.um_per_px:g}: expected {SMALLEST_UM_PER_PX} to {LARGEST_UM_PER_PX} "
                             "µm per px, as H&E is scanned")  # fmt: skip


def _writes_steps(options: argparse.Namespace) -> bool:
    return options.steps is not None and (options.steps != 1 or options.order == RESOLUTIONS)


def _check_steps(options: argparse.Namespace) -> None:
    if _writes_steps(options):
        return
    for name in ("samples", "order", "seed"):
        if getattr(options, name) is not None:  # a seed of 0 is given, too
            raise InputError(f"--{name}: means nothing to one-shot prediction; add --steps=K above 1, or leave it out")
    if options.steps == 1 and options.uncertainty:
        raise InputError("--uncertainty: is between the samples of --steps, and one step is one-shot prediction; leave "
                         "--steps out for the variance of counts around it, or take more")  # fmt: skip


def _maps_of_image(options: argparse.Namespace):
    from tario_jax.predict.tissue import ImageSection, read_image

    image = read_image(options.image, options.um_per_px, say)
    predictor = _load(options)
    section = ImageSection(image, options.um_per_px, genes=len(predictor.panel), name=options.image.name)
    return _maps(options, predictor, section, "real")


def _maps_of_section(options: argparse.Namespace):
    from tario_jax.corpus.read import Corpus
    from tario_jax.train.checkpoint import find_checkpoint

    find_checkpoint(options.workdir)
    corpus = Corpus.open(corpus_of(options))
    section, predictor = corpus.section(options.section), _load(options)
    say_if_seen(predictor, section)
    return _maps(options, predictor, section, corpus.kind)


def _load(options: argparse.Namespace):
    from tario_jax.predict.predictor import load

    predictor = load(options.workdir, allow_virtual_model=options.allow_virtual_model)
    if options.validation is not None:
        from tario_jax.predict.gene_validation import read_gene_validation

        predictor.validation = read_gene_validation(options.validation).for_model(predictor.panel.hash,
                                                                                  predictor.checkpoint)  # fmt: skip
    return predictor


def _maps(options: argparse.Namespace, predictor, section, tissue: str):
    overlap = overlap_of(options, predictor.provenance)
    if options.cells is not None:
        return maps_of_cells(options, predictor, section, tissue, overlap)
    asked = {"tissue": tissue, "bin_um": options.bin_um, "overlap": overlap,
             "progress": say_about_ten_times("predict", "windows")}  # fmt: skip
    if options.steps is None:
        if options.uncertainty:  # refused before the work
            _refuse_unknown_spread(predictor, section, options.bin_um)
        return predictor.predict_section(section, **asked)
    from tario_jax.predict.generate import generate_section

    maps, _ = generate_section(predictor, section, steps_of(options, SAMPLES), **asked)
    return maps if options.uncertainty else dataclasses.replace(maps, between_NxG=None)


def _refuse_unknown_spread(predictor, section, bin_um: float | None) -> None:
    if predictor.validation is None:
        raise InputError("--uncertainty: how far counts scatter around rates is learnt by 'tario evaluate', which this "
                         "checkpoint has not seen; evaluate it first, or give --validation")  # fmt: skip
    of_bins_um = predictor.provenance.bin_um if bin_um is None else bin_um
    try:
        predictor.validation.count_spread(section.placed_spots.square_um if section.has_spots else of_bins_um)
    except InputError as error:
        raise InputError(f"--uncertainty: {error}") from None
