"""uvicorn with what it lacks: a time by which a connection must have said what it wants."""

import asyncio
import resource
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

_LATE = (b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
         b"connection: close\r\n\r\n%s")  # fmt: skip


def protocol(header_s: float) -> type[H11Protocol]:
    """A connection whose first request is not there within `header_s` is told so, and closed."""

    class Impatient(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._late = self.loop.call_later(header_s, self._end)

        def connection_lost(self, exc: Exception | None) -> None:
            self._late.cancel()
            super().connection_lost(exc)

        def _end(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                body = b'{"reason":"no request within %g s"}' % header_s
                self.transport.write(_LATE % (len(body), body))
                self.transport.close()

    return Impatient


def serve(app: FastAPI, *, host: str, port: int, header_s: float = 10.0, drain_s: float = 60.0,
          **options: Any) -> uvicorn.Server:  # fmt: skip
    """A server that answers every accepted request before SIGTERM ends it, within `drain_s`; `.run()` serves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:  # a connection is a file
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    config = uvicorn.Config(app, host=host, port=port, http=protocol(header_s), log_level="warning", access_log=False,
                            timeout_graceful_shutdown=round(drain_s), backlog=4096, **options)  # fmt: skip
    return uvicorn.Server(config)
