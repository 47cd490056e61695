"""tario check: a corpus against its seals, and virtual tissue against real tissue."""

import argparse
import dataclasses
import os
from pathlib import Path

from tario_jax.cli.options import (
    at_least_one,
    config_flags,
    config_of,
    corpus_of,
    finish,
    limits_of,
    say,
    split_config_of,
)
from tario_jax.config import InputError

SUMMARY = "is a corpus what its seals say: checksums, contents, units, registration"
EXAMPLES = """
    tario check corpora/xenium
    tario check --workdir=runs/quickstart
    tario check corpora/virtual --json=check.json
    tario check corpora/virtual --realism --real-data=real
    tario check corpora/virtual --limits=8
    tario check corpora/virtual --capacity --config=configs/tario2_50m.py --config.data.bin_um=18
"""
GROUPS_READ = ("source", "split", "data")


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "corpus", nargs="?", metavar="PLACE", help="WORKDIR/corpus, or the corpus of --config, by default"
    )
    config_flags(parser, required=False)
    parser.add_argument("--realism", action="store_true",
                        help="not the seals: stain, nuclei and counts of virtual tissue beside real")  # fmt: skip
    parser.add_argument("--limits", type=at_least_one, metavar="PATIENTS",
                        help="not the seals: r(T, X) and r(V, X) by gene class on so many held-out patients of "
                             "virtual tissue")  # fmt: skip
    parser.add_argument("--capacity", action="store_true",
                        help="not the seals: entries (bin, gene, count) that a row of --config needs")  # fmt: skip
    parser.add_argument("--real-data", type=Path, metavar="FOLDER",
                        help="of real tissue, for --realism; $TARIO_REAL_DATA by default")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    from tario_jax.corpus.read import Corpus

    if options.real_data is not None and not options.realism:
        raise InputError(f"--real-data={options.real_data}: real tissue is read by --realism only; give both")
    if options.corpus is not None and options.workdir is not None:
        raise InputError("check: PLACE and --workdir are two corpora; give one of them")
    asked = [f"--{name}" for name in ("limits", "realism", "capacity") if getattr(options, name)]
    if len(asked) > 1:
        raise InputError(f"{' and '.join(asked)}: are two questions; ask one at a time")
    ignored = next((name for name in options.assignments if name.startswith("data.")), None)
    if ignored and not options.capacity:
        raise InputError(f"--config.{ignored}: windows and bins are read by --capacity only; leave it out")
    if options.capacity:
        return _capacity(options)
    if options.limits:
        limits = limits_of(Corpus.open(corpus_of(options)), split_config_of(options), options.limits)
        return finish(options, limits.table(), limits.to_dict())
    if options.realism:
        from tario_jax.evaluate.realism import measure_realism

        place = real_data(options)
        found = measure_realism(Corpus.open(corpus_of(options)), place, say)
        finish(options, found.table(), found.to_dict())
        return 1 if found.outside else 0
    from tario_jax.sources.check import check

    found = check(Corpus.open(corpus_of(options)), say, split_config_of(options))
    finish(options, found.table(), found.to_dict())
    return 1 if found.faults else 0


def _capacity(options: argparse.Namespace) -> int:
    """What the densest windows of a config need, before a run meets them."""
    from tario_jax.corpus.read import Corpus
    from tario_jax.corpus.split import split_corpus
    from tario_jax.tokens.batch import square_bins_per_tile
    from tario_jax.tokens.capacity import count_capacity, refuse_fine_bins

    if options.config is None:
        raise InputError("--capacity: depends on windows and bins; name a --config")
    config = config_of(options)
    split = split_corpus(Corpus.open(corpus_of(options)), config.split)
    sections, data = split.train + split.validation, config.data
    refuse_fine_bins(sections, min(data.trained_bins_um), force=data.force_adjacent)  # as a run would
    if not all(section.has_spots for section in sections):
        square_bins_per_tile(data)
    found = count_capacity(sections, data)
    text = (
        f"entries (bin, gene, count) a row of {config.data.windows_per_row} windows of {config.data.window_um:g} µm in "
        f"bins of {config.data.bin_um:g} µm\n"
        f"needed by the densest windows found (section {found.section}): {found.needed:,}\n"
        f"held by data.count_capacity = {config.data.count_capacity}: {found.held:,}\n"
        f"no row can need more than {found.most:,}"
    )
    if found.overflows:
        text += f"\ntoo few: a run will stop; set --config.data.count_capacity={found.needed} or more, or 0"
    finish(options, text, dataclasses.asdict(found) | {"overflows": found.overflows})
    return 1 if found.overflows else 0


def real_data(options: argparse.Namespace) -> Path:
    """The folder of real tissue: --real-data, else $TARIO_REAL_DATA."""
    named = os.environ.get("TARIO_REAL_DATA")
    if options.real_data is None and not named:
        raise InputError("--realism: no real tissue is named; give its folder as --real-data or $TARIO_REAL_DATA")
    place = options.real_data or Path(named)
    if not place.is_dir():
        what = f"--real-data={place}" if options.real_data else f"$TARIO_REAL_DATA={place}"
        raise InputError(f"{what}: no such folder; expected the excerpts of real tissue")
    return place
