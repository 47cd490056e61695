"""tario ingest: a vendor's files, or the source that a config names."""

import argparse

from tario_jax.cli.options import config_flags, config_of, describe_corpus, finish, new_corpus, say
from tario_jax.config import InputError

SUMMARY = "a vendor's files into a corpus"
EXAMPLES = """
    tario ingest --source=spots --path=her2st --patient=C --cohort=BRCA --sections=C2,C3 --out=corpora/her2st
    tario ingest --config=configs/her2st.py --workdir=runs/her2st
    tario ingest --source=xenium --path=xenium_run --patient=P1 --cohort=LUAD --out=corpora/xenium
    tario ingest --source=cosmx --path=Lung12 --patient=P12 --cohort=NSCLC --out=corpora/lung12
    tario ingest --source=cosmx --path=S1 --symbol-map=genes.tsv --patient=P1 --cohort=LUAD --out=corpora/s1
"""
GROUPS_READ = ("source",)

_REQUIRED = ("source", "path", "patient", "cohort")
# flags that only some sources know: elsewhere they would do nothing, silently
_FLAGS_OF = {
    "section": ("xenium", "cosmx"), "um_per_px": ("cosmx",), "sections": ("spots",), "min_spot_total": ("spots",),
    "min_gene_total": ("spots",), "pitch_um": ("spots",), "diameter_um": ("spots",), "symbol_map": ("cosmx",),
    "image": ("xenium", "cosmx"), "alignment": ("xenium", "cosmx"), "registration": ("xenium", "cosmx"),
}  # fmt: skip


def flags(parser: argparse.ArgumentParser) -> None:
    config_flags(parser, required=False)
    parser.add_argument("--source", choices=("spots", "xenium", "cosmx"), help="in place of --config")
    parser.add_argument("--path", help="folder of the vendor's files")
    parser.add_argument(
        "--out", metavar="PLACE", help="of the corpus: a folder, gs://… or s3://…; WORKDIR/corpus by default"
    )
    parser.add_argument("--patient",
                        help="whose tissue it is; for spots the letters that the sections' names start with, "
                             "several with commas")  # fmt: skip
    parser.add_argument("--cohort", help="cancer type")
    parser.add_argument("--section", help="name of the section (xenium, cosmx); the folder's name by default")
    parser.add_argument("--sections", help="spots: read only these, with commas")
    parser.add_argument("--um-per-px", type=float, help="cosmx: µm per px of the flat files, where they do not say")
    parser.add_argument("--symbol-map", metavar="TSV",
                        help="cosmx: lines of old<TAB>new: what targets are to be called, such as those that a "
                             "spreadsheet turned into dates")  # fmt: skip
    parser.add_argument("--image", help="xenium, cosmx: an H&E that is not in the folder")
    parser.add_argument("--alignment", metavar="CSV",
                        help="3x3 affine from px of --image to morphology px (xenium; or key points) or to global px, "
                             "y up (cosmx)")  # fmt: skip
    parser.add_argument("--registration", choices=("same_section_after", "same_section_before", "adjacent"),
                        help="how the H&E relates to the assay's section; xenium: after it by default")  # fmt: skip
    parser.add_argument("--min-spot-total", type=int, help="spots: fewest counts of a spot (1)")
    parser.add_argument("--pitch-um", type=float, help="spots: distance of neighbouring spots (200)")
    parser.add_argument("--diameter-um", type=float, help="spots: diameter of a spot (100)")
    parser.add_argument("--min-gene-total", type=int, help="spots: fewest counts of a gene (1)")


def run(options: argparse.Namespace) -> int:
    if options.config is not None:
        return _run_config(options)
    _check(options)
    from tario_jax.sources.ingest import account, ingest

    say(f"ingest: reading {options.path}")
    source = _read(options)
    corpus = ingest(source, new_corpus(options), say)
    text, described = describe_corpus(corpus)
    return finish(options, "\n" + text, account(source, corpus) | described)


def _run_config(options: argparse.Namespace) -> int:
    """The corpus that a config names, into the workdir."""
    given = [flag for flag in (*_REQUIRED, *_FLAGS_OF) if getattr(options, flag) is not None]
    if given:
        raise InputError(f"--{given[0].replace('_', '-')}: the source is that of --config; leave one of them out")
    source = config_of(options).source
    if source.kind != "spots":
        raise InputError(f"--config={options.config}: its source is {source.kind!r}; expected 'spots'")
    from tario_jax.evaluate.main_job import make_corpus

    return finish(options, *describe_corpus(make_corpus(source, new_corpus(options), say)))


def _check(options: argparse.Namespace) -> None:
    for flag in _REQUIRED:
        if getattr(options, flag) is None:
            raise InputError(f"ingest: --{flag} is missing; see 'tario ingest --help', or give --config and --workdir")
    for flag, sources in _FLAGS_OF.items():
        if options.source not in sources and getattr(options, flag) is not None:
            raise InputError(f"--{flag.replace('_', '-')}: means nothing to --source={options.source}, only to "
                             f"{' and '.join(sources)}; leave it out")  # fmt: skip
    if not options.patient.strip(",") or not options.cohort:
        raise InputError("--patient and --cohort: one is empty; expected whose tissue it is, and the cancer type")


def _read(options: argparse.Namespace):
    """The source, as `tario_jax.sources.ingested.Ingested`."""
    if options.source == "spots":
        from tario_jax.sources.spots import read_spots

        return read_spots(
            options.path, patients=tuple((letters, options.cohort) for letters in options.patient.split(",")),
            sections=tuple(filter(None, (options.sections or "").split(","))),
            **{name: getattr(options, name) for name in ("pitch_um", "diameter_um", "min_spot_total", "min_gene_total")
               if getattr(options, name) is not None},
        )  # fmt: skip
    if options.source == "xenium":
        from tario_jax.sources.xenium import read_xenium

        return read_xenium(options.path, **_slide(options))
    from tario_jax.sources.cosmx import read_cosmx

    return read_cosmx(options.path, **_slide(options), um_per_px=options.um_per_px, symbol_map=options.symbol_map)


def _slide(options: argparse.Namespace) -> dict[str, str | None]:
    """What xenium and cosmx both take."""
    given = {name: getattr(options, name) for name in ("image", "alignment", "registration")}
    return {"patient_id": options.patient, "cohort": options.cohort, "section_id": options.section} | given
