"""The page in a browser: a gene is found and painted, panes keep in step, a region is exported, a link restores all."""

import contextlib
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from made_maps import write_made_maps
from made_slides import write_pyramid
from pages import SIZE, chromium_browser, opened, served, shows
from tiny_tissue import tiny_section

from tario_jax.predict.map_store import MapStore
from tario_jax.predict.slide_job import Asked, predict_measured, predict_slide
from tario_jax.view.shown import Shown


@pytest.fixture(scope="module")
def store(predictor, tmp_path_factory) -> MapStore:
    folder = tmp_path_factory.mktemp("paged")
    slide = write_pyramid(folder / "slide.ome.tif", tiny_section("s", "P", 5, width_um=900.0, height_um=600.0).he,
                          ome=True, px_per_cm=20_000)  # fmt: skip
    asked = Asked(everywhere=True, tissue="virtual", spread=True)
    return predict_slide(predictor, slide, folder / "slide.maps", asked, say=str)


@pytest.fixture(scope="module")
def address(store) -> Iterator[str]:
    with served([store.folder]) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with chromium_browser() as browser:
        yield browser


@pytest.fixture
def page(browser, address):
    """Fails the test where the page says an error, or asks another machine for something."""
    context = browser.new_context(viewport=SIZE, accept_downloads=True)
    page = context.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:"))
            else wrong.append(request.url))  # fmt: skip
    yield page
    context.close()
    assert not wrong


def painted(page, pane: str) -> np.ndarray:
    """The map of a pane as it was painted: uint8 [rows, columns, 4]."""
    values = page.evaluate("""(pane) => {
      const canvas = document.querySelector(`[data-pane=${pane}] canvas.map`);
      const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return [canvas.height, canvas.width, Array.from(data.data)];
    }""", pane)  # fmt: skip
    return np.array(values[2], np.uint8).reshape(values[0], values[1], 4)


def settled(page) -> bytes:
    """The H&E as it is once nothing changes any more."""
    canvas = page.locator("[data-pane=he] .viewer canvas").first
    seen = canvas.screenshot()
    for _ in range(40):
        page.wait_for_timeout(500)
        before, seen = seen, canvas.screenshot()
        if seen == before:
            return seen
    pytest.fail("the H&E still changes after 20 s")


def views(page) -> list[list[float]]:
    return [[float(word) for word in box.get_attribute("data-view").split()] for box in page.locator(".pane").all()]


def test_a_gene_is_searched_and_painted(page, address, store):
    opened(page, address)
    page.fill("#search", "gene7")
    page.press("#search", "Enter")
    shows(page, "gene:GENE7")
    found = painted(page, "rates")
    value_N = store.gene("GENE7")
    row_N, column_N = (np.floor(at / 18).astype(int) for at in (store.y_um_N, store.x_um_N))
    assert (found[row_N, column_N, 3] == 255).all() and (found[..., 3] > 0).sum() == len(store)
    brightness_N = found[row_N, column_N, :3].astype(float).sum(1)
    below = value_N < np.quantile(value_N, 0.99)
    assert np.corrcoef(value_N[below].argsort().argsort(), brightness_N[below].argsort().argsort())[0, 1] > 0.98
    assert page.locator("#genes li[aria-selected=true]").inner_text().startswith("GENE7")
    assert page.locator("[data-pane=he] .viewer canvas").count() and float(
        page.get_attribute("#panes", "data-shown-ms")) < 2000  # fmt: skip


def test_panes_keep_in_step_and_follow_the_mouse(page, address, store):
    opened(page, address, "#name=GENE3&panes=he.rates.spread")
    shows(page, "gene:GENE3")
    assert page.locator(".pane").count() == 3
    box = page.locator("[data-pane=rates]").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.wait_for_timeout(300)
    before = views(page)
    assert np.ptp(before, 0).max() < 0.5
    page.mouse.move(*middle)
    page.mouse.wheel(0, -600)
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1] + 40, steps=5)
    page.mouse.up()
    page.wait_for_timeout(1200)
    after = views(page)
    assert after[0][2] > 1.1 * before[0][2]  # it zoomed
    assert np.ptp(after, 0).max() < 1.0, after
    page.mouse.move(*middle)
    page.wait_for_function("document.querySelector('#pointer').textContent.includes('bin')")
    told = page.inner_text("#pointer")
    number = int(told.partition("bin ")[2].partition(":")[0])
    value = float(told.partition("predicted ")[2].partition(",")[0])
    assert value == pytest.approx(float(store.gene("GENE3")[number]), rel=1e-3)


def test_a_region_is_exported_with_the_stores_numbers(page, address, store, tmp_path):
    opened(page, address, "#name=GENE3")
    shows(page, "gene:GENE3")
    page.keyboard.press("r")
    box = page.locator("[data-pane=rates]").bounding_box()
    x, y, width, height = (box[name] for name in ("x", "y", "width", "height"))
    page.mouse.move(x + 0.3 * width, y + 0.4 * height)
    page.mouse.down()
    for right, down in ((0.7, 0.42), (0.65, 0.6), (0.35, 0.58)):
        page.mouse.move(x + right * width, y + down * height, steps=4)
    page.mouse.up()
    page.wait_for_selector("#selected[data-bins]")
    bins = int(page.get_attribute("#selected", "data-bins"))
    assert 20 < bins < len(store)
    with page.expect_download() as download:
        page.click("#export")
    path = tmp_path / "region.csv"
    download.value.save_as(path)
    corners = page.evaluate("new URLSearchParams(location.hash.slice(1)).get('region')")
    page.wait_for_timeout(400)
    corners = page.evaluate("new URLSearchParams(location.hash.slice(1)).get('region')") or corners
    polygon = np.array([[float(part) for part in corner.split("_")] for corner in corners.split("~")])
    with contextlib.ExitStack() as stack:
        inside = Shown(store.folder, {}, lambda store: [], stack, str).inside(polygon)
    assert abs(len(inside) - bins) <= 2  # the link has whole µm
    lines = [line.split(",") for line in path.read_text().splitlines()]
    assert lines[0] == ["symbol", "mean_rates", "mean_spread"] and len(lines) == 13
    if len(inside) == bins:
        assert float(lines[4][1]) == pytest.approx(store.gene("GENE3")[inside].mean(), rel=1e-5)
    page.reload()
    page.wait_for_selector("#selected[data-bins]")
    assert abs(int(page.get_attribute("#selected", "data-bins")) - bins) <= 2


def test_a_link_restores_what_was_seen(page, address):
    opened(page, address, "#name=GENE3&panes=he.rates")
    shows(page, "gene:GENE3")
    page.select_option("#palette", "viridis")
    page.fill("#high", "2.5")
    page.press("#high", "Enter")
    page.locator("#opacity").fill("0.45")
    box = page.locator("[data-pane=he]").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.wheel(0, -900)
    page.wait_for_timeout(1500)
    before, link = views(page), page.evaluate("location.hash")
    assert all(word in link for word in ("viridis", "high=2.5", "opacity=0.45", "name=GENE3"))
    page.reload()
    page.wait_for_selector("body[data-ready='1']")
    shows(page, "gene:GENE3")
    page.wait_for_timeout(800)
    assert np.allclose(views(page), before, atol=1.0)
    assert page.input_value("#high") == "2.5" and page.input_value("#palette") == "viridis"


def test_it_can_be_used_without_a_mouse(page, address):
    opened(page, address)
    page.keyboard.press("/")
    page.keyboard.type("GENE1")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("#panes[data-shown='gene:GENE10']")
    unnamed = page.evaluate("""() => [...document.querySelectorAll("button, input, select, [role]")].filter((one) =>
      !(one.getAttribute("aria-label") || one.textContent.trim() || one.labels?.length || one.title
        || one.hidden || one.closest("[hidden]"))).map((one) => one.outerHTML)""")  # fmt: skip
    assert unnamed == []
    page.click("#theme")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark


def test_what_was_measured_stands_beside_what_is_predicted(browser, predictor, tiny_corpus, tmp_path):
    out = tmp_path / "F1.maps"
    found = predict_measured(predictor, tiny_corpus, "F1", out, Asked(everywhere=True, tissue="virtual"), say=str)
    with served([out]) as address:
        page = browser.new_page(viewport=SIZE)
        opened(page, address, "#name=GENE4&panes=he.measured.rates")
        shows(page, "gene:GENE4")
        assert page.locator(".pane").count() == 3
        row_N, column_N = (np.floor(at / 18).astype(int) for at in (found.y_um_N, found.x_um_N))
        none_N = found.gene("GENE4", "measured") == 0
        dark = painted(page, "measured")[row_N[none_N], column_N[none_N]]
        assert none_N.any() and (dark == dark[0]).all()  # no detection: the darkest colour of the one scale
        page.wait_for_timeout(300)
        assert np.ptp(views(page), 0).max() < 0.5  # from the start
        page.close()


def test_genes_are_ranked_and_greyed_by_cohort_and_cell_types_are_told(browser, tmp_path):
    store = write_made_maps(tmp_path / "made.maps")
    with served([store.folder]) as address:
        page = browser.new_page(viewport=SIZE)
        opened(page, address, "#panes=rates")

        def listed(what: str) -> list[str]:
            return [row.get_attribute("data-name") for row in page.locator(f"#genes li{what}").all()]

        assert listed(":not(.unknown)") == ["COL1A1", "EPCAM"]  # the larger excess first
        assert set(listed("")[:2]) == {"EPCAM", "COL1A1"} and len(listed(".unknown")) == 6
        assert "not validated" in page.locator("#genes li.unknown").first.inner_text()
        page.select_option("#cohort", "LUAD")
        assert listed(":not(.unknown)") == ["DCN", "COL1A1", "EPCAM"]
        page.select_option("#cohort", "BRCA")
        assert listed(":not(.unknown)") == ["EPCAM"]
        assert page.locator("[data-list='gene set']").is_disabled()
        page.click("[data-list='cell type']")
        assert listed("") == ["Epithelium", "Fibroblasts"]
        page.click("#genes li >> nth=1")
        shows(page, "signature:Fibroblasts")
        page.wait_for_selector("body[data-types='0']")
        box = page.locator("[data-pane=rates]").bounding_box()
        page.mouse.move(box["x"] + 0.65 * box["width"], box["y"] + 0.5 * box["height"])
        page.wait_for_function("document.querySelector('#pointer').textContent.includes('strongest')")
        assert "Fibroblasts score" in page.inner_text("#pointer")
        assert "strongest cell type Fibroblasts" in page.inner_text("#pointer")
        page.wait_for_timeout(400)  # the link follows
        page.reload()
        page.wait_for_selector("body[data-ready='1']")
        shows(page, "signature:Fibroblasts")
        assert listed("") == ["Epithelium", "Fibroblasts"] and page.input_value("#cohort") == "BRCA"
        page.keyboard.press("r")
        box = page.locator("[data-pane=rates]").bounding_box()
        x, y, width, height = (box[name] for name in ("x", "y", "width", "height"))
        page.mouse.move(x + 0.7 * width, y + 0.45 * height)
        page.mouse.down()
        for right, down in ((0.8, 0.45), (0.8, 0.55), (0.7, 0.55)):
            page.mouse.move(x + right * width, y + down * height, steps=3)
        page.mouse.up()
        page.wait_for_selector("#selected[data-bins]")
        assert page.locator("#selected-sets li").first.inner_text().startswith("Fibroblasts +")
        page.close()


def test_keys_do_what_they_say_and_nothing_else(page, address, store):
    opened(page, address, "#name=GENE3&panes=he.rates")
    shows(page, "gene:GENE3")
    box = page.locator("[data-pane=he]").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)  # the pane has the keys now
    before = settled(page)  # tiles may still come
    for key in ("r", "r", "f", "F"):  # a region is begun and left again; nothing turns, nothing is mirrored
        page.keyboard.press(key)
    page.mouse.move(5, 5)
    page.wait_for_timeout(600)
    assert settled(page) == before
    page.keyboard.press("v")  # all bins are in view
    page.wait_for_selector("#selected[data-bins]")
    assert int(page.get_attribute("#selected", "data-bins")) == len(store)
    page.fill("#search", "GENE5")
    page.press("#search", "Enter")
    shows(page, "gene:GENE5")
    assert "GENE5 (shown)" in page.inner_text("#selected-genes")
    page.fill("#high", "-5")
    page.press("#high", "Enter")
    page.wait_for_timeout(300)
    assert page.input_value("#high") == "" and not page.inner_text("#range").startswith("0.0 to -")


def test_a_slide_that_comes_late_is_not_shown_as_another(browser, store, tmp_path):
    """Places and values that arrive after another slide was chosen are let go; the link tells slides apart."""
    made = write_made_maps(tmp_path / "made.maps")
    twin = tmp_path / "twin.maps"
    shutil.copytree(made.folder, twin)
    with served([store.folder, made.folder, twin]) as address:
        page = browser.new_page(viewport=SIZE)
        held = []
        page.route("**/api/slides/1/places?*", lambda route: held.append(route))
        opened(page, address, "#name=GENE3&panes=rates")
        shows(page, "gene:GENE3")
        expected = painted(page, "rates")
        page.select_option("#slide", "1")
        page.wait_for_timeout(400)
        page.select_option("#slide", "0")
        page.wait_for_timeout(400)
        assert held
        held[0].continue_()
        page.wait_for_timeout(800)
        assert np.array_equal(painted(page, "rates"), expected) and page.input_value("#slide") == "0"
        page.select_option("#slide", "2")
        page.wait_for_function("document.querySelector('#about').textContent.startsWith('240 bins')")
        page.wait_for_timeout(600)
        page.reload()
        page.wait_for_selector("body[data-ready='1']")
        assert page.input_value("#slide") == "2"  # of two maps of one slide the one that was looked at
        page.close()


def test_a_score_takes_the_place_of_genes_in_every_pane(browser, tmp_path):
    store = write_made_maps(tmp_path / "made.maps", more=("measured",))
    with served([store.folder]) as address:
        page = browser.new_page(viewport=SIZE)
        opened(page, address, "#name=DCN&panes=he.measured")
        shows(page, "gene:DCN")
        page.click("[data-list='cell type']")
        page.click("#genes li >> nth=0")
        shows(page, "signature:Epithelium")
        assert page.locator("[data-pane=rates] canvas.map").count() == 1  # it is shown where it is of
        assert page.locator("[data-pane=measured] canvas.map").count() == 0
        assert "of genes alone" in page.inner_text("[data-pane=measured] .name")
        page.set_viewport_size({"width": 360, "height": 700})
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.close()


def test_he_that_cannot_be_read_is_said(page, address):
    page.route("**/tiles/**", lambda route: route.fulfill(status=422, content_type="application/json",
                                                          body='{"reason": "the slide: is damaged"}'))  # fmt: skip
    opened(page, address, "#name=GENE3")
    page.wait_for_selector("#error:not([hidden])")
    assert page.inner_text("#error") == "the slide: is damaged"


def test_an_error_is_shown(page, address):
    opened(page, address, "#name=GENE3")
    shows(page, "gene:GENE3")
    page.route("**/values/**", lambda route: route.fulfill(status=422, content_type="application/json",
                                                          body='{"reason": "the disk: is gone"}'))  # fmt: skip
    page.fill("#search", "GENE5")
    page.press("#search", "Enter")
    page.wait_for_selector("#error:not([hidden])")
    assert page.inner_text("#error") == "the disk: is gone"
