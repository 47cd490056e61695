"""tario predict --slide: a whole slide, in bounded memory, into a folder of maps."""

import argparse
import dataclasses
import errno
import time
from pathlib import Path

from tario_jax.cli.options import corpus_of, finish, overlap_of, part_of, say, steps_of
from tario_jax.config import InputError

_OF_OTHERS = ("table", "cells", "cells_unit", "grow_um", "reading", "outlines")
SAMPLES = 8  # that a deviation is between
SUFFIX = ".maps"
_TELL_S = 30.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def slide_flags(parser: argparse.ArgumentParser) -> None:
    slide = parser.add_argument_group(
        "whole slides", "Over the tissue alone, in windows that overlap, of any number of genes and bins in little "
        "memory. Killed, the same command continues; several at once share the work.",
    )  # fmt: skip
    slide.add_argument("--slide", type=Path,
                       help="SVS, NDPI, MRXS, SCN, BIF, DICOM (a folder), (OME-)TIFF, PNG, JPEG")  # fmt: skip
    slide.add_argument("--everywhere", action="store_true", help="not in tissue alone")
    slide.add_argument("--stain", metavar="REFERENCE", help="takes the slide's stains to those of 'training', as the "
                       "model knows them, or of a slide or image; as it was scanned by default")  # fmt: skip
    slide.add_argument("--reference-um-per-px", type=float, help="of the image of --stain, where it says none")
    slide.add_argument("--part", type=part_of, metavar="K/N",
                       help="one of N processes that share the slide: begins with its part")  # fmt: skip
    slide.add_argument("--force", action="store_true", help="whatever the µm per px are")


def writes_folder(options: argparse.Namespace) -> bool:
    """Whether maps of a whole slide are asked for, or of a section as of one."""
    return options.slide is not None or options.section is not None and (
        options.out is not None and options.out.suffix == SUFFIX)  # fmt: skip


def check_slide(options: argparse.Namespace) -> None:
    """Everything that can be refused before jax starts."""
    if options.slide is None:
        for name in ("everywhere", "stain", "part", "force", "reference_um_per_px"):
            if getattr(options, name):
                raise InputError(f"--{name.replace('_', '-')}: goes with --slide; leave it out")
        if not writes_folder(options):
            return
    if options.out is None or options.out.suffix != SUFFIX:
        raise InputError(f"--slide: writes a folder of maps; give --out=NAME{SUFFIX} ('tario maps' exports from it)")
    for name in _OF_OTHERS:
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')}: goes with --section and --image, and AnnData; leave it out")
    if options.samples is not None and not options.uncertainty:
        raise InputError("--samples: are for --uncertainty, the deviation between them; add it, or leave --samples out")
    if options.reference_um_per_px and options.stain in (None, "training"):
        raise InputError("--reference-um-per-px: goes with --stain=IMAGE; leave it out")


def say_if_seen(predictor, section) -> None:
    """Where training or validation saw the patient whose maps are asked for."""
    from tario_jax.evaluate.scope import has_seen

    if has_seen(predictor.provenance, section):
        who = "section" if predictor.provenance.split_by == "section" else "patient"
        say(f"note: {section.id}: training or validation saw a {who} of this name; its maps are no example of others")


def run_slide(options: argparse.Namespace, predictor) -> int:
    from tario_jax.corpus.read import Corpus
    from tario_jax.predict.slide_job import Asked, predict_measured, predict_slide
    from tario_jax.predict.stain_match import StainStatistics, stain_of_file

    stain = None
    if options.stain == "training":
        stain = StainStatistics(*predictor.training_stain)
    elif options.stain is not None:
        stain = stain_of_file(Path(options.stain), options.reference_um_per_px, say)
    overlap = overlap_of(options, predictor.provenance)
    part, parts = options.part or (1, 1)
    steps = steps_of(options, SAMPLES if options.uncertainty else 1)
    asked = Asked(um_per_px=options.um_per_px, bin_um=options.bin_um, overlap=overlap, everywhere=options.everywhere,
                  stain=stain, steps=steps, spread=options.uncertainty, force=options.force,
                  part=(part - 1, parts))  # fmt: skip
    told = [time.monotonic(), ("", -1)]

    def progress(done) -> None:
        tenth = done.what, done.windows * 10 // done.of
        if tenth != told[1] or time.monotonic() - told[0] > _TELL_S:
            told[:] = [time.monotonic(), tenth]
            left = "" if done.left_s == float("inf") else f", {done.left_s / 60:.1f} min left"
            say(f"{done.what}: {done.windows:,} of {done.of:,} windows, {done.bins_per_s:,.0f} bins/s{left}")

    try:
        if options.slide is not None:
            store = predict_slide(predictor, options.slide, options.out, asked, say=say, progress=progress)
        else:
            corpus = Corpus.open(corpus_of(options))
            say_if_seen(predictor, corpus.section(options.section))
            asked = dataclasses.replace(asked, everywhere=True, tissue=corpus.kind)
            store = predict_measured(predictor, corpus, options.section, options.out, asked, say=say, progress=progress)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise InputError(f"{error.filename}: {error.strerror}; make room, and give the same command again: it goes on "
                         "where it was") from None  # fmt: skip
    if store is None:
        return finish(options, f"{options.out}: this part is done; another process ends it", {"out": str(options.out)})
    highest = [store.panel.symbols[g] for g in store.mean_G.argsort()[::-1][:5]]
    about = store.about
    result = {
        "section": about["section"], "trained_on": about["trained_on"], "banner": about["banner"],
        "warnings": "; ".join(store.warnings), "um_per_px": about["he_um_per_px"], "tissue_mm2": about["tissue_mm2"],
        "bins": len(store), "bin_um": store.bin_um, "genes": len(store.panel),
        "detections_per_bin": float(store.mean_G.sum()), "highest_genes": highest, "out": str(options.out),
    }  # fmt: skip
    return finish(options, "\n".join(f"{name:<22} {value}" for name, value in result.items() if value != ""), result)
