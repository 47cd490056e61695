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
    tario ingest --source=slide --path=P7.svs --patient=P7 --cohort=BRCA --panel=panel.tsv --out=corpora/slides
    tario ingest --source=slide --path=slides --patients-file=patients.tsv --panel=panel.tsv --out=corpora/slides
    tario ingest --source=cosmx --path=S1 --image=S1_he.ome.tif --alignment=S1_to_global_px.csv \\
        --registration=adjacent --symbol-map=renamed.tsv --patient=P1 --cohort=LUAD --out=corpora/s1
"""
GROUPS_READ = ("source",)

_REQUIRED = ("source", "path", "patient", "cohort")
# flags that only some sources know: elsewhere they would do nothing, silently
_FLAGS_OF = {
    "section": ("xenium", "cosmx", "slide"), "um_per_px": ("cosmx", "slide"), "sections": ("spots",),
    "min_spot_total": ("spots",), "min_gene_total": ("spots",), "pitch_um": ("spots",), "diameter_um": ("spots",),
    "panel": ("slide",), "patients_file": ("slide",), "he_um_per_px": ("slide",), "force": ("slide",),
    "symbol_map": ("cosmx",), "image": ("xenium", "cosmx"), "alignment": ("xenium", "cosmx"),
    "registration": ("xenium", "cosmx"),
}  # fmt: skip


def flags(parser: argparse.ArgumentParser) -> None:
    config_flags(parser, required=False)
    parser.add_argument("--source", choices=("spots", "xenium", "cosmx", "slide"), help="in place of --config")
    parser.add_argument("--path", help="folder of the vendor's files; a slide, or a folder of slides")
    parser.add_argument(
        "--out", metavar="PLACE", help="of the corpus: a folder, gs://… or s3://…; WORKDIR/corpus by default"
    )
    parser.add_argument("--patient",
                        help="whose tissue it is; for spots the letters that the sections' names start with, "
                             "several with commas")  # fmt: skip
    parser.add_argument("--cohort", help="cancer type")
    parser.add_argument(
        "--section", help="name of the section (xenium, cosmx, slide); by default that of the folder or slide"
    )
    parser.add_argument("--sections", help="spots: read only these, with commas")
    parser.add_argument("--um-per-px", type=float,
                        help="cosmx: µm per px of the flat files, where they do not say; slide: in place of what the "
                             "file says")  # fmt: skip
    parser.add_argument("--he-um-per-px", type=float, help="slide: about what the H&E is stored at (0.5)")
    parser.add_argument("--force", action="store_true", default=None,
                        help="slide: take µm per px outside of 0.1 to 1.2")  # fmt: skip
    parser.add_argument("--panel", metavar="FILE.tsv",
                        help="slide: the corpus's genes, as its panel.tsv; that of --out by default")  # fmt: skip
    parser.add_argument("--patients-file", metavar="FILE.tsv",
                        help="slide, in place of --patient and --cohort: columns file, patient, cohort[, "
                             "section]")  # fmt: skip
    parser.add_argument("--symbol-map", metavar="TSV",
                        help="cosmx: lines of old<TAB>new: what targets are to be called, such as those that a "
                             "spreadsheet turned into dates")  # fmt: skip
    parser.add_argument("--image", help="xenium, cosmx: an H&E that is not in the folder")
    parser.add_argument("--alignment", metavar="CSV",
                        help="3x3 affine from px of --image to morphology px (xenium; or key points) or to global px, "
                             "y up (cosmx)")  # fmt: skip
    parser.add_argument("--registration", choices=("same_section_after", "same_section_before", "adjacent"),
                        help="how the H&E relates to the assay's section; xenium: same_section_after by default")  # fmt: skip
    parser.add_argument("--min-spot-total", type=int, help="spots: fewest counts of a spot (1)")
    parser.add_argument("--pitch-um", type=float, help="spots: distance of neighbouring spots (200)")
    parser.add_argument("--diameter-um", type=float, help="spots: diameter of a spot (100)")
    parser.add_argument("--min-gene-total", type=int, help="spots: fewest counts of a gene (1)")


def run(options: argparse.Namespace) -> int:
    if options.config is not None:
        return _run_config(options)
    _check(options)
    from tario_jax.sources.ingest import account, ingest

    root = new_corpus(options)
    say(f"ingest: reading {options.path}")
    source = _read(options, root)
    corpus = ingest(source, root, say)
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
    required = _REQUIRED
    if options.patients_file is not None:
        required = ("source", "path")
        given = [flag for flag in ("patient", "cohort", "section") if getattr(options, flag) is not None]
        if given:
            raise InputError(f"--{given[0]}: --patients-file names it for each slide; leave one of them out")
    for flag in required:
        if getattr(options, flag) is None:
            raise InputError(f"ingest: --{flag} is missing; see 'tario ingest --help', or give --config and --workdir")
    for flag, sources in _FLAGS_OF.items():
        if options.source not in sources and getattr(options, flag) is not None:
            raise InputError(f"--{flag.replace('_', '-')}: means nothing to --source={options.source}, only to "
                             f"{' and '.join(sources)}; leave it out")  # fmt: skip
    if "patient" in required and (not options.patient.strip(",") or not options.cohort):
        raise InputError("--patient and --cohort: one is empty; expected whose tissue it is, and the cancer type")


def _read(options: argparse.Namespace, root: str | Path):
    """The source of the corpus at `root`, as `tario_jax.sources.ingested.Ingested`."""
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
    if options.source == "slide":
        from tario_jax.sources.slide import read_slide

        return read_slide(
            options.path, panel=_panel(options, root), patient_id=options.patient, cohort=options.cohort,
            section_id=options.section, patients_file=options.patients_file, um_per_px=options.um_per_px,
            force=bool(options.force),
            **({} if options.he_um_per_px is None else {"he_um_per_px": options.he_um_per_px}),
        )  # fmt: skip
    from tario_jax.sources.cosmx import read_cosmx

    return read_cosmx(options.path, **_slide(options), um_per_px=options.um_per_px, symbol_map=options.symbol_map)


def _panel(options: argparse.Namespace, root: str | Path):
    """The genes of --panel, else those of the corpus that is there: slides have none of their own."""
    from tario_jax.corpus.place import Place
    from tario_jax.panel import Panel

    place = Place(root) / "panel.tsv" if options.panel is None else Place(options.panel)
    try:
        return Panel.from_text(place.read().decode(), str(place))
    except FileNotFoundError:
        if options.panel is not None:
            raise InputError(
                f"--panel={options.panel}: no such file; expected a table with the column symbol"
            ) from None
        raise InputError("--panel is missing: slides have no genes of their own; give those of the corpus or model "
                         "that they belong to, as a table with the column symbol") from None  # fmt: skip
    except (OSError, UnicodeDecodeError):
        raise InputError(f"--panel={place}: is no table of text; expected the column symbol") from None


def _slide(options: argparse.Namespace) -> dict[str, str | None]:
    """What xenium and cosmx both take."""
    given = {name: getattr(options, name) for name in ("image", "alignment", "registration")}
    return {"patient_id": options.patient, "cohort": options.cohort, "section_id": options.section} | given
