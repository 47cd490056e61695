"""tario bench width."""

import argparse
from pathlib import Path

from tario_jax.cli.options import at_least_one, config_flags, config_of, finish, say
from tario_jax.config import InputError
from tario_jax.config_files import override

SUMMARY = "does a learning rate hold in width (muP): activations, best rates by width, AdamW beside Muon"
EXAMPLES = """
    tario bench width --check=coordinates --config=configs/quickstart.py --workdir=runs/width --figure=coordinates.png
    tario bench width --check=learning-rate --config=configs/quickstart.py --workdir=runs/width --steps=100
    tario bench width --check=optimisers --config=configs/quickstart.py --workdir=runs/width --rates=0.001,0.002,0.004
"""
_WIDTHS, _RATES = "64,128,256,512", "0.0005,0.001,0.002,0.004,0.008"
_READ = {"coordinates": {"widths", "figure"}, "learning-rate": {"widths", "rates", "steps"},
         "optimisers": {"rates", "steps"}}  # fmt: skip
"""Which of the flags each check reads."""


def flags(parser: argparse.ArgumentParser) -> None:
    config_flags(parser)
    parser.add_argument("--check", required=True, choices=tuple(_READ), help="what is measured")
    parser.add_argument("--corpus", metavar="PLACE", help="trained on; by default that of the config's source, made in "
                        "WORKDIR/corpus")  # fmt: skip
    parser.add_argument("--widths", metavar="N,N,…", help=f"of the models ({_WIDTHS}); the base is the config's own")
    parser.add_argument("--rates", metavar="X,X,…", help=f"tried first ({_RATES}); more where the best is the last")
    parser.add_argument("--steps", type=at_least_one, help="of each run; those of the config by default")
    parser.add_argument("--seeds", type=at_least_one, default=1, help="means over so many starts (1)")
    parser.add_argument("--figure", type=Path, metavar="PATH.png", help="write the coordinate check as a figure")


def run(options: argparse.Namespace) -> int:
    for name in ("widths", "rates", "steps", "figure"):
        if getattr(options, name) is not None and name not in _READ[options.check]:
            raise InputError(f"--{name}: --check={options.check} does not read it; leave it out")
    widths = numbers("widths", options.widths or _WIDTHS, int, at_least=2)
    rates = numbers("rates", options.rates or _RATES, float, at_least=3)
    config = config_of(options)
    config.refuse_he_alone("tario bench width")
    if options.steps is not None:
        config = override(config, {"train.steps": str(options.steps)})

    from tario_jax.bench.width import check_coordinates, check_learning_rate, check_optimisers
    from tario_jax.corpus.read import Corpus
    from tario_jax.evaluate.main_job import make_corpus

    options.workdir.mkdir(parents=True, exist_ok=True)
    corpus = (make_corpus(config.source, options.workdir / "corpus", say) if options.corpus is None
              else Corpus.open(options.corpus))  # fmt: skip
    shared = {"seeds": options.seeds, "workdir": options.workdir, "say": say}
    match options.check:
        case "coordinates":
            result = check_coordinates(config, corpus, widths=widths, figure=options.figure, **shared)
        case "learning-rate":
            result = check_learning_rate(config, corpus, widths=widths, rates=rates, **shared)
        case "optimisers":
            result = check_optimisers(config, corpus, rates=rates, **shared)
    return finish(options, result["table"], result)


def numbers(flag: str, text: str, kind: type, *, at_least: int) -> list:
    """A list of rising numbers above 0, of a flag. Raises `InputError` where it is none."""
    try:
        found = [kind(word) for word in text.split(",")]
    except ValueError:
        found = []
    if len(found) < at_least or min(found) <= 0 or found != sorted(set(found)):
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(
            f"--{flag}={text}: expected at least {at_least} rising {what} above 0, with commas between them"
        )
    return found
