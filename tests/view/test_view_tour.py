"""A walk through the page as docs/slides_tutorial.md tells it; its pictures are those of docs/slides.

TARIO_TOUR: folders of maps to walk through, with : between them, a slide's and a measured section's; else small ones
are made. TARIO_SCREENSHOTS: where the pictures go; else none are taken.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from made_maps import write_made_maps
from made_slides import write_pyramid
from pages import SIZE, chromium_browser, opened, served, shows
from tiny_tissue import tiny_section

from tario_jax.predict.map_store import MapStore
from tario_jax.predict.slide_job import Asked, predict_slide


@pytest.fixture(scope="module")
def browser():
    with chromium_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def folders(predictor, tmp_path_factory) -> list[Path]:
    if named := os.environ.get("TARIO_TOUR"):
        return [Path(name) for name in named.split(os.pathsep)]
    folder = tmp_path_factory.mktemp("tour")
    picture = tiny_section("s", "P", 5, width_um=400.0, height_um=300.0).he
    slide = write_pyramid(folder / "slide.ome.tif", picture, ome=True, px_per_cm=20_000)
    predict_slide(
        predictor, slide, folder / "slide.maps", Asked(everywhere=True, tissue="virtual", spread=True), say=str
    )
    return [folder / "slide.maps", write_made_maps(folder / "made.maps").folder]


def picture(page, name: str) -> None:
    if folder := os.environ.get("TARIO_SCREENSHOTS"):
        page.wait_for_timeout(1500)  # tiles fade in
        page.screenshot(path=Path(folder) / f"{name}.jpg", type="jpeg", quality=82)


def drawn_around(page, pane: str, shares: list[tuple[float, float]]) -> None:
    """A region with these corners, as shares of a pane's width and height."""
    box = page.locator(f"[data-pane={pane}]").bounding_box()
    at = [(box["x"] + right * box["width"], box["y"] + down * box["height"]) for right, down in shares]
    page.keyboard.press("r")
    page.mouse.move(*at[0])
    page.mouse.down()
    for corner in at[1:]:
        page.mouse.move(*corner, steps=4)
    page.mouse.up()
    page.wait_for_selector("#selected[data-bins]")


def test_the_walk(browser, folders):
    slide, section = (MapStore(folder) for folder in folders)
    with served(folders) as address:
        page = browser.new_page(viewport=SIZE)
        opened(page, address)
        assert page.locator("#slide option").all_inner_texts() == [slide.about["section"], section.about["section"]]
        gene = page.get_attribute("#genes li", "data-name")  # the first of the list
        page.fill("#search", gene)
        page.press("#search", "Enter")
        shows(page, f"gene:{gene}")
        assert page.inner_text("#genes li[aria-selected=true]").startswith(gene)
        picture(page, "gene")
        page.fill("#search", "")
        if "spread" in slide.arrays:
            page.keyboard.press("Escape")
            page.click("#pane-spread")
            shows(page, f"gene:{gene}")
            assert page.locator(".pane").count() == 3
            picture(page, "deviation")
        page.select_option("#slide", label=section.about["section"])
        name = gene if gene in section.panel.symbols else section.panel.symbols[0]
        page.fill("#search", name)
        page.press("#search", "Enter")
        shows(page, f"gene:{name}")
        if "measured" in section.arrays:
            page.click("#pane-measured")
            shows(page, f"gene:{name}")
            assert np.isfinite(section.gene(name, "measured")).any()
            picture(page, "measured")
            page.click("#pane-measured")
        page.fill("#search", "")
        if page.locator("[data-list='cell type']").is_enabled():
            page.click("[data-list='cell type']")
            page.click("#genes li >> nth=0")
            page.wait_for_selector("#panes[data-shown^='signature:']")
        page.locator("#pane-rates").focus()
        drawn_around(page, "rates", [(0.4, 0.4), (0.6, 0.42), (0.58, 0.6), (0.42, 0.58)])
        assert int(page.get_attribute("#selected", "data-bins")) > 0
        page.click("#theme")
        picture(page, "cell_types")
        page.close()
