"""tario gallery: maps of genes side by side."""

import argparse
from pathlib import Path

from tario_jax.cli.options import above_0, corpus_of, evaluation_of, finish, model_flags, say
from tario_jax.config import InputError

SUMMARY = "pictures: detections, truth and prediction of genes; two runs, or several sides of bins, side by side"
EXAMPLES = """
    tario gallery --workdir=runs/quickstart --out=gallery
    tario gallery --workdir=runs/p2545 --corpus=corpora/whole --beside=runs/p93 --out=gallery
    tario gallery --workdir=runs/p2545 --corpus=corpora/other --scores=reports/other --out=gallery
    tario gallery --workdir=runs/quickstart --genes=EPCAM,CD3E --sides-um=36,18,9 --out=gallery
"""
GROUPS_READ = ("source", "evaluate.overlap")


def flags(parser: argparse.ArgumentParser) -> None:
    model_flags(parser)
    parser.add_argument("--corpus", metavar="PLACE", help="by default that of the run")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--scores", type=Path, metavar="FOLDER",
                        help="of 'tario evaluate --out': its scores choose the genes; by default WORKDIR")  # fmt: skip
    parser.add_argument("--genes", type=_names, default=(), metavar="A,B", help="these genes too")
    parser.add_argument("--section", help="show --genes in this section, which may hold an H&E alone")
    parser.add_argument("--at-r", type=_correlations, metavar="R,R",
                        help="triptychs of genes whose r is nearest to these (0.5,0.3,0.17)")  # fmt: skip
    parser.add_argument("--beside", type=Path, metavar="WORKDIR", help="another run, whose maps stand first")
    parser.add_argument("--sides-um", type=_sides, default=(), metavar="UM,UM",
                        help="sides of bins to stand beside each other")  # fmt: skip


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _sides(text: str) -> tuple[float, ...]:
    return tuple(above_0(part) for part in text.split(","))


def _correlations(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(-1 <= r <= 1 for r in found):
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers from -1 to 1, as in 0.5,0.3")
    return found


def run(options: argparse.Namespace) -> int:
    if options.section is not None and not options.genes:
        raise InputError(f"--section={options.section}: shows --genes there; name some, or leave it out")
    for name, given in (("scores", options.scores), ("at-r", options.at_r)):
        if options.section is not None and given is not None:
            raise InputError(f"--section and --{name}: genes in a section that is named are not chosen; leave one out")
    from tario_jax.corpus.read import Corpus
    from tario_jax.evaluate.gallery import Example, Gallery, R, at_r, best_median_worst, of_genes
    from tario_jax.evaluate.job import refuse_side_of_spots
    from tario_jax.evaluate.run_comparison import unique_names
    from tario_jax.evaluate.score_file import FILE, read_scores
    from tario_jax.predict.predictor import load
    from tario_jax.train.compiled import compiled_kept

    predictor = load(options.workdir, allow_virtual_model=options.allow_virtual_model)
    corpus, provenance = Corpus.open(corpus_of(options)), predictor.provenance
    for side_um in (options.bin_um, *options.sides_um):
        refuse_side_of_spots(corpus, corpus.sections, side_um)
    bin_um = provenance.bin_um if options.bin_um is None else options.bin_um
    overlap, min_measured = evaluation_of(options, provenance).overlap, provenance.config.data.min_measured
    gallery = Gallery(corpus, bin_um, overlap, min_measured, say)
    options.out.mkdir(parents=True, exist_ok=True)
    drawn = []
    with compiled_kept(options.workdir):
        if options.section is not None:
            chosen = [Example(options.section, symbol, "by its name") for symbol in options.genes]
        else:
            path = (options.scores or options.workdir) / FILE
            scores = read_scores(path)
            for what, found, wanted in (("checkpoint", scores.checkpoint, predictor.checkpoint),
                                        ("corpus", scores.corpus_seal, corpus.seal)):  # fmt: skip
                if found != wanted:
                    raise InputError(f"{path}: is of {what} {found}, and this is {wanted}; run 'tario evaluate "
                                     f"--workdir={options.workdir} --corpus={corpus.root} --out=FOLDER' first, and "
                                     "say --scores=FOLDER")  # fmt: skip
            if scores.bin_um not in (0, bin_um):
                raise InputError(f"{path}: is of bins of {scores.bin_um:g} µm, and maps would be of {bin_um:g} µm; "
                                 f"say --bin-um={scores.bin_um:g}, or evaluate those first")  # fmt: skip
            if scores.bin_um:  # maps as those whose r chose them
                gallery = Gallery(corpus, bin_um, overlap, min_measured, say, read_um=scores.read_um)
            chosen = of_genes(scores, options.genes) if options.genes else best_median_worst(scores)
            named = {"at_r": (at_r(scores, options.at_r or R), "Genes at chosen r"),
                     "best_median_worst": (best_median_worst(scores), "The best, the median, the worst")}  # fmt: skip
            for examples in (chosen, *(examples for examples, _ in named.values())):
                gallery.will_draw(examples)
            for name, (examples, title) in named.items():
                drawn.append(gallery.triptychs(options.out / f"{name}.png", predictor, examples, title))
        if options.genes:
            drawn.append(gallery.triptychs(options.out / "genes.png", predictor, chosen, "Genes by name"))
        if options.beside is not None:
            other = load(options.beside, allow_virtual_model=options.allow_virtual_model)
            pair = dict(zip(unique_names([options.beside, options.workdir]), (other, predictor), strict=True))
            title = " beside ".join(pair)
            drawn.append(gallery.runs(options.out / "runs.png", pair, chosen, title))
        if options.sides_um:
            drawn.append(gallery.resolutions(options.out / "resolutions.png", predictor, chosen, options.sides_um,
                                             "Sides of bins"))  # fmt: skip
    result = [{"figure": str(one.path), "caption": one.caption} for one in drawn]
    return finish(options, "\n".join(f"{one['figure']}: {one['caption']}" for one in result), result)
