"""tario simulate: virtual patients."""

import argparse
import dataclasses

from tario_jax.cli.options import (
    at_least_one,
    config_flags,
    config_of,
    describe_corpus,
    finish,
    limits_of,
    need_eval,
    new_corpus,
    part_of,
    say,
)
from tario_jax.config import InputError, SourceConfig, SplitConfig

SUMMARY = "virtual patients into a corpus"
EXAMPLES = """
    tario simulate --out=corpora/virtual --patients=93 --validation=7 --held-out=30
    tario simulate --config=configs/quickstart.py --workdir=runs/quickstart --config.source.seed=1
    tario simulate --out=corpora/small --patients=6 --validation=3 --held-out=3 --section-um=288 --panel=curated
    tario simulate --out=corpora/whole --patients=2545 --validation=64 --held-out=213 --part=3/16
    tario simulate --out=corpora/nsclc --cohorts=LUAD,LUSC --panel=curated --held-out=1000 --held-out-after=213
    tario simulate --out=corpora/nsclc --cohorts=LUAD,LUSC --held-out=1000 --held-out-after=213 --outcomes=EGFR,KRAS
    tario simulate --out=corpora/lung --cohorts=LUAD,LUSC --regions=core --depth=low --patients=20
"""
GROUPS_READ = ("source",)


def flags(parser: argparse.ArgumentParser) -> None:
    defaults = SourceConfig()
    config_flags(parser, required=False)
    parser.add_argument(
        "--out", metavar="PLACE", help="of the corpus: a folder, gs://… or s3://…; WORKDIR/corpus by default"
    )
    parser.add_argument("--patients", type=int, help=f"for training ({defaults.train_patients})")
    parser.add_argument("--validation", type=int, help=f"({defaults.validation_patients})")
    parser.add_argument("--held-out", type=int, help=f"({defaults.held_out_patients})")
    parser.add_argument("--held-out-after", type=at_least_one, metavar="N",
                        help="only held-out patients, beyond the first N: a further test set")  # fmt: skip
    parser.add_argument("--cohorts", type=_names, help="cancer types, by turns, with commas; all by default")
    parser.add_argument("--regions", type=_names, help=f"of each patient ({','.join(defaults.regions)}), large of some")
    parser.add_argument("--section-um", type=float, help=f"side of core and border ({defaults.section_um:g})")
    parser.add_argument(
        "--panel", choices=("whole", "curated"), help=f"18,963 genes, or about 1,000 ({defaults.panel})"
    )
    parser.add_argument("--depth", choices=("low", "default", "high"),
                        help="about 150, 400 or 1,000 transcripts a cell")  # fmt: skip
    parser.add_argument("--seed", type=int, help=f"of the cohort ({defaults.seed})")
    parser.add_argument("--part", type=part_of, default=(1, 1), metavar="K/N",
                        help="only every N-th patient from the K-th on: one of N jobs that share --out")  # fmt: skip
    parser.add_argument("--limits", type=at_least_one, metavar="PATIENTS",
                        help="print r(T, X) and r(V, X) by gene class on so many held-out patients")  # fmt: skip
    parser.add_argument("--outcomes", type=_names, metavar="NAME,…",
                        help="print the AUROC of these columns that the H&E allows (V): 10 min per 1,000")  # fmt: skip
    parser.add_argument("--workers", type=int, help=f"processes ({defaults.workers})")


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def run(options: argparse.Namespace) -> int:
    from tario_jax.virtual.cohort import simulate_cohort

    if options.outcomes:
        need_eval()  # before the cohort is made
    source = SourceConfig() if options.config is None else config_of(options).source
    if source.kind != "virtual":
        raise InputError(
            f"--config={options.config}: its source is {source.kind!r}; 'tario simulate' makes virtual ones"
        )
    given = {
        "train_patients": options.patients, "validation_patients": options.validation,
        "held_out_patients": options.held_out, "cohorts": options.cohorts, "regions": options.regions,
        "section_um": options.section_um, "panel": options.panel, "depth": options.depth, "seed": options.seed,
        "workers": options.workers,
    }  # fmt: skip
    source = dataclasses.replace(source, **{name: value for name, value in given.items() if value is not None})
    if options.held_out_after and (options.patients or options.validation):
        raise InputError("--held-out-after: makes held-out patients alone; leave out --patients and --validation")
    if options.workdir is not None:
        from tario_jax.evaluate.main_job import refuse_other_source

        refuse_other_source(source, options.workdir)
    corpus = simulate_cohort(source, new_corpus(options), say, options.part, held_out_after=options.held_out_after)
    if corpus is None:  # sealed, and described, by the part that ends last
        return finish(options, "", {"corpus": None, "part": options.part})
    text, described = describe_corpus(corpus)
    if options.limits:
        limits = limits_of(corpus, SplitConfig(), options.limits)
        text, described = f"{text}\n\n{limits.table()}", described | limits.to_dict()
    if options.outcomes:
        from tario_jax.evaluate.patients.outcomes import Setting
        from tario_jax.evaluate.patients.probe_job import reachable_aurocs

        aurocs = reachable_aurocs(corpus, options.outcomes, Setting(shuffles=0), workers=source.workers, say=say)
        text += "\n\nAUROC that the H&E allows (V)\n" + "\n".join(
            f"{column:<12}" + "   ".join(f"{how} {one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
                                         for how, one in of.items())
            for column, of in aurocs.items())  # fmt: skip
        described = described | {"reachable_auroc": aurocs}
    return finish(options, text, described)
