"""tario corpus: what is done to a corpus that is there."""

import argparse

from tario_jax.cli.options import describe_corpus, finish, say
from tario_jax.config import InputError

SUMMARY = "an older corpus into today's format; a split of its patients"
EXAMPLES = """
    tario corpus migrate corpora/old --out=corpora/new
    tario corpus split corpora/lung --validation=64 --held-out=213
    tario corpus split gs://tissue/lung --held-out=20 --seed=1
"""
GROUPS_READ = ()


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("migrate", "split"), help="what to do")
    parser.add_argument("corpus", metavar="PLACE", help="of the corpus: a folder, gs://… or s3://…")
    parser.add_argument("--out", metavar="PLACE", help="migrate: of the new corpus; the old one is left as it is")
    parser.add_argument("--validation", type=int, help="split: patients for validation (0)")
    parser.add_argument("--held-out", type=int, help="split: patients held out")
    parser.add_argument("--seed", type=int, help="split: of the order of patients (0)")
    parser.add_argument("--replace", action="store_true", help="split: where there is a split.tsv already")
    parser.set_defaults(config=None)


_FLAGS_OF = {"migrate": ("out",), "split": ("validation", "held_out", "seed", "replace")}


def run(options: argparse.Namespace) -> int:
    for action, names in _FLAGS_OF.items():
        for name in names:
            if action != options.action and getattr(options, name):
                raise InputError(f"--{name.replace('_', '-')}: goes with 'tario corpus {action}' only; leave it out")
    return _migrate(options) if options.action == "migrate" else _split(options)


def _migrate(options: argparse.Namespace) -> int:
    from tario_jax.corpus.migrate import migrate

    if options.out is None:
        raise InputError("corpus migrate: --out is missing; name the place of the new corpus")
    return finish(options, *describe_corpus(migrate(options.corpus, options.out, say)))


def _split(options: argparse.Namespace) -> int:
    from tario_jax.corpus.read import Corpus
    from tario_jax.corpus.split import SIDES, draw_split, write_split

    corpus = Corpus.open(options.corpus)
    place = corpus.root / "split.tsv"
    if options.held_out is None:
        raise InputError("corpus split: --held-out is missing; say how many patients are held out")
    if place.exists() and not options.replace:
        raise InputError(f"{place}: is there already; edit it, or give --replace")
    # who has H&E alone stands on no side: nothing of theirs can be learnt or measured
    counted = {section.patient for section in corpus.sections if section.has_counts}
    cohort_of = {row["patient"]: row["cohort"] for row in corpus.patients if row["patient"] in counted}
    sides = draw_split(cohort_of, options.validation or 0, options.held_out, options.seed or 0)
    write_split(corpus.root, sides)
    held = {cohort: {side: sum(sides[patient] == side for patient in cohort_of if cohort_of[patient] == cohort)
                        for side in SIDES} for cohort in sorted(set(cohort_of.values()))}  # fmt: skip
    lines = [f"{'cohort':<16}" + "".join(f"{side:>12}" for side in SIDES)]
    lines += [f"{cohort:<16}" + "".join(f"{row[side]:>12,}" for side in SIDES) for cohort, row in held.items()]
    if without := len(corpus.patients) - len(cohort_of):
        lines.append(f"{without} patients have H&E alone and stand on no side")
    return finish(options, "\n".join([*lines, f"written to {place}; review it, and edit it as you like"]),
                  {"split": str(place), "cohorts": held, "without_counts": without})  # fmt: skip
