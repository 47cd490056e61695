"""A bundle behind HTTP: answers are the model's, mistakes are 4xx with a reason, nothing that was accepted is lost."""

import argparse
import asyncio
import collections
import dataclasses
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib

import httpx
import jax
import numpy as np
import pyarrow as pa
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from PIL import Image
from refusals import refused
from tiny_tissue import PANEL

from tario_jax.cli.serve import port, token_of
from tario_jax.cli.serve import run as serve_job
from tario_jax.export.bundle import Wanted, export_bundle
from tario_jax.export.loader import Bundle
from tario_jax.predict.predictor import Predictor, load
from tario_jax.serve import observed
from tario_jax.serve.app import make_app
from tario_jax.serve.cover import squares_of_window
from tario_jax.serve.engine import Engine, Windows, batch_sizes
from tario_jax.serve.images import RAW, pixels_of
from tario_jax.serve.limits import Limits
from tario_jax.serve.observed import Metrics
from tario_jax.serve.refusal import Refusal
from tario_jax.serve.server import Server, bind, protocol, url_of

PNG = {"content-type": "image/png"}
ASKED = {"um_per_px": 0.5, "tissue": "virtual", "format": "npz"}


@pytest.fixture(scope="module")
def bundle(tiny_run, tmp_path_factory) -> Bundle:
    out = tmp_path_factory.mktemp("served") / "bundle"
    export_bundle(tiny_run, out, Wanted(), lambda line: None)
    return Bundle(out)


@pytest.fixture(scope="module")
def engine(bundle):
    engine = Engine(bundle, squares=(16, 4), rows=(1, 4))
    engine.warm_up()
    yield engine
    engine.close()


class Client:
    """Asks an app in this process."""

    def __init__(self, app):
        self._app = app

    def __getattr__(self, method: str):
        def ask(path: str, **more) -> httpx.Response:
            async def one() -> httpx.Response:
                transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
                async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                    return await getattr(client, method)(path, **more)

            return asyncio.run(one())

        return ask


@pytest.fixture(scope="module")
def client(engine) -> Client:
    return Client(make_app(engine, Metrics(), Limits(body_bytes=1 << 20, image_px=1 << 20, side_px=2000)))


@pytest.fixture(scope="module")
def section(tiny_corpus):
    return tiny_corpus.section("F1")


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def rates_of(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.load(io.BytesIO(response.content))["rates"]


@pytest.mark.parametrize("bin_um", [18.0, 36.0])
def test_an_image_is_predicted_as_tario_predicts_it(tiny_run, client, section, bin_um):
    """Windows are blended alike; a predictor that was not trained on turned tissue turns none."""
    model = load(tiny_run)
    config = dataclasses.replace(
        model.provenance.config, data=dataclasses.replace(model.provenance.config.data, turn=False)
    )
    model = Predictor(dataclasses.replace(model.provenance, config=config), model.parameters, model.calibration)
    expected = model.predict(section.he(), section.he_um_per_px, bin_um=bin_um, tissue="virtual")
    asked = ASKED | {"bin_um": bin_um}
    found = np.load(
        io.BytesIO(client.post("/v1/predict", params=asked, content=png(section.he()), headers=PNG).content)
    )
    np.testing.assert_allclose(found["rates"], expected.rates_NxG, rtol=1e-4)
    np.testing.assert_allclose((found["x_um"], found["y_um"]), (expected.x_um_N, expected.y_um_N))
    assert tuple(found["genes"]) == PANEL.symbols and "virtual tissue" in str(found["banner"])


def test_squares_that_leave_a_part_of_a_window_are_served(bundle, section):
    """As those of a spot's area do: three of 20 µm, and 12 µm beside them; what was got ready for is not refused."""
    engine = Engine(bundle, squares=(squares_of_window(72.0, 20.0),), rows=(1,))
    engine.warm_up()
    client = Client(make_app(engine, Metrics()))
    for bin_um, status in ((20, 200), (18, 422)):
        asked = ASKED | {"bin_um": bin_um}
        assert client.post("/v1/predict", params=asked, content=png(section.he()), headers=PNG).status_code == status
    engine.close()


def test_genes_and_forms_are_chosen(client, section):
    he = section.he()
    every = rates_of(client.post("/v1/predict", params=ASKED, content=png(he), headers=PNG))
    genes = [PANEL.symbols[5], PANEL.symbols[0]]
    asked = ASKED | {"genes": ", ".join(genes), "format": "arrow"}
    response = client.post("/v1/predict", params=asked, content=png(he), headers=PNG)
    table = pa.ipc.open_stream(response.content).read_all()
    assert table.column_names == ["x_um", "y_um", *genes] and b"tario.banner" in table.schema.metadata
    np.testing.assert_array_equal(np.stack([table[gene] for gene in genes], 1), every[:, [5, 0]])
    raw = ASKED | {"width_px": he.shape[1], "height_px": he.shape[0]}
    response = client.post("/v1/predict", params=raw, content=he.tobytes(), headers={"content-type": RAW})
    np.testing.assert_array_equal(rates_of(response), every)
    for header, word in (("x-tario-trained-on", "virtual"), ("x-tario-banner", "knows no biology")):
        assert word in response.headers[header]


def broken_png() -> bytes:
    """A chunk after the pixels that Pillow trips over."""
    whole = png(np.zeros((80, 80, 3), np.uint8))
    empty = b"\0\0\0\0iCCP" + zlib.crc32(b"iCCP").to_bytes(4, "big")
    return whole[:-12] + empty + whole[-12:]


def test_images_may_be_as_large_as_the_limits_say():
    """Pillow's own limit is below that of --most-megapixels=400."""
    seen = []

    def check(*size: int) -> None:
        seen.append(size)
        raise Refusal(413, "enough")

    header = b"IHDR" + (15_000).to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0))
    image = png(np.zeros((1, 1, 3), np.uint8))
    large = image[:12] + header + zlib.crc32(header).to_bytes(4, "big") + image[33:]
    with pytest.raises(Refusal, match="enough"):
        pixels_of(large, "image/png", None, None, most_px=400_000_000, longest_px=20_000, check=check)
    assert seen == [(15_000, 15_000)]


def test_what_is_transparent_is_glass(client, section):
    he = section.he()
    shown = np.zeros((*he.shape[:2], 4), np.uint8)
    shown[:, 40:] = np.dstack([he[:, 40:], np.full((he.shape[0], he.shape[1] - 40), 255, np.uint8)])
    glass = he.copy()
    glass[:, :40] = 255
    found = [rates_of(client.post("/v1/predict", params=ASKED, content=png(image), headers=PNG))
             for image in (shown, glass)]  # fmt: skip
    np.testing.assert_array_equal(*found)


def test_an_image_is_seen_as_its_exif_says(client, section):
    turned = Image.fromarray(section.he()[:60])
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by a quarter before it is shown
    bodies = [io.BytesIO(), io.BytesIO()]
    turned.save(bodies[0], "PNG", exif=exif)
    turned.transpose(Image.Transpose.ROTATE_270).save(bodies[1], "PNG")
    found = [rates_of(client.post("/v1/predict", params=ASKED, content=body.getvalue(), headers=PNG))
             for body in bodies]  # fmt: skip
    np.testing.assert_array_equal(*found)


def test_an_answer_is_handed_over_in_pieces(monkeypatch):
    """All at once, it would lie with the connection of a slow client, and be counted by nobody."""
    monkeypatch.setattr(observed, "_PIECE_BYTES", 4)
    start = {"type": "http.response.start", "status": 200, "headers": []}
    sent = [piece for message in (start, {"type": "http.response.body", "body": b"0123456789"})
            for piece in observed._pieces(message)]  # fmt: skip
    assert sent[0] is start and [piece["body"] for piece in sent[1:]] == [b"0123", b"4567", b"89"]
    assert [piece["more_body"] for piece in sent[1:]] == [True, True, False]


WRONG = {
    "grey": (ASKED, png(np.full((80, 80), 20000, np.uint16)), PNG, 422, "of mode I;16; expected 8-bit RGB"),
    "grey of 8 bits": (ASKED, png(np.full((80, 80), 77, np.uint8)), PNG, 422, "of mode L; expected 8-bit RGB"),
    "chunk": (ASKED, broken_png(), PNG, 422, "no PNG that can be read"),
    "text": (ASKED, b"no image", PNG, 422, "no PNG that can be read"),
    "torn": (ASKED, png(np.zeros((80, 80, 3), np.uint8))[:60], PNG, 422, "no PNG that can be read"),
    "empty": (ASKED, b"", PNG, 422, "the body is empty"),
    "type": (ASKED, b"x", {"content-type": "image/gif"}, 415, "expected one of image/png"),
    "body": (ASKED, bytes(2 << 20), PNG, 413, "expected at most 1048576"),
    "side": (ASKED, png(np.zeros((1, 3000, 3), np.uint8)), PNG, 413, "3000 x 1 px; expected at most 2000 px"),
    "pixels": (ASKED | {"width_px": 1500, "height_px": 1500}, b"x", {"content-type": RAW}, 413, "1.04858 megapixels"),
    "raw": (ASKED, b"x", {"content-type": RAW}, 422, "need width_px and height_px"),
    "short": (ASKED | {"width_px": 10, "height_px": 10}, b"x", {"content-type": RAW}, 422, "of RGB are 300"),
    "um 0": (ASKED | {"um_per_px": 0}, b"x", PNG, 422, "um_per_px is 0; expected 0.1 to 1.2"),
    "um 40": (ASKED | {"um_per_px": 40}, b"x", PNG, 422, "um_per_px is 40"),
    "um nan": (ASKED | {"um_per_px": "nan"}, b"x", PNG, 422, "um_per_px is nan"),
    "um word": (ASKED | {"um_per_px": "half"}, b"x", PNG, 422, "um_per_px: "),
    "gene": (ASKED | {"genes": "GENE44"}, b"x", PNG, 422, "did you mean GENE4?"),
    "bins": (ASKED | {"bin_um": 9}, b"x", PNG, 422, "bin_um is 9; expected more than 14.4, at most 72 (trained: 18)"),
    "tiny": (ASKED, png(np.zeros((3, 3, 3), np.uint8)), PNG, 422, "expected at least one square of 18 µm"),
    "large": (ASKED, png(np.zeros((1000, 1000, 3), np.uint8)), PNG, 413, "send it in parts"),
    "real": (ASKED | {"tissue": "real"}, b"x", PNG, 403, "--allow-virtual-model"),
    "format": (ASKED | {"format": "csv"}, b"x", PNG, 422, "format: "),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_answered_with_its_reason(client, name):
    params, body, headers, status, word = WRONG[name]
    response = client.post("/v1/predict", params=params, content=body, headers=headers)
    assert response.status_code == status and word in response.json()["reason"], response.text
    assert "virtual tissue" in response.headers["x-tario-banner"]


def test_what_is_not_there_is_said(client):
    assert client.get("/v2").status_code == 404 and client.get("/v1/predict").status_code == 405
    assert client.get("/v1/genes").json()["genes"] == list(PANEL.symbols)
    assert client.get("/v1/signature").json()["trained_on"] == "virtual"
    described = client.get("/openapi.json").json()["paths"]["/v1/predict"]["post"]
    assert {"200", "401", "403", "408", "413", "415", "422", "429", "503"} <= described["responses"].keys()
    assert set(described["requestBody"]["content"]) == {"image/png", "image/jpeg", RAW}


def test_a_token_is_asked_for(engine):
    german = Client(make_app(engine, Metrics(), token="schlüssel"))
    assert german.get("/v1/genes", headers={"Authorization": "Bearer schlüssel".encode()}).status_code == 200
    client = Client(make_app(engine, Metrics(), token="secret"))
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
        response = client.get("/v1/genes", headers=headers)
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
    assert client.get("/v1/genes", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert client.get("/healthz").text == "ok\n" and client.get("/readyz").status_code == 200


def test_a_token_that_was_not_found_opens_nothing():
    assert token_of({}) == "" and token_of({"TARIO_TOKEN": "secret\n"}) == "secret"
    for empty in ("", "\n"):
        assert "TARIO_TOKEN: is empty" in refused(lambda empty=empty: token_of({"TARIO_TOKEN": empty}))


def test_requests_and_batches_are_counted_and_logged(bundle, section):
    entries, metrics = [], Metrics()
    engine = Engine(bundle, squares=(16,), rows=(4,), on_batch=metrics.count)
    engine.warm_up()
    client = Client(make_app(engine, metrics, log=entries.append))
    client.post("/v1/predict", params=ASKED, content=png(section.he()), headers=PNG | {"X-Request-Id": "mine"})
    client.post("/v1/predict", params=ASKED | {"genes": "none"}, content=b"x", headers=PNG)
    told = client.get("/metrics").text
    engine.close()
    assert 'tario_requests_total{path="/v1/predict",status="200"} 1.0' in told
    assert 'tario_requests_total{path="/v1/predict",status="422"} 1.0' in told
    done, refused, _ = entries
    assert done["request"] == "mine" and done["status"] == 200 and done["squares"] == 80
    assert f"tario_windows_total {float(done['windows'])}" in told and done["seconds"] > 0
    assert "gene 'none'" in refused["reason"]
    assert client.get("/readyz").status_code == 503


def windows(number: int, squares: int, seed: int, side_px: int = 72) -> Windows:
    rng = np.random.default_rng(seed)
    he = rng.integers(0, 256, (number, side_px, side_px, 3)).astype(np.uint8)
    xy_um = rng.uniform(9, 63, (number, squares, 2)).astype(np.float32)
    return Windows(he, xy_um, np.full((number, squares), 18.0, np.float32))


def test_windows_of_many_requests_come_back_to_their_own(bundle, engine):
    """Of two numbers of squares and three of windows, asked at once from many threads; nothing is compiled for them."""
    compiled = bundle.call._cache_size()
    asked = [windows(1 + seed % 3, (3, 4, 16)[seed % 3], seed) for seed in range(24)]
    found = [engine.submit(one, np.array([2, 0])) for one in asked]
    answers = [one.result(60) for one in found]
    assert bundle.call._cache_size() == compiled
    for one, answer in zip(asked, answers, strict=True):
        np.testing.assert_allclose(answer, bundle.predict(*one)[:, :, [2, 0]], rtol=1e-5)


def slow(engine: Engine, seconds: float, fails: threading.Event | None = None):
    run = engine._run

    def later(*given):
        time.sleep(seconds)
        if fails is not None and fails.is_set():
            raise RuntimeError("the device is gone")
        return run(*given)

    engine._run = later


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (2, [1, 2]), (8, [1, 2, 3, 4, 6, 8]), (10, [1, 2, 3, 4, 6, 8, 10])]
)
def test_sizes_of_batches(most, sizes):
    assert batch_sizes(most) == sizes


def test_a_full_queue_refuses_and_loses_nothing(bundle):
    engine = Engine(bundle, squares=(4,), rows=(2,), most_waiting=4)
    engine.warm_up()
    slow(engine, 0.3)
    accepted, refused = [], []
    for seed in range(12):
        one = windows(2, 4, seed)
        try:
            accepted.append((one, engine.submit(one)))
        except Refusal as refusal:
            refused.append(refusal)
    assert len(accepted) >= 2 and len(refused) >= 6
    assert all(refusal.status == 429 and refusal.retry_after_s >= 1 for refusal in refused)
    closing = threading.Thread(target=engine.close)  # what was accepted is answered all the same
    closing.start()
    for one, answer in accepted:
        np.testing.assert_allclose(answer.result(30), bundle.predict(*one), rtol=1e-5)
    closing.join(30)
    with pytest.raises(Refusal, match="the server is ending"):
        engine.submit(windows(1, 4, 0))
    with pytest.raises(Refusal, match="send it in parts"):
        engine.submit(windows(5, 4, 0))


def test_requests_that_are_given_up_stop_nobody(bundle):
    """Cancelled at any moment, also while their answer is put together."""
    engine = Engine(bundle, squares=(4,), rows=(2,), most_waiting=64)
    engine.warm_up()
    stacked = []

    class Slow(list):
        def __iter__(self):
            time.sleep(0.02)
            stacked.append(1)
            return super().__iter__()

    for seed in range(20):
        answer = engine.submit(windows(2, 4, seed))
        request = next((request for request, _ in list(engine._waiting) if request.done is answer), None)
        if request is not None:
            request.found = Slow(request.found)
        time.sleep(0.005 * (seed % 5))
        answer.cancel()
    assert engine.alive
    one = windows(2, 4, 1)
    np.testing.assert_allclose(engine.submit(one).result(30), bundle.predict(*one), rtol=1e-5)
    engine.close()


def test_every_device_works_on_one_request(bundle):
    """Two devices, here one under two names: eight windows, a batch each, take half of the time of one device."""
    seconds = {}
    for devices in (1, 2):
        engine = Engine(bundle, squares=(4,), rows=(1,), devices=jax.local_devices()[:1] * devices)
        engine.warm_up()
        slow(engine, 0.2)
        one, began = windows(8, 4, 0), time.monotonic()
        np.testing.assert_allclose(engine.submit(one).result(30), bundle.predict(*one), rtol=1e-5)
        seconds[devices] = time.monotonic() - began
        engine.close()
    assert seconds[2] < 0.75 * seconds[1]


def test_too_many_requests_are_refused_before_their_bodies_are_read(engine, section):
    app = make_app(engine, Metrics(), Limits(requests=0))
    client = Client(app)
    response = client.post("/v1/predict", params=ASKED, content=png(section.he()), headers=PNG)
    assert response.status_code == 429 and response.headers["retry-after"] == "1"
    assert app.state.held.whole == app.state.held.body_bytes == 0


def test_bodies_hold_no_more_than_there_is_room_for(engine, section):
    body = png(section.he())
    for held_bytes, status in ((len(body) - 1, 429), (len(body), 200)):
        app = make_app(engine, Metrics(), Limits(held_bytes=held_bytes))
        assert Client(app).post("/v1/predict", params=ASKED, content=body, headers=PNG).status_code == status
        assert app.state.held.body_bytes == app.state.held.whole == 0


def test_bodies_of_clients_that_went_away_are_let_go(engine, monkeypatch):
    """However many wait for the thread that unpacks images."""
    app, goes_on, size = make_app(engine, Metrics(), Limits(threads=1)), threading.Event(), 4 << 20
    monkeypatch.setattr("tario_jax.serve.app.images.pixels_of", lambda *_, **__: goes_on.wait(30))
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": [(b"content-type", b"image/png")],
             "query_string": "&".join(f"{name}={value}" for name, value in ASKED.items()).encode()}  # fmt: skip

    async def ask_and_leave() -> None:
        given = [{"type": "http.request", "body": bytes(size // 2), "more_body": more} for more in (False, True)]

        async def receive():
            if given:
                return given.pop()
            await asyncio.sleep(0.1)
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        await app(dict(scope), receive, send)

    async def every() -> int:
        await asyncio.gather(*(ask_and_leave() for _ in range(12)))
        await asyncio.sleep(0.1)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        assert asyncio.run(every()) < 3 * size
    finally:
        tracemalloc.stop()
        goes_on.set()
    assert app.state.held.body_bytes == 0


def test_answers_hold_no_more_than_there_is_room_for(engine, section):
    body = png(section.he())
    for all_answer_bytes, status in ((1000, 429), (1 << 30, 200)):
        app = make_app(engine, Metrics(), Limits(all_answer_bytes=all_answer_bytes))
        assert Client(app).post("/v1/predict", params=ASKED, content=body, headers=PNG).status_code == status
        assert app.state.held.answer_bytes == 0


def test_an_unknown_parameter_says_which_was_meant(client):
    for name, words in (("gene", "did you mean genes?"), ("colour", "colour: unknown parameter")):
        response = client.post("/v1/predict", params=ASKED | {name: "EPCAM"}, content=b"x", headers=PNG)
        assert response.status_code == 422 and words in response.json()["reason"]
    response = client.post("/v1/predict", params=ASKED | {"genes": ["GENE1", "GENE2"]}, content=b"x", headers=PNG)
    assert response.status_code == 422 and "genes: is given 2 times" in response.json()["reason"]


def test_an_answer_that_is_too_large_is_refused(engine, section):
    client = Client(make_app(engine, Metrics(), Limits(answer_bytes=1000)))
    response = client.post("/v1/predict", params=ASKED, content=png(section.he()), headers=PNG)
    assert response.status_code == 413 and "ask for fewer genes" in response.json()["reason"]


def test_an_error_within_is_told_and_logged(bundle, section):
    entries = []
    engine = Engine(bundle, squares=(16,), rows=(1,))
    engine.warm_up()
    fails = threading.Event()
    fails.set()
    slow(engine, 0.0, fails)
    client = Client(make_app(engine, Metrics(), log=entries.append))
    odd = PNG | {"X-Request-Id": "a" * 63 + " and more"}
    response = client.post("/v1/predict", params=ASKED, content=png(section.he()), headers=odd)
    assert response.status_code == 500 and "internal error" in response.json()["reason"]
    assert entries[0]["error"] == "RuntimeError: the device is gone" and entries[0]["status"] == 500
    assert response.headers["x-request-id"] == entries[0]["request"] and " " not in entries[0]["request"]
    assert "virtual tissue" in response.headers["x-tario-banner"]
    engine.close()


def test_a_batch_that_fails_takes_no_other_with_it(bundle):
    engine = Engine(bundle, squares=(4,), rows=(1,))
    engine.warm_up()
    fails = threading.Event()
    slow(engine, 0.0, fails)
    fails.set()
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.submit(windows(3, 4, 0)).result(30)
    fails.clear()
    one = windows(2, 4, 1)
    np.testing.assert_allclose(engine.submit(one).result(30), bundle.predict(*one), rtol=1e-5)
    engine.close()


def test_a_request_that_the_end_cuts_off_is_told(bundle, section):
    """As is everything, with the banner."""
    metrics, engine = Metrics(), Engine(bundle, squares=(16,), rows=(1,))  # not begun: nothing is answered
    app, said, body = make_app(engine, metrics), [], png(section.he())

    async def cut() -> None:
        given = [{"type": "http.request", "body": body}]

        async def receive():
            return given.pop() if given else await asyncio.Event().wait()

        async def send(message):
            said.append(message)

        asked = "&".join(f"{name}={value}" for name, value in ASKED.items()).encode()
        scope = {"type": "http", "method": "POST", "path": "/v1/predict", "query_string": asked, "headers": [
            (b"content-type", b"image/png")]}  # fmt: skip
        task = asyncio.create_task(app(scope, receive, send))
        while not engine.waiting:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cut())
    assert said[0]["status"] == 503 and b"x-tario-banner" in dict(said[0]["headers"]) and metrics.cut == 1
    assert b"ended before the answer" in said[1]["body"]


def test_what_is_said_without_the_app_bears_the_banner_and_untaken_answers_are_let_go():
    app = FastAPI()
    app.add_api_route("/", lambda: Response(bytes(32 << 20)))
    app.add_api_route("/pieces", lambda: StreamingResponse(iter([bytes(1 << 20)] * 32)), response_model=None)

    @app.post("/")
    async def posted(request: Request) -> int:
        return len(await request.body())

    config = uvicorn.Config(app, http=protocol(0.5, [(b"x-tario-banner", b"a word")]), log_level="error")
    server, bound = uvicorn.Server(config), bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    while not server.started:
        time.sleep(0.02)
    address, ask = bound.getsockname(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    part = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\npart"
    for sent, status in ((b"no request\r\n\r\n", b" 400 "), (b"GET /", b" 408 "), (part, b" 400 ")):
        with socket.create_connection(address, timeout=20) as connection:
            connection.sendall(sent)
            if sent is part:
                connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(4096), b""))  # noqa: B023
        assert status in answer and b"x-tario-banner: a word" in answer and b'{"reason": ' in answer
    took = httpx.get(f"http://127.0.0.1:{address[1]}/")
    assert len(took.content) == 32 << 20
    with socket.socket() as steady:  # whatever waits for it, it takes more than next to nothing of it
        steady.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        steady.connect(address)
        steady.sendall(b"GET /pieces HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        began, taken = time.monotonic(), 0
        while part := steady.recv(1 << 17):
            taken += len(part)
            time.sleep(0.005)
    assert taken > 32 << 20 and time.monotonic() - began > 1.0
    with socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.connect(address)
        silent.sendall(ask)
        end, held = time.monotonic() + 20, []
        while time.monotonic() < end and not (held and held[-1] == 0 < max(held)):
            held.append(sum(one.transport.get_write_buffer_size() for one in list(server.server_state.connections)))
            time.sleep(0.02)
    assert max(held) > 16 << 20 and held[-1] == 0
    server.should_exit = True
    thread.join(20)


def test_the_end_loses_nobody_who_keeps_asking(bundle):
    """Clients ask again at once, on the same connection where they may: each request is answered, or not taken."""
    metrics = Metrics()
    app = make_app(Engine(bundle, squares=(16,), rows=(1,)), metrics)
    config = uvicorn.Config(app, http=protocol(10.0, []), log_level="error", timeout_graceful_shutdown=10)
    server, bound = Server(config, metrics.end), bind("127.0.0.1", 0)
    address, found = bound.getsockname(), collections.Counter()
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()

    async def ask() -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(*address)
            except ConnectionError:
                return
            try:
                head = b""
                while b"connection: close" not in head.lower():
                    writer.write(b"GET /v1/genes HTTP/1.1\r\nHost: x\r\n\r\n")
                    head = await reader.readuntil(b"\r\n\r\n")
                    size = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
                    await reader.readexactly(int(size.split(b":")[1]))
                    found["answered"] += 1
            except (ConnectionError, asyncio.IncompleteReadError):
                found["lost"] += 1
            writer.close()

    async def every() -> None:
        asked = [asyncio.create_task(ask()) for _ in range(32)]
        await asyncio.sleep(0.5)
        server.handle_exit(signal.SIGTERM, None)
        await asyncio.gather(*asked)

    while not server.started:
        time.sleep(0.02)
    asyncio.run(every())
    thread.join(20)
    assert found["answered"] > 32 and not found["lost"], found


# --- a process of its own


@pytest.mark.parametrize("text", ["65536", "-1", "http", ""])
def test_what_is_no_port_is_refused(text):
    assert port("0") == 0 and port("65535") == 65535
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number of 0 to 65535"):
        port(text)


def test_a_port_of_a_server_that_still_compiles_is_taken():
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        options = argparse.Namespace(host="127.0.0.1", port=port)
        refused(lambda: serve_job(options), f"--host=127.0.0.1 --port={port}: Address already in use; give another one")
    bind("127.0.0.1", port).close()


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_what_it_says_of_its_place_can_be_asked(host, url):
    with bind(host, 0) as bound:
        assert url_of(host, bound) == f"{url}{bound.getsockname()[1]}"


@pytest.fixture
def served(bundle, tmp_path):
    """(base URL, the process) of `tario serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tario_jax.cli", "serve", str(bundle.folder), f"--port={port}", "--batch=2",
               "--body-s=3", "--most-waiting=40"]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"JAX_PLATFORMS": "cpu"}
        )
    try:
        for _ in range(600):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", process, tmp_path / "log"
    finally:
        process.kill()
        process.wait()


def test_a_signal_ends_it_after_what_it_accepted(served, section):
    url, process, log = served
    body, answers = png(section.he()), []

    def ask():
        try:
            response = httpx.post(f"{url}/v1/predict", params=ASKED, content=body, headers=PNG, timeout=60)
            answers.append((response.status_code, len(response.content)))
        except httpx.ConnectError:
            answers.append(("refused", 0))

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    while not log.read_text().count('"status"') > 2:  # the first are answered, others wait
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert process.wait(60) == 0
    statuses = {status for status, _ in answers}
    assert len(answers) == 24 and statuses <= {200, 429, "refused"} and 200 in statuses, answers
    assert len({size for status, size in answers if status == 200}) == 1
    entries = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert sum(entry["status"] == 200 and entry["path"] == "/v1/predict" for entry in entries) == sum(
        status == 200 for status, _ in answers
    )


@pytest.mark.slow
def test_slow_connections_are_told_and_stop_nobody(served, section):
    """Some say nothing, others a body that never ends: 408 in time; meanwhile a good request is answered."""
    url, process, _ = served
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    silent = [socket.create_connection(address) for _ in range(100)]
    begun = [socket.create_connection(address) for _ in range(200)]  # more than are worked on at once
    head = b"POST /v1/predict?um_per_px=0.5&tissue=virtual HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    for one in begun:
        one.sendall(head + b"Content-Length: 1000\r\n\r\n\x89PNG")
    response = httpx.post(f"{url}/v1/predict", params=ASKED, content=png(section.he()), headers=PNG, timeout=30)
    assert response.status_code == 200
    second = socket.create_connection(address)  # says half of a second request
    second.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    second.settimeout(30)
    answer = b""
    while not answer.endswith(b"ok\n"):  # head and body may come one after the other
        answer += second.recv(4096)
    assert b" 200 " in answer
    second.sendall(b"GET /hea")
    for one in [*silent, *begun, second]:
        one.settimeout(30)
        answer = one.recv(4096)
        assert b" 408 " in answer.split(b"\r\n")[0] and b"virtual tissue" in answer
        one.close()
    assert process.poll() is None and httpx.get(f"{url}/healthz").text == "ok\n"
