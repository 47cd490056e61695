"""The HTTP interface of a bundle (FastAPI).

Bodies are read by the event loop, piece by piece, under a limit of bytes and of time. Pixels, windows and answers
are made by a few threads beside it, so a large image stops nobody. What a client did wrong is a status of 4xx with a
reason.
"""

import asyncio
import contextlib
import difflib
import functools
import hmac
import inspect
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tario_jax.serve import images
from tario_jax.serve.answers import TYPES, encoded
from tario_jax.serve.cover import Squares, blended, cover_image, squares_of_window, windows_over
from tario_jax.serve.engine import Engine, Windows
from tario_jax.serve.limits import USUAL, Held, Limits
from tario_jax.serve.observed import Metrics, Observed, told_of
from tario_jax.serve.refusal import Refusal

_BANNER, _TRAINED_ON, _CHECKPOINT = b"x-tario-banner", b"x-tario-trained-on", b"x-tario-checkpoint"
_COMPARED = 500  # symbols, with one that is unknown


class Reason(BaseModel):
    """Why a request was refused."""

    reason: str


class Genes(BaseModel):
    panel_hash: str
    genes: list[str]


def make_app(engine: Engine, metrics: Metrics, limits: Limits = USUAL, *, allow_virtual_model: bool = False,
             token: str = "", log: Callable[[dict[str, Any]], None] = lambda entry: None) -> FastAPI:  # fmt: skip
    """token: that requests to /v1 must bear; empty: none."""
    signature, held = engine.bundle.signature, Held(limits)
    metrics.waiting.set_function(lambda: engine.waiting)
    predictions = _Predictions(engine, limits, held, allow_virtual_model)
    about = f"Expected detections of {signature['genes']:,} genes from H&E. {signature['banner']}".strip()
    app = FastAPI(title="tario serve", version=str(signature["format_version"]), lifespan=predictions.lifespan,
                  description=about)  # fmt: skip
    about_model = {_TRAINED_ON: signature["trained_on"], _CHECKPOINT: signature["checkpoint"]}
    if signature["banner"]:
        about_model[_BANNER] = signature["banner"]
    headers = [(name, value.encode("latin-1", "replace")) for name, value in about_model.items()]
    app.state.headers, app.state.held = headers, held  # the first also of what the server says without the app
    app.add_middleware(Observed, headers=headers, metrics=metrics, held=held, log=log)
    _tell_refusals(app)
    _tell_of_server(app, engine, metrics)
    _tell_of_model(app, engine, predictions, token)
    return app


def _tell_refusals(app: FastAPI) -> None:
    def refused(status: int, reason: str, request: Request, further: dict[str, str] | None = None) -> JSONResponse:
        told_of(request)["reason"] = reason
        return JSONResponse({"reason": reason}, status, headers=further)

    @app.exception_handler(Refusal)
    async def of_refusal(request: Request, refusal: Refusal) -> JSONResponse:
        further = {} if refusal.retry_after_s is None else {"Retry-After": str(int(np.ceil(refusal.retry_after_s)))}
        if refusal.status == 401:
            further["WWW-Authenticate"] = "Bearer"
        if refusal.status in (408, 413):  # what is left of the body is not read
            further["Connection"] = "close"
        return refused(refusal.status, refusal.reason, request, further)

    @app.exception_handler(RequestValidationError)
    async def of_parameters(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return refused(422, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}", request)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        return refused(error.status_code, str(error.detail), request, dict(error.headers or {}))


def _tell_of_server(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    @app.get("/healthz", response_class=PlainTextResponse, tags=["server"], responses={503: {"model": Reason}})
    async def healthz() -> str:
        """The process lives, and so does what works for it."""
        if not engine.alive:
            raise Refusal(503, "a device has stopped working; start the server again")
        return "ok\n"

    @app.get("/readyz", response_class=PlainTextResponse, tags=["server"], responses={503: {"model": Reason}})
    async def readyz() -> str:
        """Everything is compiled, and requests are accepted."""
        if not engine.ready or metrics.ending:
            raise Refusal(503, "not ready")
        return "ready\n"

    @app.get("/metrics", response_class=PlainTextResponse, tags=["server"])
    async def of_metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _tell_of_model(app: FastAPI, engine: Engine, predictions: "_Predictions", token: str) -> None:
    signature = engine.bundle.signature
    bearer = HTTPBearer(auto_error=False, description="where the server was started with a token")

    async def authorised(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        sent = (given.credentials if given else "").encode("latin-1")
        if token and not hmac.compare_digest(sent, token.encode()):
            raise Refusal(401, "this server asks for a bearer token: 'Authorization: Bearer …'")

    secured = {"dependencies": [Depends(authorised)], "tags": ["model"]}

    @app.get("/v1/signature", responses={401: {"model": Reason}}, **secured)
    async def of_signature() -> dict[str, Any]:
        """Inputs and outputs of the bundle, what it was trained on, and the jax that it was made with."""
        return signature

    @app.get("/v1/genes", responses={401: {"model": Reason}}, **secured)
    async def of_genes() -> Genes:
        """The genes that can be asked for, in the order of the model."""
        return Genes(panel_hash=signature["panel_hash"], genes=list(engine.bundle.genes))

    binary = {"schema": {"type": "string", "format": "binary"}}
    answers = {200: {"content": dict.fromkeys(TYPES.values(), binary),
                     "description": "Expected detections of each gene in each square"}}  # fmt: skip
    answers |= dict.fromkeys((401, 403, 408, 413, 415, 422, 429, 503), {"model": Reason})
    of_body = {"requestBody": {"required": True, "content": dict.fromkeys(images.TYPES, binary)}}
    app.add_api_route("/v1/predict", predictions.predict, methods=["POST"], responses=answers, openapi_extra=of_body,
                      response_class=Response, **secured)  # fmt: skip


class _Predictions:
    """Answers requests to predict."""

    def __init__(self, engine: Engine, limits: Limits, held: Held, allow_virtual_model: bool):
        self._engine, self._limits, self._held = engine, limits, held
        self._signature, self._allow_virtual_model = engine.bundle.signature, allow_virtual_model
        self._position = {symbol: number for number, symbol in enumerate(engine.bundle.genes)}
        self._parameters = [name for name in inspect.signature(self.predict).parameters if name != "request"]
        self._unpacking = ThreadPoolExecutor(limits.threads, "unpack")
        self._packing = ThreadPoolExecutor(limits.threads, "pack")

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        yield
        self._engine.close()  # every connection is closed by then
        self._unpacking.shutdown()
        self._packing.shutdown()

    async def predict(
        self,
        request: Request,
        um_per_px: Annotated[float, Query(description="of the image")],
        bin_um: Annotated[float | None, Query(description="side of the squares; that of training by default")] = None,
        genes: Annotated[str | None, Query(description="symbols with commas between them; all by default",
                                           max_length=1 << 18)] = None,
        format: Annotated[Literal["arrow", "npz"], Query(description="of the answer")] = "arrow",
        overlap: Annotated[float, Query(ge=0, le=0.75, description="of neighbouring windows")] = 0.5,
        width_px: Annotated[int | None, Query(ge=1, description="of raw pixels")] = None,
        height_px: Annotated[int | None, Query(ge=1, description="of raw pixels")] = None,
        tissue: Annotated[Literal["real", "virtual"], Query(description="what the image shows")] = "real",
    ) -> Response:  # fmt: skip
        """Expected detections of genes in squares of an image: PNG, JPEG, or raw RGB bytes with width_px and height_px.

        Squares lie row by row from the upper left corner; those of which less than nine tenths lie on the image are
        left out. x_um and y_um are their centres.
        """
        signature, limits = self._signature, self._limits
        if signature["trained_on"] == "virtual" and tissue == "real" and not self._allow_virtual_model:
            raise Refusal(403, "this model was trained on virtual tissue and knows no biology; send tissue=virtual for "
                               "such images, or start the server with --allow-virtual-model")  # fmt: skip
        side_um = float(signature["inputs"][2]["default"]) if bin_um is None else bin_um
        self._check_sides(um_per_px, side_um)
        given = [name for name, _ in request.query_params.multi_items()]
        for name in given:
            if name not in self._parameters:
                raise Refusal(422, f"{name[:64]}: unknown parameter{_meant(name, self._parameters)}")
            if given.count(name) > 1:
                raise Refusal(422, f"{name}: is given {given.count(name)} times; expected once (genes with commas "
                                   "between them)")  # fmt: skip
        names = self._names(genes)
        chosen_g = None if genes is None else np.array([self._position[name] for name in names])
        kind = request.headers.get("content-type", "")

        def unpacked(body: bytes) -> tuple[Windows, Squares]:
            image = images.pixels_of(
                body, kind, width_px, height_px, most_px=limits.image_px, longest_px=limits.side_px,
                check=lambda *size: self._check_size(*size, um_per_px, side_um, overlap, len(names)),
            )  # fmt: skip
            return cover_image(image, um_per_px, side_um, signature["window"], overlap)

        def packed(squares: Squares, rates_WxNxG: np.ndarray) -> bytes:
            known = {name: signature[name] for name in ("trained_on", "banner", "checkpoint", "panel_hash")}
            known |= {"unit": "expected detections per square", "bin_um": f"{side_um:g}"}
            return encoded(format, squares.x_um_S, squares.y_um_S, blended(squares, rates_WxNxG), names, known)

        async def answered(body: bytes) -> bytes:
            windows, squares = await _in_thread(self._unpacking, unpacked, body)
            told_of(request).update(windows=len(windows.he_WxYxXx3), squares=len(squares.x_um_S), bytes=len(body))
            self._held.answer(request, 4 * windows.side_um_WxN.size * len(names))
            rates_WxNxG = await asyncio.wrap_future(self._engine.submit(windows, chosen_g))
            return await _in_thread(self._packing, functools.partial(packed, squares), rates_WxNxG)

        async with self._held.body(request) as body:
            answer = await _unless_gone(request, answered(body), limits.answer_s)
            return Response(answer, media_type=TYPES[format])

    def _check_sides(self, um_per_px: float, side_um: float) -> None:
        low, high = self._limits.um_per_px
        if not low <= um_per_px <= high:
            raise Refusal(422, f"um_per_px is {um_per_px:g}; expected {low:g} to {high:g}")
        window_um, sides = self._signature["window"]["side_um"], self._signature["inputs"][2]
        # so many squares along a window are too many; a part of one may be left
        beyond = math.isqrt(self._engine.squares[-1]) + 1
        if not (0 < side_um <= sides["largest"] and window_um / side_um + 1e-6 < beyond):
            raise Refusal(422, f"bin_um is {side_um:g}; expected more than {window_um / beyond:g}, at most "
                               f"{sides['largest']:g} (trained: "
                               f"{', '.join(f'{side:g}' for side in sides['trained'])})")  # fmt: skip

    def _names(self, genes: str | None) -> list[str]:
        names = list(self._position) if genes is None else list(dict.fromkeys(map(str.strip, genes.split(","))))
        for name in names:
            if name not in self._position:
                alike = [symbol for symbol in self._position
                         if symbol[:1] == name[:1] and abs(len(symbol) - len(name)) < 2]  # fmt: skip
                raise Refusal(422, f"gene {name[:64]!r} is not in the panel of {len(self._position)} genes"
                                   f"{_meant(name, alike[:_COMPARED])}")  # fmt: skip
        return names

    def _check_size(self, width_px: int, height_px: int, um_per_px: float, side_um: float, overlap: float,
                    genes: int) -> None:  # fmt: skip
        window, most = self._signature["window"], self._engine.most_waiting
        needed = windows_over(width_px * um_per_px, height_px * um_per_px, side_um, window, overlap)
        if needed > most:
            raise Refusal(413, f"the image takes {needed} windows, and at most {most} are taken at once; send it in "
                               "parts")  # fmt: skip
        size = 4 * needed * squares_of_window(window["side_um"], side_um) * genes
        if size > self._limits.answer_bytes:
            raise Refusal(413, f"rates of {genes} genes in so many squares are {size / 1e6:.0f} MB; ask for fewer "
                               "genes, larger squares or less overlap, or send the image in parts")  # fmt: skip


def _meant(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name[:64], known, 1)
    return f"; did you mean {near[0]}?" if near else ""


async def _in_thread(pool: ThreadPoolExecutor, work: Callable[[Any], Any], given: Any) -> Any:
    """work(given). Where the request ends before a thread is free, `given` is let go: the pool itself would keep it."""
    kept = [given]
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, lambda: work(kept.pop()))
    finally:
        kept.clear()


async def _unless_gone(request: Request, working: Coroutine[Any, Any, bytes], answer_s: float) -> bytes:
    """What it comes to; given up where the client goes away, or it takes too long."""
    answer, gone = asyncio.create_task(working), asyncio.create_task(_disconnect(request))
    try:
        async with asyncio.timeout(answer_s):
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            return await answer
    except TimeoutError:
        raise Refusal(503, f"no answer within {answer_s:g} s", retry_after_s=answer_s) from None
    finally:
        answer.cancel()
        gone.cancel()


async def _disconnect(request: Request) -> None:
    """Returns when the client is gone; the body is read by then."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
