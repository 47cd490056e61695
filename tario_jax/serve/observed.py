"""What is told of requests: counts for Prometheus, headers of every answer, a line of the log for each."""

import asyncio
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect

from tario_jax.serve.engine import BatchRun
from tario_jax.serve.limits import Held

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_REQUEST = b"x-request-id"
_REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_TOLD = "tario.told"  # in a request's scope
_PIECE_BYTES = 1 << 20  # of an answer, that is handed over at once
_GONE = 499  # of a client that did not wait, as nginx has it


class Metrics:
    """What /metrics tells."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tario_requests", "Requests, by path and status", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram("tario_request_seconds", "From a request's first byte to its answer's last", ("path",),
                                 buckets=_SECONDS, registry=self.registry)  # fmt: skip
        self.windows = Counter("tario_windows", "Windows of H&E that were predicted", registry=self.registry)
        self.batch_seconds = Histogram("tario_batch_seconds", "Of a batch on its device", buckets=_SECONDS,
                                       registry=self.registry)  # fmt: skip
        self.batch_rows = Histogram("tario_batch_windows", "Windows of a batch", buckets=(1, 2, 4, 8, 16, 32),
                                    registry=self.registry)  # fmt: skip
        self.waiting = Gauge("tario_waiting_windows", "Windows in the queue", registry=self.registry)
        self.ending = False
        self.cut = 0  # requests that the end of the server cut off

    def end(self) -> None:
        """The server was told to end."""
        self.ending = True

    def count(self, run: BatchRun) -> None:
        self.windows.inc(run.rows)
        self.batch_rows.observe(run.rows)
        self.batch_seconds.observe(run.seconds)


def told_of(request: Request) -> dict[str, Any]:
    """What the log shall say of a request beside what it says of each."""
    return request.scope.setdefault(_TOLD, {})


class Observed:
    """Around everything: headers, counts and a line of the log for each request, whatever becomes of it."""

    def __init__(self, app, headers: list[tuple[bytes, bytes]], metrics: Metrics, held: Held,
                 log: Callable[[dict[str, Any]], None]):  # fmt: skip
        self._app, self._headers, self._metrics, self._held, self._log = app, headers, metrics, held, log

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        given = dict(scope["headers"]).get(_REQUEST, b"").decode("latin-1")
        name = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex

        async def sending(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [*self._headers, (_REQUEST, name.encode())]
                if self._metrics.ending:  # else a next request may be on its way when the connection is closed
                    own.append((b"connection", b"close"))
                message = message | {"headers": [*message.get("headers", ()), *own]}
            for piece in _pieces(message):
                await send(piece)  # waits until the client has taken most of what was sent

        told = scope.setdefault(_TOLD, {})
        try:
            await self._app(scope, receive, sending)
        except ClientDisconnect:
            status, told["reason"] = _GONE, "the client went away"
        except asyncio.CancelledError:
            self._metrics.cut += 1
            if not status:
                await JSONResponse({"reason": "the server ended before the answer"}, 503)(scope, receive, sending)
            status, told["reason"] = _GONE, "cut off by the end of the server"
            raise
        except Exception as error:
            told["reason"], told["error"] = "internal error", f"{type(error).__name__}: {error}"[:500]
            if not status:
                await JSONResponse({"reason": "internal error; the log says more"}, 500)(scope, receive, sending)
        finally:
            self._held.sent(scope)
            path = getattr(scope.get("route"), "path", "other")
            seconds = time.monotonic() - began
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(seconds)
            self._log({"request": name, "method": scope["method"], "path": scope["path"][:200], "status": status,
                       "seconds": round(seconds, 4), **told})  # fmt: skip


def _pieces(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """An answer in parts: the server takes whatever it is given at once, and keeps it for a client that is slow."""
    body = message.get("body", b"")
    if message["type"] != "http.response.body" or len(body) <= _PIECE_BYTES:
        yield message
        return
    for first in range(0, len(body), _PIECE_BYTES):
        more = first + _PIECE_BYTES < len(body) or message.get("more_body", False)
        yield message | {"body": body[first : first + _PIECE_BYTES], "more_body": more}


def log_line(entry: dict[str, Any]) -> None:
    """One line of JSON on the standard output."""
    print(json.dumps({"unix": round(time.time(), 3), **entry}), flush=True)
