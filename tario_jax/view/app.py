"""The page and what it asks for (FastAPI): everything from this machine, nothing from elsewhere."""

import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from tario_jax.config import InputError
from tario_jax.view.patients import PatientMap
from tario_jax.view.shown import Shown, region_table

PAGE = Path(__file__).with_name("page")
_BINARY = "application/octet-stream"
_KEPT = {"Cache-Control": "private, max-age=3600"}  # of addresses that hold the key of their maps
_NOT_KEPT = {"Cache-Control": "no-store"}  # a page that is started anew may show other patients and slides
_POLICY = "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; base-uri 'none'"


class Region(BaseModel):
    """A polygon in µm of the slide."""

    polygon: list[tuple[float, float]] = Field(min_length=3, max_length=10_000)


def make_app(slides: list[Shown], stack: contextlib.ExitStack, hosts: tuple[str, ...] = (),
             patients: PatientMap | None = None) -> FastAPI:  # fmt: skip
    """stack: closed when the app ends; hosts: by which the page is called, () where it may be by any; patients: whose
    map the page shows too."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with stack:
            yield

    app = FastAPI(title="tario view", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def only_from_here(request: Request, further) -> Response:
        """Another site's page must not read a slide through the browser that shows this one."""
        if hosts and request.url.hostname not in hosts:
            return JSONResponse({"reason": f"this page is {hosts[0]}, not {request.url.hostname}"}, 421)
        response = await further(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.exception_handler(InputError)
    async def refused(request: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"reason": " ".join(str(error).split())}, 422)

    @app.exception_handler(RequestValidationError)
    async def misread(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"reason": f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"}, 422)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"reason": str(error.detail)}, error.status_code)

    @app.exception_handler(OSError)
    async def lost(request: Request, error: OSError) -> JSONResponse:
        return JSONResponse({"reason": f"{error.filename or 'the disk'}: {error.strerror or error}"}, 500)

    def slide(number: int) -> Shown:
        if not 0 <= number < len(slides):
            raise InputError(f"slide {number}: there are {len(slides)}")
        return slides[number]

    @app.get("/", response_class=HTMLResponse)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/api/slides")
    def described() -> list[dict[str, Any]]:
        number = 0 if patients is None else len(patients)
        return [one.described() | {"label": label, "patients": number}
                for one, label in zip(slides, labels(slides), strict=True)]  # fmt: skip

    def all_patients() -> PatientMap:
        if patients is None:
            raise InputError("this page was started without a map of patients: tario view … --patients=NAME.embeddings")
        return patients

    @app.get("/api/patients")
    def of_patients(request: Request) -> Response:
        told = json.dumps(all_patients().described(), separators=(",", ":"))
        return _packed(told.encode(), "application/json", request, _NOT_KEPT)

    @app.get("/api/patients/places")
    def places_of_patients() -> Response:
        return Response(all_patients().places(), media_type=_BINARY, headers=_NOT_KEPT)

    @app.get("/api/slides/{number}/genes")
    def genes(number: int, request: Request) -> Response:
        return _packed(json.dumps(slide(number).genes(), separators=(",", ":")).encode(), "application/json", request)

    @app.get("/api/slides/{number}/places")
    def places(number: int) -> Response:
        return Response(slide(number).places(), media_type=_BINARY, headers=_KEPT)

    @app.get("/api/slides/{number}/values/{array}")
    def values(number: int, array: str, name: Annotated[str, Query(min_length=1)]) -> Response:
        return Response(slide(number).values(array, name), media_type=_BINARY, headers=_KEPT)

    @app.get("/api/slides/{number}/strongest")
    def strongest(number: int) -> Response:
        return Response(slide(number).strongest(), media_type=_BINARY, headers=_KEPT)

    @app.get("/api/slides/{number}/tiles/{level}/{column}/{row}.jpg")
    def tile(number: int, level: int, column: int, row: int) -> Response:
        return Response(slide(number).tile(level, column, row), media_type="image/jpeg", headers=_KEPT)

    @app.post("/api/slides/{number}/region")
    def region(number: int, asked: Region) -> dict[str, Any]:
        found = slide(number).region(np.array(asked.polygon, float))
        return found | {"symbols": list(found["symbols"]),
                        "means": {array: [mean if np.isfinite(mean) else None for mean in mean_G.tolist()]
                                  for array, mean_G in found["means"].items()}}  # fmt: skip

    @app.post("/api/slides/{number}/region.csv")
    def region_csv(number: int, asked: Region) -> Response:
        table = region_table(slide(number).region(np.array(asked.polygon, float)))
        return Response(
            table, media_type="text/csv", headers={"Content-Disposition": "attachment; filename=region.csv"}
        )

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return app


def labels(slides: list[Shown]) -> list[str]:
    """Names of slides that tell them apart: with the folder of their maps where several are of one slide."""
    names = [one.name for one in slides]
    found = [name if names.count(name) == 1 else f"{name} · {one.store.folder.name}"
             for name, one in zip(names, slides, strict=True)]  # fmt: skip
    return [label if found.count(label) == 1 else f"{label} · {number + 1}" for number, label in enumerate(found)]


def _packed(content: bytes, kind: str, request: Request, headers: dict[str, str] = _KEPT) -> Response:
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(content, media_type=kind, headers=headers)
    return Response(gzip.compress(content, 3), media_type=kind, headers=headers | {"Content-Encoding": "gzip"})
