"""A server under load, beside the bare model: `measure_serving.py BUNDLE OUT.json`.

Client and server share this machine, and talk over loopback. Images are one window each, raw pixels; every answer is
held against what the bare bundle says of that image.

* bare and full, by turns: windows a second of the bundle alone in batches of 8, and of the server with as many requests
  under way as keep batches full; the share is the median of the turns'.
* 70 %: requests at random times (Poisson), at seven tenths of that; latencies beside the time of a batch; what is not
  answered 200 takes for ever.
* 300 %: three times as many as it can, twice; what is answered, and the server's memory before, between and after.
* the end: SIGTERM under load, which goes on until the server takes no more; what was accepted is answered.
"""

import asyncio
import collections
import contextlib
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import httpx
import numpy as np

from tario_jax.export.loader import Bundle

BATCH, IMAGES, SECONDS = 8, 16, 20.0
TURNS = 7
GENES = 8
WRONG = 1e-4  # relative difference


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    bundle = Bundle(folder)
    images, expected, genes = made(bundle)
    with served_bundle(folder, out, f"--batch={BATCH}") as (url, process):
        load = Load(url, images, expected, genes, bundle)
        asyncio.run(load.full(3.0))  # warm
        turns = [(bare_rate(bundle, images), asyncio.run(load.full(SECONDS / 4))) for _ in range(TURNS)]
        bare, served = (statistics.median(of) for of in zip(*((rate, full.rate) for rate, full in turns), strict=True))
        calm = asyncio.run(load.at_rate(0.7 * served, 2 * SECONDS))
        memory, storms = [memory_mib(process.pid)], []
        for _ in range(2):
            storms.append(asyncio.run(load.at_rate(3 * served, SECONDS)))
            memory.append(memory_mib(process.pid))
        end = asyncio.run(load.until_told(process))
        status = process.wait(90)
    share = statistics.median(full.rate / rate for rate, full in turns)
    tallies = [*(full for _, full in turns), calm, *storms, end]
    storm = storms[0].statuses + storms[1].statuses
    unanswered = calm.statuses.total() - calm.statuses[200]
    p50_s, p99_s = np.quantile([*calm.seconds, *[np.inf] * unanswered], (0.5, 0.99), method="higher").tolist()
    result = {
        "bare": bare, "served": served, "share": share,
        "p50_s": p50_s, "p99_s": p99_s, "batch_s": BATCH / bare, "p99_in_batches": p99_s * bare / BATCH,
        "wrong": sum(tally.wrong for tally in tallies), "lost": sum(tally.lost for tally in tallies),
        "storm": {str(status): number for status, number in storm.items()},
        "storm_others": sum(number for status, number in storm.items() if status not in (200, 429)),
        "memory_growth_mib": memory[2] - memory[1], "end_others": sum(
            number for status, number in end.statuses.items() if status not in (200, 429, "refused")
        ) + (not end.statuses["refused"]),  # the load ended before listening did
        "end_status": status,
    }  # fmt: skip
    result["table"] = "\n".join((
        f"bare, batches of {BATCH}: {bare:.1f} windows/s; served: {served:.1f}; share, median of turns: {share:.2f} ("
        + ", ".join(f"{full.rate / rate:.2f}" for rate, full in turns) + ")",
        f"at 70 %: p50 {result['p50_s']:.3f} s, p99 {result['p99_s']:.3f} s; a batch alone {result['batch_s']:.3f} s",
        f"at 300 %: {dict(storm)}; memory before, after 20 s and after 40 s: "
        + ", ".join(f"{mib:.0f}" for mib in memory) + " MiB",
        f"SIGTERM under load: {dict(end.statuses)}, exit status {status}",
        f"answers that were wrong: {result['wrong']}; requests without an answer: {result['lost']}",
    ))  # fmt: skip
    print(result["table"])
    out.write_text(json.dumps(result))


def made(bundle: Bundle):
    """Images of one window, the rates that the bare bundle gives of chosen genes, and those genes."""
    rng, side = np.random.default_rng(0), bundle.signature["window"]["side_px"]
    images = rng.integers(0, 256, (IMAGES, side, side, 3)).astype(np.uint8)
    genes = list(bundle.genes[:: max(1, len(bundle.genes) // GENES)][:GENES])
    xy_um, side_um = squares(bundle, IMAGES)
    rates = np.concatenate([bundle.predict(images[at : at + BATCH], xy_um[:BATCH], side_um[:BATCH])
                            for at in range(0, IMAGES, BATCH)])  # fmt: skip
    return images, rates[:, :, [bundle.genes.index(gene) for gene in genes]], genes


def squares(bundle: Bundle, rows: int) -> tuple[np.ndarray, np.ndarray]:
    bin_um, window_um = bundle.signature["inputs"][2]["trained"][0], bundle.signature["window"]["side_um"]
    at = (np.arange(int(window_um / bin_um + 1e-6)) + 0.5) * bin_um
    y_um, x_um = np.meshgrid(at, at, indexing="ij")
    xy_um = np.stack([x_um.ravel(), y_um.ravel()], 1).astype(np.float32)
    return np.broadcast_to(xy_um, (rows, *xy_um.shape)), np.full((rows, len(xy_um)), bin_um, np.float32)


def bare_rate(bundle: Bundle, images: np.ndarray) -> float:
    xy_um, side_um = squares(bundle, BATCH)
    bundle.predict(images[:BATCH], xy_um, side_um)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS / 4:
        at = done % (len(images) - BATCH + 1)
        bundle.predict(images[at : at + BATCH], xy_um, side_um)
        done += BATCH
    return done / (time.perf_counter() - began)


@contextlib.contextmanager
def served_bundle(folder: Path, out: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Address and process of a `tario serve` that is ready; its log lies beside `out`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tario_jax.cli", "serve", str(folder), f"--port={port}", *flags]
    with out.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit("the server ended before it was ready")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            time.sleep(0.3)
        yield url, process
    finally:
        process.kill()


def memory_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


class Tally:
    """What became of a load."""

    def __init__(self):
        self.statuses: collections.Counter = collections.Counter()
        self.seconds: list[float] = []
        self.wrong = self.lost = 0
        self.rate = 0.0


class Kept:
    """A connection."""

    def __init__(self):
        self._streams = None

    async def ask(self, address: list[str], request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*address)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r")[0])
        content = await reader.readexactly(length)
        if b"connection: close" in head:
            self.close()
        return int(head.split(maxsplit=2)[1]), content

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Load:
    """Requests to one server, each answer checked. HTTP by hand: what a client works, the server's cores lack."""

    def __init__(self, url: str, images: np.ndarray, expected: np.ndarray, genes: list[str], bundle: Bundle):
        window = bundle.signature["window"]
        side_px = window["side_px"]
        params = {"um_per_px": window["um_per_px"], "tissue": bundle.signature["trained_on"], "format": "npz",
                  "genes": ",".join(genes), "width_px": side_px, "height_px": side_px}  # fmt: skip
        self.url, self._expected = url, expected
        self._address = url.removeprefix("http://").split(":")
        head = (f"POST /v1/predict?{urlencode(params)} HTTP/1.1\r\nHost: here\r\nContent-Type: application/octet-stream"
                f"\r\nContent-Length: {images[0].nbytes}\r\n\r\n").encode()  # fmt: skip
        self._requests = [head + image.tobytes() for image in images]

    async def _one(self, number: int, tally: Tally, kept: "Kept | None" = None) -> None:
        """kept: a connection that is used again; without one a request has its own."""
        at, began = number % len(self._requests), time.perf_counter()
        connection = Kept() if kept is None else kept
        try:
            status, content = await asyncio.wait_for(connection.ask(self._address, self._requests[at]), 120)
        except ConnectionRefusedError:
            tally.statuses["refused"] += 1
            return
        except (OSError, EOFError, TimeoutError) as error:
            tally.statuses[type(error).__name__] += 1
            tally.lost += 1
            connection.close()
            return
        if kept is None:
            connection.close()
        tally.statuses[status] += 1
        if status == 200:
            tally.seconds.append(time.perf_counter() - began)
            rates = np.load(io.BytesIO(content))["rates"]
            tally.wrong += not np.abs(rates / self._expected[at] - 1).max() < WRONG

    async def full(self, seconds: float) -> Tally:
        """Three batches are always under way."""
        tally, end, began = Tally(), time.perf_counter() + seconds, time.perf_counter()

        async def worker(first: int) -> None:
            number, kept = first, Kept()
            while time.perf_counter() < end:
                await self._one(number, tally, kept)
                number += 3 * BATCH
            kept.close()

        await asyncio.gather(*(worker(first) for first in range(3 * BATCH)))
        tally.rate = tally.statuses[200] / (time.perf_counter() - began)
        return tally

    async def at_rate(self, rate: float, seconds: float) -> Tally:
        tally, rng, begun = Tally(), np.random.default_rng(1), []
        next_at = end = time.perf_counter()
        end += seconds
        while next_at < end:
            await asyncio.sleep(max(0.0, next_at - time.perf_counter()))
            begun.append(asyncio.create_task(self._one(len(begun), tally)))
            next_at += rng.exponential(1 / rate)
        await asyncio.gather(*begun)
        return tally

    async def until_told(self, process: subprocess.Popen) -> Tally:
        """SIGTERM while batches are full; requests go on a little, then all are waited for."""
        tally, begun = Tally(), []
        for number in range(60 * BATCH):  # some 5 s: listening ends a second after the signal
            begun.append(asyncio.create_task(self._one(number, tally)))
            await asyncio.sleep(0.01)
            if number == 5 * BATCH:
                process.send_signal(signal.SIGTERM)
        await asyncio.gather(*begun)
        return tally


if __name__ == "__main__":
    main()
