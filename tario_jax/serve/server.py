"""uvicorn with what it lacks: patience that ends, and an end that cuts nobody off."""

import asyncio
import contextlib
import functools
import http
import json
import math
import resource
import socket
import time
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

_HEAD_BYTES = 1 << 19  # of a request's first line and headers: thousands of genes may be named
_ACCEPTING_S = 1.0  # after SIGTERM: whoever sends us requests hears of it (/readyz) before we stop listening
_BACKLOG = 4096  # connections that wait to be taken
_READING_S = 0.3  # after that: what was sent before is read
_SLOWEST = 1 << 14  # bytes a second in which an answer is to be taken


def protocol(patience_s: float, headers: list[tuple[bytes, bytes]]) -> type[H11Protocol]:
    """A connection that owes a request, or the rest of one, for `patience_s` is told so and closed; one that takes next
    to nothing of its answer for as long is broken off, since the answer is held for it.

    headers: of what is said here, without the app.
    """

    class Impatient(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(_Counted(transport))  # type: ignore[arg-type]
            self._since = time.monotonic()
            self._taken: int | None = None  # bytes, when an answer under way was looked at last
            self._look = self.loop.call_later(patience_s, self._end)

        def connection_lost(self, exc: Exception | None) -> None:
            self._look.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._since = time.monotonic()
            self._taken = None  # what waits now is of another answer

        def eof_received(self) -> None:
            if self.cycle is not None and self.cycle.more_body and not self.cycle.response_complete:
                self._say(400, "the connection ended before the body did")
            super().eof_received()

        def send_400_response(self, msg: str) -> None:
            self._say(400, msg)

        def _end(self) -> None:
            untaken = self.transport.get_write_buffer_size()
            if untaken:
                taken = self.transport.written - untaken
                if self._taken is not None and taken - self._taken < _SLOWEST * patience_s:
                    self.transport.abort()
                    return
                self._taken = taken
                self._look = self.loop.call_later(patience_s, self._end)
                return
            owes = self.cycle is None or self.cycle.response_complete
            left_s = self._since + patience_s - time.monotonic() if owes else patience_s
            if not owes or left_s > 0:
                self._look = self.loop.call_later(max(left_s, 0.05), self._end)
            elif not self.transport.is_closing():
                self._say(408, f"no whole request within {patience_s:g} s")

        def _say(self, status: int, reason: str) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else the request has its answer
                body = json.dumps({"reason": reason}).encode()
                about = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
                         (b"connection", b"close"), *headers]  # fmt: skip
                phrase = http.HTTPStatus(status).phrase.encode()
                for event in (h11.Response(status_code=status, headers=about, reason=phrase), h11.Data(data=body),
                              h11.EndOfMessage()):  # fmt: skip
                    self.transport.write(self.conn.send(event))
            self.transport.close()

    return Impatient


class _Counted:
    """A transport that knows how much was written to it: an answer comes in pieces, of which few wait at a time."""

    def __init__(self, transport: asyncio.Transport):
        self._transport, self.written = transport, 0

    def write(self, data: bytes) -> None:
        self.written += len(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Server(uvicorn.Server):
    """SIGTERM: `at_signal` at once, a moment later no new connection, then what was accepted is answered."""

    def __init__(self, config: uvicorn.Config, at_signal: Callable[[], None]):
        super().__init__(config)
        self._at_signal, self._signals = at_signal, 0

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._signals += 1
        self._at_signal()
        if self._signals > 1:  # in a hurry
            super().handle_exit(sig, frame)
            return
        ending = functools.partial(super().handle_exit, sig, frame)
        self._loop.call_soon_threadsafe(self._loop.call_later, _ACCEPTING_S, ending)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        waiting = []  # connections that the kernel took for us, under load as many as asked in the last moment
        for listening in sockets or ():
            with contextlib.suppress(OSError):  # no more of them
                while True:
                    waiting.append(listening.accept()[0])
        for server in self.servers:
            server.close()
        made = functools.partial(self.config.http_protocol_class, config=self.config, server_state=self.server_state,
                                 app_state=self.lifespan.state)  # fmt: skip
        for connection in waiting:
            await self._loop.connect_accepted_socket(made, connection)
        await asyncio.sleep(_READING_S)
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """Raises `OSError` where the port is taken, be it by one that serves not yet: from now on connections wait."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(_BACKLOG)  # two that are only bound would share it
    except OSError:
        bound.close()
        raise
    return bound


def url_of(host: str, bound: socket.socket) -> str:
    """What a client asks; an address of IPv6 is in brackets there."""
    return f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"


def serve(app: FastAPI, bound: socket.socket, *, at_signal: Callable[[], None] = lambda: None, patience_s: float = 10.0,
          drain_s: float = 60.0) -> None:  # fmt: skip
    """Serves an app of `make_app` until SIGTERM or SIGINT. at_signal: is called as it comes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:  # a connection is a file
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    config = uvicorn.Config(app, http=protocol(patience_s, app.state.headers), ws="none", log_level="warning",
                            access_log=False, backlog=_BACKLOG, timeout_graceful_shutdown=math.ceil(drain_s),
                            h11_max_incomplete_event_size=_HEAD_BYTES)  # fmt: skip
    Server(config, at_signal).run([bound])
