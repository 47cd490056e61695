"""tario decode: one-shot beside generation in K steps, and beside prediction from measured counts."""

import argparse
import collections
from pathlib import Path

from tario_jax.cli.options import at_least_one, corpus_of, evaluation_of, finish, model_flags, say
from tario_jax.config import GENERATED_ORDERS, InputError

SUMMARY = "one-shot beside generation in K steps and prediction from measured counts: r, calibration, smoothness, time"
EXAMPLES = """
    tario decode --workdir=runs/quickstart --out=decoding --steps=1,4,16 --samples=8 --sections=8
    tario decode --workdir=runs/quickstart --out=given --steps=1 --given=half,checkerboard,panel,no-he
    tario decode --workdir=runs/quickstart --out=orders --steps=4,0 --order=raster,hilbert,random,coarse_to_fine
"""
GROUPS_READ = ("source", "evaluate.overlap", "evaluate.min_total", "evaluate.min_bins", "evaluate.bootstraps")


def flags(parser: argparse.ArgumentParser) -> None:
    model_flags(parser)
    parser.add_argument("--corpus", metavar="PLACE", help="by default that of the run")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables; run again, it continues")
    parser.add_argument("--steps", type=whole_numbers, default=(1, 4, 16, 64), metavar="K,K,…",
                        help="groups that bins are written in; 0: a bin a step; one-shot is always there")  # fmt: skip
    parser.add_argument("--samples", type=at_least_one, default=8, metavar="S", help="fresh orders and draws")
    parser.add_argument(
        "--order", type=names, default=("random",), metavar="ORDER,…", help=f"of {', '.join(GENERATED_ORDERS)}"
    )
    parser.add_argument("--given", type=names, default=(), metavar="WHAT,…",
                        help="known counts: half, checkerboard, random, panel, coarse, no-he")  # fmt: skip
    parser.add_argument("--sections", type=at_least_one, metavar="N", help="of the held-out ones; all by default")
    parser.add_argument("--genes", type=at_least_one, default=300, metavar="N",
                        help="scored: those of highest Moran's I in training sections; default 300")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of orders and draws")


def run(options: argparse.Namespace) -> int:
    from tario_jax.corpus.read import Corpus
    from tario_jax.evaluate.decoding.figure import decoding_tables, draw_decoding
    from tario_jax.evaluate.decoding.measure import Asked, genes_by_moran, measure_decoding
    from tario_jax.evaluate.job import refuse_side_of_spots
    from tario_jax.evaluate.scope import unseen_validation
    from tario_jax.predict.predictor import load
    from tario_jax.tokens.capacity import refuse_fine_bins
    from tario_jax.train.compiled import compiled_kept
    from tario_jax.whole_file import write_whole

    predictor = load(options.workdir, allow_virtual_model=options.allow_virtual_model)
    corpus, config = Corpus.open(corpus_of(options)), evaluation_of(options, predictor.provenance)
    bin_um = predictor.provenance.bin_um if options.bin_um is None else options.bin_um
    asked = Asked(options.steps, options.samples, options.order, options.given, bin_um, config.overlap,
                  config.min_total, config.bootstraps, options.seed)  # fmt: skip
    train, sections = _sides(predictor, corpus, bin_um, config.min_bins, options.sections)
    refuse_side_of_spots(corpus, sections, options.bin_um)
    refuse_fine_bins(sections, bin_um, force=predictor.provenance.config.data.force_adjacent)
    genes = genes_by_moran(predictor, corpus, train or sections, options.genes)
    with compiled_kept(options.workdir):
        report = measure_decoding(
            predictor, corpus, sections, genes, asked, options.out, say=say,
            fitted_on=unseen_validation(predictor.provenance, corpus),
            chosen=f"of highest Moran's I in {'training sections' if train else 'these sections'}",
        )  # fmt: skip
    report["table"] = decoding_tables(report)
    write_whole(options.out / "decoding.txt", report["table"] + "\n")
    draw_decoding(options.out / "decoding.png", report)
    shown = f"\n{report['table']}\n\ntables: {options.out / 'decoding.txt'}, figure: {options.out / 'decoding.png'}"
    return finish(options, shown, report)


def whole_numbers(text: str) -> tuple[int, ...]:
    """Numbers of steps, each once, in rising order; 0, one bin a step, is the largest."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers of at least 0 with commas between them")
    return tuple(sorted({int(part) for part in parts}, key=lambda steps: (steps == 0, steps)))


def names(text: str) -> tuple[str, ...]:
    """What is named, each once."""
    return tuple(dict.fromkeys(text.split(",")))


def _sides(predictor, corpus, bin_um: float, min_bins: int, most: int | None) -> tuple[list, list]:
    """Training sections that rank genes (none of another corpus), and held-out ones of bins enough, of as many patients
    as can be."""
    from tario_jax.evaluate.decoding.section import bins_that_count
    from tario_jax.evaluate.scope import sections_of

    train, held_out = sections_of(predictor.provenance, corpus)
    train = [section for section in train if section.has_counts]
    held_out = [section for section in held_out if section.holds("he") and section.has_counts]
    if not held_out:
        raise InputError(f"corpus {corpus.root}: no held-out section has both an H&E and counts; expected some")
    bins_S = [bins_that_count(section, predictor, bin_um) for section in held_out]
    enough = [section for section, bins in zip(held_out, bins_S, strict=True) if bins >= min_bins]
    if not enough:
        raise InputError(f"evaluate.min_bins is {min_bins}; the largest of {len(held_out)} held-out sections has "
                         f"{max(bins_S)} bins; take smaller bins or lower evaluate.min_bins")  # fmt: skip
    if len(enough) < len(held_out):
        few = len(held_out) - len(enough)
        say(f"decoding: {few} held-out sections have fewer than {min_bins} bins and are left out")
    return train, _by_turns(enough)[:most]


def _by_turns(sections: list) -> list:
    """A section of each patient, then a second one of each that has more, and so on."""
    seen = collections.Counter()
    turn_S = []
    for section in sections:
        turn_S.append(seen[section.patient])
        seen[section.patient] += 1
    return [section for _, section in sorted(zip(turn_S, sections, strict=True), key=lambda pair: pair[0])]
