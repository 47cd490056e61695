"""tario probe: what can be decoded of patients, with its confounders, nulls and ceilings."""

import argparse
from pathlib import Path

from tario_jax.cli.atlas import names, table_flag
from tario_jax.cli.options import at_least_one, finish, need_eval, say
from tario_jax.config import InputError

SUMMARY = "linear probes of embeddings: cancer type, mutations, response, with confounders, nulls and calibration"
EXAMPLES = """
    tario probe runs/quickstart.embeddings --corpus=runs/quickstart/corpus --columns=cohort
    tario probe nsclc.embeddings --corpus=corpora/nsclc --columns=EGFR,KRAS,STK11,response --reachable --out=nsclc.probe
    tario probe nsclc.embeddings --corpus=corpora/nsclc --columns=KRAS,STK11 --pairs=KRAS+STK11 --out=nsclc.probe
    tario probe nsclc.embeddings --corpus=corpora/nsclc --columns=response --fine-tune=runs/patients
    tario probe lung.embeddings --table=clinical.tsv --columns=EGFR --confounders=hospital
    tario probe lung.embeddings --corpus=corpora/lung --columns=EGFR --confounders=site,scanner --vectors=state
"""
GROUPS_READ = ()


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("embeddings", type=Path, metavar="NAME.embeddings", help="that 'tario embed' wrote")
    parser.add_argument("--corpus", metavar="PLACE", help="whose patients are probed, and whose table has the columns")
    table_flag(parser)
    parser.add_argument("--columns", required=True, type=names, metavar="NAME,…", help="what is decoded")
    parser.add_argument("--confounders", type=names, default=("site",), metavar="NAME,…",
                        help="probed alone; where one tells, pairs of its groups are reported (site)")  # fmt: skip
    parser.add_argument("--known", type=names, default=("cohort",), metavar="NAME,…",
                        help="the same, but part of what is asked: decides nothing (cohort)")  # fmt: skip
    parser.add_argument("--repeats", type=at_least_one, default=3, metavar="N", help="partitions into folds (3)")
    parser.add_argument("--cohorts", type=names, default=(), metavar="NAME,…", help="patients of these alone")
    parser.add_argument("--vectors", type=names, metavar="NAME,…",
                        help="expression, log_expression, state, spread (log_expression,state)")  # fmt: skip
    parser.add_argument("--folds", type=at_least_one, default=5, metavar="N", help="by patient (5)")
    parser.add_argument("--shuffles", type=int, default=20, metavar="N", help="of labels, for the null (20; 0: none)")
    parser.add_argument("--bootstraps", type=at_least_one, default=1000, metavar="N", help="of patients (1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=_pairs, default=(), metavar="A+B,…",
                        help="whether patients with both lie elsewhere than those with A alone")  # fmt: skip
    parser.add_argument("--reachable", action="store_true",
                        help="the AUROC that the H&E allows, where the truth is known: virtual patients")  # fmt: skip
    parser.add_argument("--fine-tune", type=Path, metavar="WORKDIR",
                        help="the model, tuned on each column fold by fold, beside the probe: hours")  # fmt: skip
    parser.add_argument("--allow-virtual-model", action="store_true",
                        help="--fine-tune with a model of virtual tissue on real patients: to see it run")  # fmt: skip
    parser.add_argument("--fine-tune-steps", type=at_least_one, metavar="N", help="of each fold (200)")
    parser.add_argument("--workers", type=at_least_one, default=2, metavar="N", help="processes of --reachable (2)")
    parser.add_argument("--allow-seen", action="store_true", help="patients of the model's training too")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="a page, tables and figures")


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    found = tuple(tuple(pair.split("+")) for pair in names(text))
    if any(len(pair) != 2 or not all(pair) for pair in found):
        raise argparse.ArgumentTypeError(f"{text!r}: expected two columns with + between them, as KRAS+STK11")
    return found


def run(options: argparse.Namespace) -> int:
    if options.folds < 2 or options.shuffles < 0 or options.seed < 0:
        raise InputError("--folds, --shuffles, --seed: expected at least 2 folds, and no shuffles or seed below 0")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out={options.out}: is a file; give a folder")
    if options.fine_tune is None and (options.allow_virtual_model or options.fine_tune_steps is not None):
        raise InputError("--allow-virtual-model and --fine-tune-steps: go with --fine-tune=WORKDIR; leave them out")
    need_eval()
    from tario_jax.corpus.read import Corpus
    from tario_jax.evaluate.patients.outcomes import Setting
    from tario_jax.evaluate.patients.probe_job import Asked, pairs_text, probe_job, table_of
    from tario_jax.evaluate.patients.store import EmbeddingStore
    from tario_jax.evaluate.patients.tables import table_of_file

    setting = Setting(folds=options.folds, repeats=options.repeats, shuffles=options.shuffles,
                      bootstraps=options.bootstraps, seed=options.seed,
                      **({} if options.vectors is None else {"vectors": options.vectors}))  # fmt: skip
    asked = Asked(options.columns, options.confounders, options.known, options.cohorts, options.allow_seen,
                  options.reachable, options.pairs, options.workers)  # fmt: skip
    tuning = {}
    if options.fine_tune is not None:
        from tario_jax.evaluate.patients.outcome_tuning import Tuning
        from tario_jax.predict.predictor import load

        tuning = {"predictor": load(options.fine_tune, allow_virtual_model=options.allow_virtual_model),
                  "tuning": Tuning(options.fine_tune_steps or Tuning.steps, seed=options.seed)}  # fmt: skip
    store = EmbeddingStore(options.embeddings)
    corpus = None if options.corpus is None else Corpus.open(options.corpus)
    table = next(iter(table_of_file(options.table, store, say)), None)
    result = probe_job(store, corpus, asked, setting, say, table=table, **tuning)
    text = "\n".join([table_of(result), *pairs_text(result)])
    if options.out is not None:
        from tario_jax.evaluate.patients.probe_report import write_probe_report

        text += f"\n{write_probe_report(options.out, result)}"
    return finish(options, text, result)
