"""What requests may ask, and what all of them together may hold of the server's memory."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from tario_jax.serve.refusal import Refusal

_HELD = "tario.answer_bytes"  # in a request's scope


@dataclass(frozen=True)
class Limits:
    """What a request may ask."""

    body_bytes: int = 64 << 20
    body_s: float = 30.0  # to send it
    answer_s: float = 60.0  # to work it out
    image_px: int = 64_000_000
    side_px: int = 20_000
    um_per_px: tuple[float, float] = (0.1, 1.2)
    answer_bytes: int = 1 << 30  # of its rates
    all_answer_bytes: int = 1 << 31  # of all rates that are worked on or sent
    requests: int = 128  # worked on at once; those that are still being sent do not count
    held_bytes: int = 1 << 29  # of the bodies of all requests
    threads: int = 2  # that unpack images, and as many that pack answers


USUAL = Limits()


class Held:
    """Bodies, as long as they are read and worked on, and rates, until they are sent."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self.whole = 0  # requests whose bodies are here
        self.body_bytes = self.answer_bytes = 0

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, which is held within. Raises `Refusal` for one that is too large, late or empty."""
        self._refuse_busy()  # before anything of it is held
        stated, most = request.headers.get("content-length"), self._limits.body_bytes
        if stated is not None and stated.isdecimal() and int(stated) > most:
            raise Refusal(413, f"the body has {stated} bytes; expected at most {most}")
        pieces: list[bytes] = []
        try:
            await self._read(request, pieces)
            if not pieces:
                raise Refusal(422, "the body is empty; expected an image")
            self._refuse_busy()
            pieces[:] = [b"".join(pieces)]
            self.whole += 1
            try:
                yield pieces[0]
            finally:
                self.whole -= 1
        finally:
            self.body_bytes -= sum(map(len, pieces))

    def answer(self, request: Request, size: int) -> None:
        """Holds so many bytes of rates, until `sent`. Raises `Refusal` where there is no room for them."""
        if self.answer_bytes + size > self._limits.all_answer_bytes:
            raise Refusal(429, f"{self.answer_bytes / 1e6:.0f} MB of rates are under way; ask again later, or for "
                               "fewer genes", retry_after_s=1)  # fmt: skip
        self.answer_bytes += size
        request.scope[_HELD] = size

    def sent(self, scope: dict[str, Any]) -> None:
        """Of a request that has ended, however."""
        self.answer_bytes -= scope.get(_HELD, 0)

    def _refuse_busy(self) -> None:
        if self.whole >= self._limits.requests:
            raise Refusal(429, f"{self._limits.requests} requests are under way; ask again later", retry_after_s=1)

    async def _read(self, request: Request, pieces: list[bytes]) -> None:
        size, limits = 0, self._limits
        try:
            async with asyncio.timeout(limits.body_s):
                async for piece in request.stream():
                    if not piece:
                        continue
                    pieces.append(piece)
                    size += len(piece)
                    self.body_bytes += len(piece)
                    if size > limits.body_bytes:
                        raise Refusal(413, f"the body has more than {limits.body_bytes} bytes")
                    if self.body_bytes > limits.held_bytes:
                        raise Refusal(429, f"bodies of {limits.held_bytes} bytes are held; ask again later",
                                      retry_after_s=1)  # fmt: skip
        except TimeoutError:
            raise Refusal(408, f"the body was not sent within {limits.body_s:g} s") from None
