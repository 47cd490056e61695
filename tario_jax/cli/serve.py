"""tario serve: a bundle behind HTTP."""

import argparse
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from tario_jax.cli.options import above_0, at_least_one, finish, say
from tario_jax.config import InputError

SUMMARY = "a bundle behind HTTP: images in, rates of genes out"
EXAMPLES = """
    tario serve bundle
    tario serve bundle --host=0.0.0.0 --port=8080 --bin-um=36,18 --most-waiting=256
    tario serve bundle --batch=32 --answer-s=20 --drain-s=30
"""
GROUPS_READ = ()


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path,
                        help="folder that 'tario export' wrote; a TARIO_TOKEN of the environment is asked of "
                        "requests")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="127.0.0.1: this machine alone")
    parser.add_argument("--port", type=port, default=8000, help="8000; 0: one that is free")
    parser.add_argument("--bin-um", type=sides, metavar="UM,…", default=(),
                        help="sides of squares that are got ready for; others are taken where no more of them fit a "
                        "window; by default those of training")  # fmt: skip
    parser.add_argument("--batch", type=at_least_one, default=8, metavar="N", help="most windows of a batch (8)")
    parser.add_argument("--most-waiting", type=at_least_one, default=64, metavar="N",
                        help="windows in the queue; more are answered 429 (64)")  # fmt: skip
    parser.add_argument("--most-megapixels", type=above_0, default=64.0, metavar="MP", help="of an image (64)")
    parser.add_argument("--most-megabytes", type=above_0, default=64.0, metavar="MB", help="of a body (64)")
    parser.add_argument("--body-s", type=above_0, default=30.0, metavar="S", help="to send a body (30)")
    parser.add_argument("--answer-s", type=above_0, default=60.0, metavar="S", help="to work an answer out (60)")
    parser.add_argument("--drain-s", type=above_0, default=60.0, metavar="S",
                        help="from SIGTERM to the end, in which accepted requests are answered (60)")  # fmt: skip
    parser.add_argument("--allow-virtual-model", action="store_true",
                        help="let a model of virtual tissue, which knows no biology, see real tissue")  # fmt: skip


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of 0 to 65535")
    return int(text)


def token_of(variables: Mapping[str, str]) -> str:
    """What requests must bear; empty: nothing. Raises `InputError` for a token that is there and empty."""
    token = variables.get("TARIO_TOKEN")
    if token is not None and not token.strip():  # as a secret that was not found leaves it
        raise InputError("TARIO_TOKEN: is empty; expected a token, or no such variable where none is to be asked")
    return (token or "").strip()


def sides(text: str) -> tuple[float, ...]:
    return tuple(above_0(part) for part in text.split(","))


def run(options: argparse.Namespace) -> int:
    try:
        import flatbuffers  # noqa: F401, what jax reads an exported function with
        import uvicorn  # noqa: F401

        from tario_jax.export.loader import Bundle, BundleError
        from tario_jax.serve.app import make_app
        from tario_jax.serve.limits import USUAL, Limits
        from tario_jax.serve.observed import Metrics, log_line
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; pip install 'tario-jax[serve]'") from None
    from tario_jax.serve.cover import squares_of_window
    from tario_jax.serve.engine import Engine, batch_sizes
    from tario_jax.serve.server import bind, serve, url_of

    token = token_of(os.environ)
    try:
        bound = bind(options.host, options.port)
    except OSError as error:
        raise InputError(f"--host={options.host} --port={options.port}: {error.strerror or error}; give another "
                         "one") from None  # fmt: skip
    try:
        bundle = Bundle(options.bundle)
    except BundleError as error:
        raise InputError(str(error)) from None
    window_um, side = bundle.signature["window"]["side_um"], bundle.signature["inputs"][2]
    asked = options.bin_um or (side["default"], *side["trained"])
    for side_um in asked:
        if not squares_of_window(window_um, side_um) or side_um > side["largest"]:
            raise InputError(f"--bin-um={side_um:g}: expected at most {side['largest']:g} µm")
    metrics = Metrics()
    squares = {squares_of_window(window_um, side_um) for side_um in asked}
    engine = Engine(bundle, squares=squares, rows=batch_sizes(options.batch), most_waiting=options.most_waiting,
                    on_batch=metrics.count)  # fmt: skip
    engine.warm_up(say)
    body_bytes = round(options.most_megabytes * 1e6)
    limits = Limits(body_bytes=body_bytes, held_bytes=max(USUAL.held_bytes, 2 * body_bytes), body_s=options.body_s,
                    answer_s=options.answer_s, image_px=round(options.most_megapixels * 1e6))  # fmt: skip
    app = make_app(engine, metrics, limits, allow_virtual_model=options.allow_virtual_model,
                   token=token, log=log_line)  # fmt: skip
    say(f"serve: {url_of(options.host, bound)} ({bundle.signature['genes']:,} genes"
        + (f"; {bundle.banner}" if bundle.banner else "") + ")")  # fmt: skip
    # uvicorn ends what it accepted, and then hands the signal on: to this, so that the end is no failure
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: None)
    serve(app, bound, at_signal=metrics.end, drain_s=options.drain_s)
    said = (f"{metrics.cut} requests were cut off after {options.drain_s:g} s (--drain-s)" if metrics.cut
            else "every accepted request was answered")  # fmt: skip
    finish(options, f"serve: ended; {said}", {"cut_off": metrics.cut, "checkpoint": bundle.signature["checkpoint"]})
    return 1 if metrics.cut else 0
