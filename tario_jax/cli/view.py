"""tario view: a local page to look at slides and their gene maps."""

import argparse
import contextlib
import webbrowser
from pathlib import Path

from tario_jax.cli.atlas import names, table_flag
from tario_jax.cli.options import finish, need_eval, say
from tario_jax.cli.serve import port
from tario_jax.config import InputError

SUMMARY = "a local page: deep zoom of slides, their gene maps, regions, gene sets; nothing leaves this machine"
EXAMPLES = """
    tario view slide.maps
    tario view maps/*.maps --signatures=hallmarks.gmt --port=8010
    tario view maps/*.maps --patients=lung.embeddings --corpus=corpora/lung --columns=diagnosis,EGFR
    tario view slide.maps --slide=/elsewhere/slide.svs --no-browser
"""
GROUPS_READ = ()


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("maps", type=Path, nargs="+", metavar="NAME.maps",
                        help="folders that 'tario predict' wrote")  # fmt: skip
    parser.add_argument("--slide", type=Path, action="append", default=[], metavar="FILE",
                        help="where a slide lies now; told by its name, may be given several times")  # fmt: skip
    parser.add_argument("--signatures", type=Path, metavar="FILE.gmt", help="gene sets, beside the genes")
    parser.add_argument("--patients", type=Path, metavar="NAME.embeddings",
                        help="all of them on a map beside the slides, whose slide a click opens")  # fmt: skip
    parser.add_argument("--corpus", action="append", default=[], metavar="PLACE",
                        help="with --patients: whose table has the columns; may be given several times")  # fmt: skip
    table_flag(parser)
    parser.add_argument("--columns", type=names, default=(), metavar="NAME,…", help="of it; the usual ones by default")
    parser.add_argument("--host", default="127.0.0.1", help="127.0.0.1: this machine alone")
    parser.add_argument("--port", type=port, default=8010, help="8010; 0: one that is free")
    parser.add_argument("--no-browser", action="store_true", help="opens none")


def run(options: argparse.Namespace) -> int:
    try:
        import uvicorn

        from tario_jax.view.app import make_app
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; pip install 'tario-jax[view]'") from None
    from tario_jax.predict.map_store import MapStore
    from tario_jax.predict.signatures import read_gmt
    from tario_jax.serve.server import bind, url_of
    from tario_jax.view.shown import Shown

    def sets(store):
        return [] if options.signatures is None else read_gmt(options.signatures, store.panel)

    if options.patients is None and (options.corpus or options.table or options.columns):
        raise InputError("--corpus, --table and --columns: go with --patients, the embeddings of those in the table")
    if options.columns and not (options.corpus or options.table):
        raise InputError("--columns: goes with --corpus or --table, which has them")
    at = {path.name: path for path in options.slide}
    if len(options.maps) == len(options.slide) == 1:  # whatever it is called now: its px are checked
        at = {MapStore(options.maps[0]).about["section"]: options.slide[0]}
    with contextlib.ExitStack() as stack:
        slides = []
        for folder in options.maps:
            shown = Shown(folder, at, sets, stack, say)
            slides.append(shown)
        unused = set(at) - {one.name for one in slides}
        if unused:
            raise InputError(f"--slide={at[min(unused)]}: no maps are of a slide called so; expected one of "
                             f"{', '.join(one.name for one in slides)}, or maps of one slide alone")  # fmt: skip
        patients = None
        if options.patients is not None:
            need_eval()
            from tario_jax.corpus.read import Corpus
            from tario_jax.evaluate.patients.store import EmbeddingStore
            from tario_jax.evaluate.patients.tables import table_of_file
            from tario_jax.view.patients import PatientMap

            store = EmbeddingStore(options.patients)
            tables = [*(Corpus.open(place) for place in options.corpus), *table_of_file(options.table, store, say)]
            patients = PatientMap(store, tables, options.columns, slides, say)
        try:
            bound = bind(options.host, options.port)
        except OSError as error:
            raise InputError(f"--host={options.host} --port={options.port}: {error.strerror or error}; give another "
                             "one") from None  # fmt: skip
        address = url_of(options.host, bound)
        local = ("127.0.0.1", "localhost", "::1") if options.host in ("127.0.0.1", "localhost", "::1") else ()
        app = make_app(slides, stack.pop_all(), local, patients)
    say(f"view: {address} (Ctrl-C ends it)")
    if not options.no_browser:
        webbrowser.open(address)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    server.run(sockets=[bound])
    return finish(options, "view: ended", {"slides": [one.name for one in slides]})
