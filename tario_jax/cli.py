"""`tario <job> …`: one command, a job each.

Every job prints a table for people, and writes the same as JSON with --json=PATH.
"""

import argparse
import dataclasses
import json
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tario_jax.config import Config, EvaluateConfig, InputError, SourceConfig, load_config, override

_CONFIG_PREFIX = "--config."
# groups of a config that a job reads; the others read all of it
_GROUPS_READ = {
    "simulate": ("source",), "ingest": ("source",), "check": ("source",), "predict": ("source", "evaluate"),
    "evaluate": ("source", "evaluate"),
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs a job. Exit status: 0 done, 1 a check found a fault, 2 a mistake in what was given (one line says which)."""
    arguments = sys.argv[1:] if argv is None else argv
    assignments, arguments = _split_assignments(arguments)
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
        groups = _GROUPS_READ.get(options.job)
        for name in assignments:
            if groups is not None and name.partition(".")[0] not in groups:
                raise InputError(
                    f"--config.{name}: 'tario {options.job}' reads {' and '.join(groups)} of a config only; the rest "
                    "is that of the run"
                )
        if assignments and options.config is None and options.job not in ("predict", "evaluate"):
            raise InputError(f"--config.{next(iter(assignments))}: changes a field of a config; name it with --config")
        options.assignments = assignments
        return options.run(options)
    except InputError as error:
        print(f"tario: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough, as in `tario check … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # no such folder, no permission, a full disk: the user's, if it names a place
        if error.filename is None:
            raise
        print(f"tario: {error.filename}: {error.strerror or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tario: stopped; the same command continues", file=sys.stderr)
        return 130


def _split_assignments(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Takes `--config.a.b=value` and `--config.a.b value` out of the arguments."""
    assignments, rest = {}, []
    pending = iter(arguments)
    for argument in pending:
        if not argument.startswith(_CONFIG_PREFIX):
            rest.append(argument)
            continue
        name, equals, value = argument[len(_CONFIG_PREFIX) :].partition("=")
        if not equals:
            value = next(pending, None)
            if value is None:
                print(f"tario: {argument}: has no value; write {argument}=VALUE", file=sys.stderr)
                raise SystemExit(2)
        assignments[name] = value
    return assignments, rest


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line, in place of the usage."""
        print(f"{self.prog}: {message}; see '{self.prog} --help'", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="tario", description="H&E in, the expression of every gene out.", allow_abbrev=False)
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB", parser_class=_Parser)

    def job(name: str, run: Callable, summary: str, examples: str) -> argparse.ArgumentParser:
        added = jobs.add_parser(
            name, help=summary, description=summary, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="examples:\n" + textwrap.indent(textwrap.dedent(examples).strip(), "  "),
        )  # fmt: skip
        added.set_defaults(run=run)
        added.add_argument("--json", type=Path, metavar="PATH", help="write the result as JSON too")
        return added

    def config(added: argparse.ArgumentParser, *, required: bool = True, workdir: bool = True) -> None:
        added.add_argument("--config", required=required, metavar="FILE.py[:ARG]",
                           help="config file; --config.a.b=VALUE changes a field")  # fmt: skip
        if workdir:
            added.add_argument("--workdir", required=required, type=Path,
                               help="folder of the run; run again, it continues")  # fmt: skip

    added = job("run", _run, "the main job: corpus, training, gene maps of held-out sections, report", """
        tario run --config=configs/quickstart.py --workdir=runs/quickstart
        tario run --config=configs/her2st.py --workdir=runs/her2st --config.train.steps=200
    """)  # fmt: skip
    config(added)

    added = job("simulate", _simulate, "virtual patients into a corpus", """
        tario simulate --out=corpora/virtual --patients=93 --validation=7 --held-out=30
        tario simulate --config=configs/quickstart.py --workdir=runs/quickstart --config.source.seed=1
        tario simulate --out=corpora/small --patients=6 --validation=3 --held-out=3 --section-um=288
    """)  # fmt: skip
    defaults = SourceConfig()
    config(added, required=False)
    added.add_argument("--out", type=Path, help="folder of the corpus; WORKDIR/corpus by default")
    added.add_argument("--patients", type=int, help=f"for training ({defaults.train_patients})")
    added.add_argument("--validation", type=int, help=f"({defaults.validation_patients})")
    added.add_argument("--held-out", type=int, help=f"({defaults.held_out_patients})")
    added.add_argument("--section-um", type=float, help=f"side of a section ({defaults.section_um:g})")
    added.add_argument("--seed", type=int, help=f"of the cohort ({defaults.seed})")
    added.add_argument("--workers", type=int, help=f"processes ({defaults.workers})")

    added = job("ingest", _ingest, "a vendor's files into a corpus", """
        tario ingest --source=spots --path=her2st --patient=C --cohort=BRCA --sections=C2,C3 --out=corpora/her2st
        tario ingest --config=configs/her2st.py --workdir=runs/her2st
        tario ingest --source=xenium --path=xenium_run --patient=P1 --cohort=LUAD --out=corpora/xenium
        tario ingest --source=cosmx --path=Lung12 --patient=P12 --cohort=NSCLC --out=corpora/lung12
    """)  # fmt: skip
    config(added, required=False)
    added.add_argument("--source", choices=("spots", "xenium", "cosmx"), help="in place of --config")
    added.add_argument("--path", help="folder of the vendor's files")
    added.add_argument("--out", type=Path, help="folder of the corpus; WORKDIR/corpus by default")
    added.add_argument("--patient",
                       help="whose tissue it is; for spots the letters that the sections' names start with, "
                            "several with commas")  # fmt: skip
    added.add_argument("--cohort", help="cancer type")
    added.add_argument("--section", help="name of the section (xenium, cosmx); the folder's name by default")
    added.add_argument("--sections", help="spots: read only these, with commas")
    added.add_argument("--um-per-px", type=float, help="cosmx: µm per px of the flat files, where they do not say")
    added.add_argument("--min-spot-total", type=int, help="spots: fewest counts of a spot (1)")
    added.add_argument("--pitch-um", type=float, help="spots: distance of neighbouring spots (200)")
    added.add_argument("--diameter-um", type=float, help="spots: diameter of a spot (100)")
    added.add_argument("--min-gene-total", type=int, help="spots: fewest counts of a gene (1)")

    added = job("check", _check, "is a corpus what its seals say: checksums, contents, units, registration", """
        tario check corpora/xenium
        tario check --workdir=runs/quickstart
        tario check corpora/virtual --json=check.json
    """)  # fmt: skip
    added.add_argument("corpus", type=Path, nargs="?", help="WORKDIR/corpus, or the corpus of --config, by default")
    config(added, required=False)

    added = job("train", _train, "trains a model on a corpus; run again, it continues", """
        tario train --config=configs/quickstart.py --corpus=corpora/virtual --workdir=runs/a
        tario train --config=configs/quickstart.py --corpus=corpora/virtual --workdir=runs/b --config.data.bin_um=18
    """)  # fmt: skip
    config(added)
    added.add_argument("--corpus", type=Path, help="sealed corpus; by default the one that the config's source names")

    def model(added: argparse.ArgumentParser) -> None:
        added.add_argument("--workdir", required=True, type=Path, help="of the run whose newest checkpoint is used")
        config(added, required=False, workdir=False)
        added.add_argument("--bin-um", type=float, help="side of the bins; that of training by default")
        added.add_argument("--allow-virtual-model", action="store_true",
                           help="let a model of virtual tissue, which knows no biology, see real tissue")  # fmt: skip

    added = job("predict", _predict, "gene maps of a section or an image, from the H&E alone", """
        tario predict --workdir=runs/her2st --corpus=runs/her2st/corpus --section=C5 --out=C5.h5ad --table=C5.tsv
        tario predict --workdir=runs/her2st --image=slide.png --um-per-px=0.5 --out=slide.h5ad
    """)  # fmt: skip
    model(added)
    added.add_argument("--corpus", type=Path, help="corpus of --section; by default that of the run")
    added.add_argument("--section", help="a section of the corpus")
    added.add_argument("--image", type=Path, help="an image file (PNG, JPEG, TIFF)")
    added.add_argument("--um-per-px", type=float, help="of --image")
    added.add_argument("--out", type=Path, help="AnnData (.h5ad)")
    added.add_argument("--table", type=Path, help="place × gene, expected counts (.parquet, .tsv, .csv)")
    added.add_argument("--overlap", type=float, help="of neighbouring windows; evaluate.overlap by default")

    added = job("evaluate", _evaluate, "correlations with controls on held-out sections, figures, report.html", """
        tario evaluate --workdir=runs/quickstart --out=reports/quickstart --config.evaluate.top_genes=200
        tario evaluate --workdir=runs/quickstart --corpus=corpora/x --bin-um=18 --allow-virtual-model --out=reports/x
    """)  # fmt: skip
    model(added)
    added.add_argument("--corpus", type=Path, help="by default that of the run")
    added.add_argument("--out", type=Path, help="folder of the report; WORKDIR by default")
    return parser


def _config(options) -> Config:
    return override(load_config(options.config), options.assignments)


def _out(options) -> Path:
    """--out, else the corpus within --workdir."""
    if options.out is None and options.workdir is None:
        raise InputError(f"{options.job}: no place to write; give --out=CORPUS or --workdir=RUN (for RUN/corpus)")
    return options.out or options.workdir / "corpus"


def _finish(options, text: str, result: Any) -> int:
    """Prints the table and writes the same as JSON."""
    print(text, flush=True)
    if options.json is not None:
        from tario_jax.evaluate.tables import plain

        options.json.parent.mkdir(parents=True, exist_ok=True)
        partial = options.json.with_name(options.json.name + ".partial")
        partial.write_text(json.dumps(plain(result), indent=1) + "\n")
        os.replace(partial, options.json)
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _about_ten_times(what: str, of: str) -> Callable[[int, int], None]:
    """progress(done, total) that says how far it is about ten times in all."""
    said = 0

    def progress(done: int, total: int) -> None:
        nonlocal said
        if done == total or done * 10 // total > said:
            said = done * 10 // total
            _say(f"{what}: {done}/{total} {of}")

    return progress


def _run(options) -> int:
    config = _config(options)
    from tario_jax.evaluate.job import headline_table
    from tario_jax.evaluate.main_job import run

    evaluation = run(config, options.workdir, _say)
    report = evaluation.report
    page = (options.workdir / "report.html").resolve()
    return _finish(options, f"\n{headline_table(report)}\n\nreport: {page}", report)


def _simulate(options) -> int:
    from tario_jax.virtual.cohort import simulate_cohort

    source = SourceConfig() if options.config is None else _config(options).source
    if source.kind != "virtual":
        raise InputError(
            f"--config={options.config}: its source is {source.kind!r}; 'tario simulate' makes virtual ones"
        )
    flags = {
        "train_patients": options.patients, "validation_patients": options.validation,
        "held_out_patients": options.held_out, "section_um": options.section_um, "seed": options.seed,
        "workers": options.workers,
    }  # fmt: skip
    source = dataclasses.replace(source, **{name: value for name, value in flags.items() if value is not None})
    return _finish(options, *_described(simulate_cohort(source, _out(options), _say)))


def _described(corpus) -> tuple[str, dict[str, Any]]:
    detections = sum(section.record["detections"] for section in corpus.sections)
    spots = sum(section.record["spots"] for section in corpus.sections)
    result = {
        "corpus": str(corpus.root), "kind": corpus.kind, "seal": corpus.seal, "genes": len(corpus.panel),
        "panel_hash": corpus.panel.hash, "patients": len(corpus.patients), "sections": len(corpus.sections),
        "detections": detections, "spots": spots,
    }  # fmt: skip
    return "\n".join(f"{name:<12} {value:,}" if isinstance(value, int) else f"{name:<12} {value}"
                     for name, value in result.items()), result  # fmt: skip


# flags of `tario ingest` that only some sources know: elsewhere they would do nothing, silently
_FLAGS_OF = {
    "section": ("xenium", "cosmx"), "um_per_px": ("cosmx",), "sections": ("spots",), "min_spot_total": ("spots",),
    "min_gene_total": ("spots",), "pitch_um": ("spots",), "diameter_um": ("spots",),
}  # fmt: skip


def _ingest(options) -> int:
    from tario_jax.sources.ingest import account, ingest

    if options.config is not None:
        return _ingest_config(options)
    for flag in ("source", "path", "patient", "cohort"):
        if getattr(options, flag) is None:
            raise InputError(f"ingest: --{flag} is missing; see 'tario ingest --help', or give --config and --workdir")
    for flag, sources in _FLAGS_OF.items():
        if options.source not in sources and getattr(options, flag) is not None:
            raise InputError(f"--{flag.replace('_', '-')}: means nothing to --source={options.source}, only to "
                             f"{' and '.join(sources)}; leave it out")  # fmt: skip
    if not options.patient.strip(",") or not options.cohort:
        raise InputError("--patient and --cohort: one is empty; expected whose tissue it is, and the cancer type")
    _say(f"ingest: reading {options.path}")
    if options.source == "spots":
        from tario_jax.sources.spots import read_spots

        source = read_spots(
            options.path, patients=tuple((letters, options.cohort) for letters in options.patient.split(",")),
            sections=tuple(filter(None, (options.sections or "").split(","))),
            **{name: getattr(options, name) for name in ("pitch_um", "diameter_um", "min_spot_total", "min_gene_total")
               if getattr(options, name) is not None},
        )  # fmt: skip
    elif options.source == "xenium":
        from tario_jax.sources.xenium import read_xenium

        source = read_xenium(
            options.path, patient_id=options.patient, cohort=options.cohort, section_id=options.section
        )
    else:
        from tario_jax.sources.cosmx import read_cosmx

        source = read_cosmx(options.path, patient_id=options.patient, cohort=options.cohort,
                            section_id=options.section, um_per_px=options.um_per_px)  # fmt: skip
    corpus = ingest(source, _out(options), _say)
    text, described = _described(corpus)
    return _finish(options, "\n" + text, account(source, corpus) | described)


def _ingest_config(options) -> int:
    """The corpus that a config names, into the workdir."""
    given = [flag for flag in ("source", "path", "patient", "cohort", *_FLAGS_OF) if getattr(options, flag) is not None]
    if given:
        raise InputError(f"--{given[0].replace('_', '-')}: the source is that of --config; leave one of them out")
    source = _config(options).source
    if source.kind != "spots":
        raise InputError(f"--config={options.config}: its source is {source.kind!r}; expected 'spots'")
    from tario_jax.evaluate.main_job import make_corpus

    return _finish(options, *_described(make_corpus(source, _out(options), _say)))


def _check(options) -> int:
    from tario_jax.corpus.read import Corpus
    from tario_jax.sources.check import check

    found = check(Corpus.open(_corpus_of(options)), _say)
    _finish(options, found.table(), found.to_dict())
    return 1 if found.faults else 0


def _train(options) -> int:
    config = _config(options)
    from tario_jax.corpus.read import Corpus

    if options.corpus is not None:
        corpus = Corpus.open(options.corpus)
    else:
        from tario_jax.evaluate.main_job import make_corpus

        corpus = make_corpus(config.source, options.workdir / "corpus", _say)
    from tario_jax.train.loop import train  # jax starts only when the corpus is there

    train(config, corpus, options.workdir, _say)
    lines = [json.loads(line) for line in (options.workdir / "metrics.jsonl").read_text().splitlines()]
    result = {"workdir": str(options.workdir), "corpus": str(corpus.root), "metrics": lines}
    last = next(line for line in reversed(lines) if "loss_nats_per_detection" in line)
    return _finish(options, "\n".join(f"{name:<28} {value:,.4f}" for name, value in last.items()), result)


def _corpus_of(options) -> Path:
    """The corpus that was named, else that of --config's source, else the one within the workdir."""
    if options.corpus is not None:
        return options.corpus
    if options.config is not None and _config(options).source.kind == "corpus":
        from tario_jax.evaluate.main_job import expand

        return Path(expand(_config(options).source.path))
    if options.workdir is None:
        raise InputError(f"{options.job}: no corpus is named; give its folder, or --workdir=RUN (for RUN/corpus)")
    place = options.workdir / "corpus"
    if not place.is_dir():
        raise InputError(f"{place}: no such folder; this run was trained on a corpus elsewhere: name it (--corpus)")
    return place


def _measured(options, provenance) -> EvaluateConfig:
    """How to evaluate: as the run's config says, or --config's, with --config.evaluate.* on top."""
    base = provenance.config if options.config is None else load_config(options.config)
    return override(base, options.assignments).evaluate


def _predict(options) -> int:
    if (options.section is None) == (options.image is None):
        raise InputError("predict: found neither or both of --section and --image; give one of them")
    if options.out is None and options.table is None:
        raise InputError("predict: nothing to write; give --out=MAPS.h5ad, --table=RATES.tsv, or both")
    if options.table is not None and options.table.suffix not in (".parquet", ".tsv", ".csv"):
        raise InputError(f"--table={options.table}: ends in {options.table.suffix!r}; expected .parquet, .tsv or .csv")
    if options.out is not None and options.out.suffix != ".h5ad":
        raise InputError(f"--out={options.out}: ends in {options.out.suffix!r}; expected .h5ad (AnnData)")
    for path in filter(None, (options.out, options.table)):  # a folder that cannot be written is found before the work
        path.parent.mkdir(parents=True, exist_ok=True)
    unused = "um_per_px" if options.section is not None else "corpus"
    if getattr(options, unused) is not None:
        raise InputError(f"--{unused.replace('_', '-')}: means nothing to "
                         f"--{'section' if options.section is not None else 'image'}; leave it out")  # fmt: skip
    if options.image is not None:
        if options.um_per_px is None:
            raise InputError(f"--image={options.image}: its µm per px is not stated; add --um-per-px")
        from tario_jax.predict.tissue import LARGEST_UM_PER_PX, SMALLEST_UM_PER_PX, read_image

        if not SMALLEST_UM_PER_PX <= options.um_per_px <= LARGEST_UM_PER_PX:
            raise InputError(f"--um-per-px={options.um_per_px:g}: expected {SMALLEST_UM_PER_PX} to {LARGEST_UM_PER_PX} "
                             "µm per px, as H&E is scanned")  # fmt: skip
        image = read_image(options.image)
        from tario_jax.predict.predictor import load

        predictor = load(options.workdir, allow_virtual_model=options.allow_virtual_model)
        overlap = _measured(options, predictor.provenance).overlap if options.overlap is None else options.overlap
        maps = predictor.predict(image, options.um_per_px, bin_um=options.bin_um, overlap=overlap)
    else:
        from tario_jax.corpus.read import Corpus
        from tario_jax.predict.predictor import load
        from tario_jax.train.checkpoint import find_checkpoint

        find_checkpoint(options.workdir)
        corpus = Corpus.open(_corpus_of(options))
        section = corpus.section(options.section)
        predictor = load(options.workdir, allow_virtual_model=options.allow_virtual_model)
        overlap = _measured(options, predictor.provenance).overlap if options.overlap is None else options.overlap
        maps = predictor.predict_section(
            section, tissue=corpus.kind, bin_um=options.bin_um, overlap=overlap,
            progress=_about_ten_times("predict", "windows"),
        )  # fmt: skip
    if options.out is not None:
        maps.write_h5ad(options.out)
    if options.table is not None:
        maps.write_table(options.table)
    mean_G = maps.rates_NxG.mean(0)
    highest = [maps.panel.symbols[g] for g in mean_G.argsort()[::-1][:5]]
    result = maps.metadata() | {
        "places": len(maps.x_um_N), "genes": len(maps.panel), "detections_per_place": float(mean_G.sum()),
        "highest_genes": highest, "out": str(options.out), "table": str(options.table),
    }  # fmt: skip
    return _finish(options, "\n".join(f"{name:<22} {value}" for name, value in result.items() if value != ""), result)


def _evaluate(options) -> int:
    from tario_jax.corpus.read import Corpus
    from tario_jax.evaluate.job import evaluate_checkpoint, headline_table
    from tario_jax.predict.predictor import load

    predictor = load(options.workdir, allow_virtual_model=options.allow_virtual_model)
    corpus = Corpus.open(_corpus_of(options))
    folder = options.out or options.workdir
    evaluation = evaluate_checkpoint(
        predictor, corpus, _measured(options, predictor.provenance), folder, bin_um=options.bin_um, say=_say,
        title=f"{predictor.provenance.config.name} on {corpus.root.name}",
    )  # fmt: skip
    page = (folder / "report.html").resolve()
    return _finish(options, f"\n{headline_table(evaluation.report)}\n\nreport: {page}", evaluation.report)


if __name__ == "__main__":
    sys.exit(main())
