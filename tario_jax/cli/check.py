"""tario check: a corpus against its seals, and virtual tissue against real tissue."""

import argparse
import os
from pathlib import Path

from tario_jax.cli.options import at_least_one, config_flags, corpus_of, finish, limits_of, say
from tario_jax.config import InputError

SUMMARY = "is a corpus what its seals say: checksums, contents, units, registration"
EXAMPLES = """
    tario check corpora/xenium
    tario check --workdir=runs/quickstart
    tario check corpora/virtual --json=check.json
    tario check corpora/virtual --realism --real-data=real
    tario check corpora/virtual --limits=8
"""
GROUPS_READ = ("source",)


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
    parser.add_argument("--real-data", type=Path, metavar="FOLDER",
                        help="of real tissue, for --realism; $TARIO_REAL_DATA by default")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    from tario_jax.corpus.read import Corpus

    if options.real_data is not None and not options.realism:
        raise InputError(f"--real-data={options.real_data}: real tissue is read by --realism only; give both")
    if options.limits and options.realism:
        raise InputError("--limits and --realism: are two questions; ask one at a time")
    if options.limits:
        limits = limits_of(Corpus.open(corpus_of(options)), options.limits)
        return finish(options, limits.table(), limits.to_dict())
    if options.realism:
        from tario_jax.evaluate.realism import measure_realism

        place = real_data(options)
        found = measure_realism(Corpus.open(corpus_of(options)), place, say)
        finish(options, found.table(), found.to_dict())
        return 1 if found.outside else 0
    from tario_jax.sources.check import check

    found = check(Corpus.open(corpus_of(options)), say)
    finish(options, found.table(), found.to_dict())
    return 1 if found.faults else 0


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
