"""What the page asks for: the store's own numbers, the slide's own pixels, and reasons where there are none."""

import asyncio
import contextlib
import io
import json
import re
import shutil
import types

import httpx
import numpy as np
import pytest
from made_maps import write_made_maps
from made_slides import write_pyramid
from PIL import Image
from refusals import refused
from skimage.io import imsave
from tiny_tissue import tiny_section

from tario_jax.corpus.resample import square_means
from tario_jax.predict.map_store import FILE, MapStore
from tario_jax.predict.signatures import Signature, read_gmt, scores
from tario_jax.predict.slide import slide_of_maps
from tario_jax.predict.slide_job import Asked, predict_measured, predict_slide
from tario_jax.view import shown as shown_module
from tario_jax.view.app import PAGE, make_app
from tario_jax.view.shown import Shown


@pytest.fixture(scope="module")
def store(predictor, tmp_path_factory) -> MapStore:
    folder = tmp_path_factory.mktemp("viewed")
    slide = write_pyramid(folder / "slide.ome.tif", tiny_section("s", "P", 5, width_um=400.0, height_um=300.0).he,
                          ome=True, px_per_cm=20_000)  # fmt: skip
    (folder / "sets.gmt").write_text("dark\tnuclei\tGENE0\tGENE2\n")
    return predict_slide(predictor, slide, folder / "slide.maps", Asked(everywhere=True, tissue="virtual"), say=str)


def shown(store, stack, at=None) -> Shown:
    gmt = store.folder.parent / "sets.gmt"
    return Shown(store.folder, at or {}, lambda store: read_gmt(gmt, store.panel), stack, str)


class Client:
    """Asks an app, without a server."""

    def __init__(self, app):
        self._app = app

    def get(self, path: str, **more) -> httpx.Response:
        return self._ask("GET", path, **more)

    def post(self, path: str, **more) -> httpx.Response:
        return self._ask("POST", path, **more)

    def _ask(self, method: str, path: str, **more) -> httpx.Response:
        async def one() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, **more)

        return asyncio.run(one())


@pytest.fixture(scope="module")
def client(store):
    with contextlib.ExitStack() as stack:
        yield Client(make_app([shown(store, stack)], stack))


def floats(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.frombuffer(answer.content, "<f4")


def test_values_are_those_of_the_store(client, store):
    (slide,) = client.get("/api/slides").json()
    assert (slide["bins"], slide["genes"], slide["arrays"]) == (len(store), 12, ["rates"])
    assert (
        slide["he"]
        and slide["signatures"] == [{"name": "dark", "kind": "gene set"}]
        and slide["slide_px"] == [800, 600]
    )
    assert np.array_equal(floats(client.get("/api/slides/0/values/rates?name=GENE5")), store.gene("GENE5"))
    places = floats(client.get("/api/slides/0/places")).reshape(2, -1)
    assert np.allclose(places, [store.x_um_N, store.y_um_N])
    expected = scores(store, read_gmt(store.folder.parent / "sets.gmt", store.panel))[:, 0]
    assert np.array_equal(floats(client.get("/api/slides/0/values/signature?name=dark")), expected)
    genes = client.get("/api/slides/0/genes").json()
    assert genes["symbols"] == list(store.panel.symbols) and np.allclose(genes["mean"], store.mean_G, rtol=1e-3)


def test_what_a_browser_keeps_is_asked_for_by_the_key_of_its_maps(client, store, tmp_path):
    """Another slide at the same address has another key, and so have the same maps with other validation."""
    (slide,) = client.get("/api/slides").json()
    page = "".join((PAGE / name).read_text() for name in ("page.js", "panes.js"))
    kept = re.findall(r"`/api/slides/\$\{[^`]*`", page)
    kept = [address for address in kept if "region" not in address]
    assert len(kept) == 5 and all(re.search(r"[?&]of=\$\{[^}]*key\}", address) for address in kept)
    other = tmp_path / "other.maps"
    shutil.copytree(store.folder, other)
    (other / "validation.parquet").write_bytes(b"x")
    keys = {Shown.key.func(types.SimpleNamespace(store=types.SimpleNamespace(folder=folder), signatures=sets))
            for folder in (store.folder, other)
            for sets in ([], [Signature("dark", np.array([1]))], [Signature("dark", np.array([2]))])}  # fmt: skip
    assert len(keys) == 6 and slide["key"] not in keys
    answer = client.get(f"/api/slides/0/places?of={slide['key']}")
    assert answer.headers["cache-control"].endswith("max-age=3600") and "max-age" not in str(
        client.get("/api/slides").headers)  # fmt: skip


def test_tiles_are_the_slides_pixels(client, store):
    """The finest level pixel by pixel, a coarser one as a mean; what lies beyond the slide is cut."""

    def tile(level, column, row) -> np.ndarray:
        answer = client.get(f"/api/slides/0/tiles/{level}/{column}/{row}.jpg")
        assert answer.status_code == 200 and answer.headers["content-type"] == "image/jpeg"
        return np.asarray(Image.open(io.BytesIO(answer.content))).astype(float)

    he = tiny_section("s", "P", 5, width_um=400.0, height_um=300.0).he.astype(float)
    finest = tile(10, 1, 1)
    assert finest.shape == (88, 288, 3) and np.abs(finest - he[512:, 512:]).mean() < 6
    half = tile(9, 0, 0)
    assert half.shape == (300, 400, 3)
    assert np.abs(half - he.reshape(300, 2, 400, 2, 3).mean((1, 3))).mean() < 4
    for nowhere in ("10/2/0", "9999/0/0", "-1/0/0"):
        assert client.get(f"/api/slides/0/tiles/{nowhere}.jpg").status_code == 422


def test_a_region_is_the_mean_of_its_bins(client, store):
    polygon = [(50.0, 50.0), (250.0, 60.0), (200.0, 220.0), (60.0, 180.0)]
    found = client.post("/api/slides/0/region", json={"polygon": polygon}).json()
    x, y = store.x_um_N, store.y_um_N
    inside = np.ones(len(store), bool)
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):  # convex, clockwise on the screen
        inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0
    assert found["bins"] == inside.sum() > 30
    expected = store.genes(np.arange(12))[inside].mean(0)
    assert np.allclose(found["means"]["rates"], expected, rtol=1e-5)
    table = client.post("/api/slides/0/region.csv", json={"polygon": polygon})
    lines = table.text.splitlines()
    assert lines[0] == "symbol,mean_rates" and lines[4].split(",")[0] == "GENE3"
    assert float(lines[4].split(",")[1]) == pytest.approx(expected[3], rel=1e-5)
    for polygon, words in (([(0, 0), (1, 0), (0, 1)], "holds no bin"), ([(0, 0)], "polygon")):
        answer = client.post("/api/slides/0/region", json={"polygon": polygon})
        assert answer.status_code == 422 and words in answer.json()["reason"]


def test_what_is_not_known_is_no_zero(predictor, tiny_corpus, tmp_path):
    """Of measured counts the mean is over bins that were measured; a gene that was not has none."""
    out = tmp_path / "F1.maps"
    asked = Asked(everywhere=True, tissue="virtual")
    found = predict_measured(predictor, tiny_corpus, "F1", out, asked, say=str)
    with contextlib.ExitStack() as stack:
        one = Shown(out, {}, lambda store: [], stack, str)
        read = one.store.run

        def partly(run, array="rates", genes=slice(None)):
            values = read(run, array, genes).copy()
            if array == "measured":
                values[::2, 3] = np.nan
                values[:, 5] = np.nan
            return values

        one.store.run = partly
        polygon = [(-1.0, -1.0), (500.0, -1.0), (500.0, 500.0), (-1.0, 500.0)]
        answer = Client(make_app([one], stack)).post("/api/slides/0/region", json={"polygon": polygon}).json()
        table = Client(make_app([one], stack)).post("/api/slides/0/region.csv", json={"polygon": polygon}).text
    measured = answer["means"]["measured"]
    assert measured[3] == pytest.approx(found.gene("GENE3", "measured")[1::2].mean()) and measured[5] is None
    assert table.splitlines()[6].endswith(",") and answer["means"]["rates"][5] > 0


def test_cell_types_and_cohorts(tmp_path):
    """Markers that come along find the halves of a made slide; a user's set of the same name takes its place."""
    store = write_made_maps(tmp_path / "made.maps")
    (tmp_path / "sets.gmt").write_text("Fibroblasts\town\tACTB\nunknown\tnone\tTNF\n")
    left_N = store.x_um_N < 360
    with contextlib.ExitStack() as stack:
        client = Client(make_app([Shown(store.folder, {}, lambda store: [], stack, str)], stack))
        slide = client.get("/api/slides").json()[0]
        names = [one["name"] for one in slide["signatures"]]
        assert names == ["Epithelium", "Fibroblasts"] and {one["kind"] for one in slide["signatures"]} == {"cell type"}
        assert [cohort["name"] for cohort in slide["cohorts"]] == ["all", "BRCA", "LUAD"]
        found = client.get("/api/slides/0/strongest").content
        types, scores_N = np.frombuffer(found[: len(store)], np.uint8), np.frombuffer(found[len(store) :], "<f4")
        assert np.array_equal(types, np.where(left_N, 0, 1)) and (scores_N > 0).all()
        of_genes = client.get("/api/slides/0/genes").json()["cohorts"]
        assert of_genes["all"]["validated"] == [1, 0, 0, 1, 0, 0, 0, 0]
        assert of_genes["LUAD"]["validated"] == [1, 0, 0, 1, 1, 0, 0, 0]
        region = client.post("/api/slides/0/region", json={"polygon": [[0, 0], [180, 0], [180, 400], [0, 400]]}).json()
        assert region["scores"]["Epithelium"] > 0.5 > -0.5 > region["scores"]["Fibroblasts"]
        said = []
        own = Shown(store.folder, {}, lambda store: read_gmt(tmp_path / "sets.gmt", store.panel), stack, said.append)
        assert [(one.name, one.kind) for one in own.signatures] == [
            ("Epithelium", "cell type"), ("Fibroblasts", "gene set")]  # fmt: skip
        assert any("gene set 'unknown' is left out" in line for line in said)
        region = Client(make_app([own], stack)).post(
            "/api/slides/0/region", json={"polygon": [[0, 0], [180, 0], [9, 400]]}
        )
        assert set(region.json()["scores"]) == {"Epithelium", "Fibroblasts"}


def test_what_is_not_there_is_told(client):
    for path, words in (("values/rates?name=NONE", "'NONE' is not among"), ("values/measured?name=GENE1", "holds no"),
                        ("values/signature?name=x", "no such gene set"), ("values/rates", "name")):  # fmt: skip
        answer = client.get(f"/api/slides/0/{path}")
        assert answer.status_code == 422 and words in answer.json()["reason"], path
    assert client.get("/api/slides/7/genes").status_code == 422 and client.get("/nothing").status_code == 404


def test_everything_comes_from_this_machine(client):
    """No address of another one in the page, and a policy that would not let it be asked."""
    page = client.get("/")
    assert "http" not in page.text.replace("http-equiv", "") and "default-src 'self'" in page.headers[
        "content-security-policy"]  # fmt: skip
    for name in ("page.js", "panes.js", "palettes.js", "page.css", "openseadragon.min.js"):
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200
        if not name.startswith("openseadragon"):
            assert "https://" not in answer.text


def test_another_sites_page_is_not_answered(store):
    with contextlib.ExitStack() as stack:
        client = Client(make_app([shown(store, stack)], stack, ("127.0.0.1", "localhost")))
        assert client.get("/api/slides", headers={"Host": "elsewhere.example"}).status_code == 421
        assert client.get("/api/slides", headers={"Host": "localhost:8010"}).status_code == 200


def test_a_slide_that_moved_is_named(store, tmp_path):
    slide = store.folder.parent / "slide.ome.tif"
    moved = slide.rename(tmp_path / "slide.ome.tif")
    try:
        with contextlib.ExitStack() as stack:
            gone = shown(store, stack)
            assert gone.section is None and "no such slide" in gone.described()["he_missing"]
            refused(lambda: gone.tile(9, 0, 0), "no such slide", "--slide")
            assert shown(store, stack, {"slide.ome.tif": moved}).section is not None
            other = write_pyramid(tmp_path / "other.tif", np.zeros((64, 64, 3), np.uint8))
            refused(lambda: shown(store, stack, {"slide.ome.tif": other}), "64 × 64 px", "had 800 × 600")
    finally:
        moved.rename(slide)


def test_a_slide_that_is_another_now_is_not_shown_and_the_others_are(store, tmp_path):
    """One section that was ingested anew must not close the page to all."""
    other = tmp_path / "other.maps"
    for place, fix in (({"slide": "slide.ome.tif"}, "give it by --slide"),
                       ({"corpus": "c", "section": "A1"}, "ingested anew; predict it again")):  # fmt: skip
        shutil.copytree(store.folder, other, dirs_exist_ok=True)
        held = json.loads((other / FILE).read_text())
        held["about"]["place"] = place
        held["about"]["identity"]["middle_sha256"] = "of other pixels"
        (other / FILE).write_text(json.dumps(held))
        said: list[str] = []
        with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patched:
            patched.setattr(shown_module, "slide_of_maps", lambda about, *rest, **more: slide_of_maps(
                store.about, *rest, **more))  # fmt: skip
            found = Shown(other, {}, lambda store: [], stack, said.append)
        assert found.section is None and found.missing.endswith(fix) and "is another slide" in said[-1]
        assert found.described()["he"] is False
    with contextlib.ExitStack() as stack:
        at = {found.name: store.folder.parent / "slide.ome.tif"}
        refused(lambda: Shown(other, at, lambda store: [], stack, str), "is another slide")


def test_two_maps_of_a_slide_have_two_labels(store, tmp_path):
    other = tmp_path / "finer.maps"
    shutil.copytree(store.folder, other)
    with contextlib.ExitStack() as stack:
        slides = [shown(store, stack), Shown(other, {}, lambda store: [], stack, str)]
        found = Client(make_app(slides, stack)).get("/api/slides").json()
    assert [one["label"] for one in found] == ["slide.ome.tif · slide.maps", "slide.ome.tif · finer.maps"]


def test_an_overview_of_a_slide_without_levels_is_not_read_from_its_px(tmp_path):
    """Its levels are far finer than what is shown: the overview stands for them; else it is read part by part."""
    picture = np.zeros((5000, 4000, 3), np.uint8) + np.arange(4000, dtype=np.uint16)[None, :, None].astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "slide.png")
    store = write_made_maps(tmp_path / "made.maps", slide_px=(4000, 5000), place=tmp_path / "slide.png")
    with contextlib.ExitStack() as stack:
        one = Shown(store.folder, {}, lambda store: [], stack, str)
        read, px = one.section.file.levels[0], []
        kept = read.__class__.__getitem__

        def counted(image, index):
            px.append(np.prod([part.stop - part.start for part in index]))
            return kept(image, index)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(read.__class__, "__getitem__", counted)
            slow = np.asarray(Image.open(io.BytesIO(one.tile(9, 0, 0))))
            assert max(px) <= 4096**2 and slow.shape == (313, 250, 3)
            px.clear()
            imsave(store.folder / "overview.jpg", square_means(picture, 8)[:625, :500])
            fast = np.asarray(Image.open(io.BytesIO(one.tile(9, 0, 0))))
            assert not px and np.abs(fast.astype(float) - slow).mean() < 12
