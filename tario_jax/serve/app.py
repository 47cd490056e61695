"""The HTTP interface of a bundle (FastAPI).

Bodies are read by the event loop, piece by piece, under a limit of bytes and of time. Pixels, windows and answers
are made by a few threads beside it, so a large image stops nobody. What a client did wrong is a status of 4xx with a
reason.
"""

import asyncio
import contextlib
import difflib
import hmac
import inspect
import math
from collections.abc import AsyncIterator, Callable
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
from tario_jax.serve.cover import blended, cover_image, squares_of_window, windows_over
from tario_jax.serve.engine import Engine
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
    signature = engine.bundle.signature
    metrics.waiting.set_function(lambda: engine.waiting)
    unpacking, packing = (ThreadPoolExecutor(limits.threads, thread_name_prefix=name) for name in ("unpack", "pack"))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()  # every connection is closed by then
        unpacking.shutdown()
        packing.shutdown()

    about = f"Expected detections of {signature['genes']:,} genes from H&E. {signature['banner']}".strip()
    app = FastAPI(title="tario serve", version=str(signature["format_version"]), lifespan=lifespan, description=about)
    about_model = {_TRAINED_ON: signature["trained_on"], _CHECKPOINT: signature["checkpoint"]}
    if signature["banner"]:
        about_model[_BANNER] = signature["banner"]
    headers = [(name, value.encode("latin-1", "replace")) for name, value in about_model.items()]
    held = Held(limits)
    app.state.headers, app.state.held = headers, held  # the first also of what the server says without the app

    bearer = HTTPBearer(auto_error=False, description="where the server was started with a token")

    async def authorised(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        sent = (given.credentials if given else "").encode("latin-1")
        if token and not hmac.compare_digest(sent, token.encode()):
            raise Refusal(401, "this server asks for a bearer token: 'Authorization: Bearer …'")

    app.add_middleware(Observed, headers=headers, metrics=metrics, held=held, log=log)

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

    secured = {"dependencies": [Depends(authorised)], "tags": ["model"]}
    reasons = {status: {"model": Reason} for status in (401,)}

    @app.get("/v1/signature", responses=reasons, **secured)
    async def of_signature() -> dict[str, Any]:
        """Inputs and outputs of the bundle, what it was trained on, and the jax that it was made with."""
        return signature

    @app.get("/v1/genes", responses=reasons, **secured)
    async def of_genes() -> Genes:
        """The genes that can be asked for, in the order of the model."""
        return Genes(panel_hash=signature["panel_hash"], genes=list(engine.bundle.genes))

    position = {symbol: number for number, symbol in enumerate(engine.bundle.genes)}
    window_um, sides = signature["window"]["side_um"], signature["inputs"][2]
    # so many squares along a window are too many; a part of one may be left
    beyond = math.isqrt(engine.squares[-1]) + 1

    def positions(genes: str | None) -> np.ndarray | None:
        if genes is None:
            return None
        names = list(dict.fromkeys(name.strip() for name in genes.split(",")))
        for name in names:
            if name not in position:
                alike = [symbol for symbol in position if symbol[:1] == name[:1] and abs(len(symbol) - len(name)) < 2]
                near = difflib.get_close_matches(name[:64], alike[:_COMPARED], 1)
                raise Refusal(422, f"gene {name[:64]!r} is not in the panel of {len(position)} genes"
                                   + (f"; did you mean {near[0]}?" if near else ""))  # fmt: skip
        return np.array([position[name] for name in names])

    of_body = {"requestBody": {"required": True, "content": {
        kind: {"schema": {"type": "string", "format": "binary"}} for kind in images.TYPES
    }}}  # fmt: skip
    answers = {200: {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in TYPES.values()},
                     "description": "Expected detections of each gene in each square"}}  # fmt: skip
    answers |= {status: {"model": Reason} for status in (401, 403, 408, 413, 415, 422, 429, 503)}

    @app.post("/v1/predict", responses=answers, openapi_extra=of_body, response_class=Response, **secured)
    async def predict(
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
        if signature["trained_on"] == "virtual" and tissue == "real" and not allow_virtual_model:
            raise Refusal(403, "this model was trained on virtual tissue and knows no biology; send tissue=virtual for "
                               "such images, or start the server with --allow-virtual-model")  # fmt: skip
        low, high = limits.um_per_px
        if not low <= um_per_px <= high:
            raise Refusal(422, f"um_per_px is {um_per_px:g}; expected {low:g} to {high:g}")
        side_um = float(sides["default"]) if bin_um is None else bin_um
        if not (0 < side_um <= sides["largest"] and window_um / side_um + 1e-6 < beyond):
            raise Refusal(422, f"bin_um is {side_um:g}; expected more than {window_um / beyond:g}, at most "
                               f"{sides['largest']:g} (trained: "
                               f"{', '.join(f'{side:g}' for side in sides['trained'])})")  # fmt: skip
        for name in request.query_params:
            if name not in parameters:
                near = difflib.get_close_matches(name[:64], parameters, 1)
                raise Refusal(422, f"{name[:64]}: unknown parameter" + (f"; did you mean {near[0]}?" if near else ""))
        chosen_g = positions(genes)
        kind = request.headers.get("content-type", "")

        def fits(width_px: int, height_px: int) -> None:
            extents = [size * um_per_px for size in (width_px, height_px)]
            needed = windows_over(*extents, side_um, signature["window"], overlap)
            if needed > engine.most_waiting:
                raise Refusal(413, f"the image takes {needed} windows, and at most {engine.most_waiting} are taken at "
                                   "once; send it in parts")  # fmt: skip
            number = len(position) if chosen_g is None else len(chosen_g)
            size = 4 * needed * squares_of_window(window_um, side_um) * number
            if size > limits.answer_bytes:
                raise Refusal(413, f"rates of {number} genes in so many squares are {size / 1e6:.0f} MB; ask for fewer "
                                   "genes, larger squares or less overlap, or send the image in parts")  # fmt: skip

        def unpacked(body: bytes):
            image = images.pixels_of(body, kind, width_px, height_px, most_px=limits.image_px,
                                     longest_px=limits.side_px, check=fits)  # fmt: skip
            return cover_image(image, um_per_px, side_um, signature["window"], overlap)

        async def answered(body: bytes) -> bytes:
            loop = asyncio.get_running_loop()
            windows, placed = await loop.run_in_executor(unpacking, unpacked, body)
            told_of(request).update(windows=len(windows.he_WxYxXx3), squares=len(placed.x_um_S), bytes=len(body))
            held.answer(request, 4 * windows.side_um_WxN.size * len(names))
            rates_WxNxG = await asyncio.wrap_future(engine.submit(windows, chosen_g))

            def packed() -> bytes:
                return encoded(format, placed.x_um_S, placed.y_um_S, blended(placed, rates_WxNxG), names, known)

            return await loop.run_in_executor(packing, packed)

        names = list(engine.bundle.genes) if chosen_g is None else [engine.bundle.genes[g] for g in chosen_g]
        known = {name: signature[name] for name in ("trained_on", "banner", "checkpoint", "panel_hash")}
        known |= {"unit": "expected detections per square", "bin_um": f"{side_um:g}"}
        async with held.body(request) as body:
            answer = asyncio.create_task(answered(body))
            gone = asyncio.create_task(_disconnect(request))
            try:
                async with asyncio.timeout(limits.answer_s):
                    await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
                    if not answer.done():
                        raise ClientDisconnect
                    return Response(await answer, media_type=TYPES[format])
            except TimeoutError:
                raise Refusal(503, f"no answer within {limits.answer_s:g} s", retry_after_s=limits.answer_s) from None
            finally:
                answer.cancel()
                gone.cancel()

    parameters = [name for name in inspect.signature(predict).parameters if name != "request"]
    return app


async def _disconnect(request: Request) -> None:
    """Returns when the client is gone; the body is read by then."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
