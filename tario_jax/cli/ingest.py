"""tario ingest: a vendor's files, or the source that a config names."""

import argparse
from pathlib import Path

from tario_jax.cli.options import config_flags, config_of, describe_corpus, finish, new_corpus, say
from tario_jax.config import InputError

SUMMARY = "a vendor's files into a corpus"
EXAMPLES = """
    tario ingest --source=spots --path=her2st --patient=C --cohort=BRCA --sections=C2,C3 --out=corpora/her2st
    tario ingest --config=configs/her2st.py --workdir=runs/her2st
    tario ingest --source=xenium --path=xenium_run --patient=P1 --cohort=LUAD --out=corpora/xenium
    tario ingest --source=cosmx --path=Lung12 --patient=P12 --cohort=NSCLC --out=corpora/lung12
    tario ingest --source=cosmx --path=S1 --symbol-map=renamed.tsv --patient=P1 --cohort=LUAD --out=corpora/s1
    tario ingest --source=visium --path=outs --image=he.tif --patient=P2 --cohort=BRCA --out=corpora/mixed
    tario ingest --source=visium_hd --path=outs --image=he.btf --patient=P3 --cohort=COAD --out=corpora/mixed
    tario ingest --source=hest --path=hest_data --sections=TENX99,NCBI776 --patients-file=who.tsv --out=corpora/hest
    tario ingest --source=xenium --path=run2 --patient=P4 --cohort=LUAD --panel=genes.tsv --out=corpora/by_panel
    tario ingest --source=slide --path=P7.svs --patient=P7 --cohort=BRCA --panel=genes.tsv --out=corpora/slides
    tario ingest --source=slide --path=slides --patients-file=patients.tsv --panel=genes.tsv --out=corpora/slides
"""
GROUPS_READ = ("source",)

SOURCES = ("spots", "visium", "visium_hd", "hest", "xenium", "cosmx", "slide")
_REQUIRED = ("source", "path", "patient", "cohort")
_OF_METADATA = {"hest": ("patient", "cohort")}  # what a source can know by itself
# flags that only some sources know: elsewhere they would do nothing, silently
_FLAGS_OF = {
    "section": ("xenium", "cosmx", "visium", "visium_hd", "slide"), "sections": ("spots", "hest"),
    "min_spot_total": ("spots",), "min_gene_total": ("spots",), "pitch_um": ("spots",), "diameter_um": ("spots",),
    "image": ("xenium", "cosmx", "visium", "visium_hd"), "alignment": ("xenium", "cosmx"),
    "registration": ("xenium", "cosmx"), "symbol_map": ("cosmx",), "square_um": ("visium_hd",),
    "patients_file": ("hest", "slide"), "metadata": ("hest",), "um_per_px": ("cosmx", "slide"),
    "he_um_per_px": ("slide",), "force": ("slide",),
}  # fmt: skip


def flags(parser: argparse.ArgumentParser) -> None:
    config_flags(parser, required=False)
    parser.add_argument("--source", choices=SOURCES, help="in place of --config")
    parser.add_argument("--path", help="folder of the vendor's files; a slide, or a folder of slides")
    parser.add_argument("--out", metavar="PLACE",
                        help="of the corpus: a folder, gs://… or s3://…; one that holds sections takes further ones of "
                             "any source, on its own panel; WORKDIR/corpus by default")  # fmt: skip
    parser.add_argument("--patient",
                        help="whose tissue it is; for spots the letters that the sections' names start with, "
                             "several with commas")  # fmt: skip
    parser.add_argument("--cohort", help="cancer type; for hest the metadata's oncotree_code by default")
    parser.add_argument("--patients-file", type=Path, metavar="FILE.tsv",
                        help="hest: lines of ID, tab, patient, for samples whose patient the metadata do not name; "
                             "slide, in place of --patient and --cohort: columns file, patient, cohort[, "
                             "section]")  # fmt: skip
    parser.add_argument("--panel", type=Path, metavar="FILE.tsv",
                        help="genes of the corpus: column 'symbol', and 'ensembl' where known; by default those of "
                             "the corpus that is there, or of the source")  # fmt: skip
    parser.add_argument("--section", help="name of the one section; by default that of the folder or slide")
    parser.add_argument("--sections", help="spots, hest: read only these, with commas")
    parser.add_argument("--image", type=Path,
                        help="visium, visium_hd: the full-resolution H&E, the reduced one is stored without it; "
                             "xenium, cosmx: an H&E that is not in the folder")  # fmt: skip
    parser.add_argument("--alignment", metavar="CSV",
                        help="3x3 affine from px of --image to morphology px (xenium; or key points) or to global px, "
                             "y up (cosmx)")  # fmt: skip
    parser.add_argument("--registration", choices=("same_section_after", "same_section_before", "adjacent"),
                        help="how the H&E relates to the assay's section; xenium: same_section_after by "
                             "default")  # fmt: skip
    parser.add_argument("--symbol-map", metavar="TSV",
                        help="cosmx: lines of old<TAB>new: what targets are to be called, such as those that a "
                             "spreadsheet turned into dates")  # fmt: skip
    parser.add_argument("--square-um", type=int, help="visium_hd: side of the squares that are read, 2, 8 or 16 (2)")
    parser.add_argument("--metadata", type=Path, metavar="FILE.csv", help="hest: of the release; the folder's only csv")
    parser.add_argument("--um-per-px", type=float,
                        help="cosmx: µm per px of the flat files, where they do not say; slide: of the finest level; "
                             "either is taken in place of what the files say, and a difference is noted")  # fmt: skip
    parser.add_argument("--he-um-per-px", type=float, help="slide: about what the H&E is stored at (0.5)")
    parser.add_argument("--force", action="store_true", default=None,
                        help="slide: take µm per px outside of 0.1 to 1.2")  # fmt: skip
    parser.add_argument("--min-spot-total", type=int, help="spots: fewest counts of a spot (1)")
    parser.add_argument("--pitch-um", type=float, help="spots: distance of neighbouring spots (200)")
    parser.add_argument("--diameter-um", type=float, help="spots: diameter of a spot (100)")
    parser.add_argument("--min-gene-total", type=int, help="spots: fewest counts of a gene (1)")


def run(options: argparse.Namespace) -> int:
    if options.config is not None:
        return _run_config(options)
    _check(options)
    from tario_jax.sources.ingest import account, ingest, panel_to_take
    from tario_jax.sources.onto_panel import onto_panel

    root = new_corpus(options)
    panel = panel_to_take(root, options.panel)
    say(f"ingest: reading {options.path}")
    source = _read(options, panel)
    if panel is not None:
        source = onto_panel(source, panel)
    corpus = ingest(source, root, say)
    text, described = describe_corpus(corpus)
    return finish(options, "\n" + text, account(source, corpus) | described)


def _run_config(options: argparse.Namespace) -> int:
    """The corpus that a config names, into the workdir."""
    given = [flag for flag in (*_REQUIRED, "panel", *_FLAGS_OF) if getattr(options, flag) is not None]
    if given:
        raise InputError(f"--{given[0].replace('_', '-')}: the source is that of --config; leave one of them out")
    source = config_of(options).source
    if source.kind != "spots":
        raise InputError(f"--config={options.config}: its source is {source.kind!r}; expected 'spots'")
    from tario_jax.evaluate.main_job import make_corpus, refuse_other_source

    if options.workdir is not None:
        refuse_other_source(source, options.workdir)
    return finish(options, *describe_corpus(make_corpus(source, new_corpus(options), say)))


def _check(options: argparse.Namespace) -> None:
    known = _OF_METADATA.get(options.source, ())
    if options.source == "slide" and options.patients_file is not None:
        known = ("patient", "cohort")
        given = [flag for flag in (*known, "section") if getattr(options, flag) is not None]
        if given:
            raise InputError(f"--{given[0]}: --patients-file names it for each slide; leave one of them out")
    for flag, sources in _FLAGS_OF.items():
        if options.source is not None and options.source not in sources and getattr(options, flag) is not None:
            raise InputError(f"--{flag.replace('_', '-')}: means nothing to --source={options.source}, only to "
                             f"{' and '.join(sources)}; leave it out")  # fmt: skip
    for flag in _REQUIRED:
        if getattr(options, flag) is None and flag not in known:
            raise InputError(f"ingest: --{flag} is missing; see 'tario ingest --help', or give --config and --workdir")
    if options.patient is not None and options.patients_file is not None:
        raise InputError("--patients-file: --patient names one patient of all samples; leave one of them out")
    given = [value for value in (options.patient, options.cohort) if value is not None]
    if not all(value.strip(",") for value in given):
        raise InputError("--patient and --cohort: one is empty; expected whose tissue it is, and the cancer type")


def _read(options: argparse.Namespace, panel):
    """The source, as `tario_jax.sources.ingested.Ingested`.

    panel: what its genes will be mapped onto, or None; then genes without a count are measured all the same.
    """
    sections = tuple(filter(None, (options.sections or "").split(",")))
    whose = {"patient_id": options.patient, "cohort": options.cohort, "section_id": options.section}
    if options.source == "spots":
        from tario_jax.sources.spots import read_spots

        names = ("pitch_um", "diameter_um", "min_spot_total", "min_gene_total")
        given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
        return read_spots(
            options.path, patients=tuple((letters, options.cohort) for letters in options.patient.split(",")),
            sections=sections, **({} if panel is None else {"min_gene_total": 0}) | given,
        )  # fmt: skip
    if options.source == "visium":
        from tario_jax.sources.visium import read_visium

        return read_visium(options.path, **whose, image=options.image)
    if options.source == "visium_hd":
        from tario_jax.sources.visium_hd import read_visium_hd

        return read_visium_hd(options.path, **whose, image=options.image,
                              square_um=2 if options.square_um is None else options.square_um)  # fmt: skip
    if options.source == "hest":
        from tario_jax.sources.hest import read_hest, read_patients

        patients = options.patient if options.patients_file is None else read_patients(options.patients_file)
        return read_hest(options.path, samples=sections, patients=patients, cohort=options.cohort,
                         metadata=options.metadata)  # fmt: skip
    if options.source == "slide":
        from tario_jax.sources.slide import read_slide

        if panel is None:
            raise InputError("--panel is missing: slides have no genes of their own; give those of the corpus or model "
                             "that they belong to, as a table with the column symbol")  # fmt: skip
        return read_slide(
            options.path, **whose, panel=panel, patients_file=options.patients_file, um_per_px=options.um_per_px,
            force=bool(options.force),
            **({} if options.he_um_per_px is None else {"he_um_per_px": options.he_um_per_px}),
        )  # fmt: skip
    whose |= {"image": options.image, "alignment": options.alignment, "registration": options.registration}
    if options.source == "xenium":
        from tario_jax.sources.xenium import read_xenium

        return read_xenium(options.path, **whose)
    from tario_jax.sources.cosmx import read_cosmx

    return read_cosmx(options.path, **whose, um_per_px=options.um_per_px, symbol_map=options.symbol_map)
