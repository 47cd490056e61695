"""The map of all patients on the page: who is there, a click that opens a slide, colours, a link that restores it."""

import contextlib

import numpy as np
import pytest
from made_maps import SYMBOLS, write_made_maps
from made_patients import made_row, made_store
from pages import SIZE, chromium_browser, opened, served

from tario_jax.corpus.read import Corpus
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.vectors import PREDICTED
from tario_jax.view.patients import PatientMap
from tario_jax.view.shown import Shown

NAMES = tuple(f"P{at:02d}" for at in range(30))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> EmbeddingStore:
    rng = np.random.default_rng(0)
    rows = [made_row(name, 6 + rng.normal(0, 0.5, len(SYMBOLS)) + 3 * (at % 2) * (np.arange(len(SYMBOLS)) < 4),
                     cohort=("LUAD", "OV")[at % 2]) for at, name in enumerate(NAMES)]  # fmt: skip
    rows.append(made_row("P07", rows[7].expression_G, cohort="OV", section="P07_border"))
    return made_store(tmp_path_factory.mktemp("viewed") / "x.embeddings", SYMBOLS, rows, checkpoint="none")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list:
    root = tmp_path_factory.mktemp("maps")
    return [write_made_maps(root / name, section=section).folder
            for name, section in (("a.maps", "elsewhere"), ("b.maps", "P07_core"),
                                  ("c.maps", "P07_border"))]  # fmt: skip


def corpus(store) -> Corpus:
    table = tuple({"patient": name, "cohort": "?", "EGFR": ("true", "false", "")[at % 3]}
                  for at, name in enumerate(NAMES))  # fmt: skip
    return Corpus(store.folder, store.panel, "virtual", "", table, ())


def patients_of(store):
    return lambda slides: PatientMap(store, [corpus(store)], ("EGFR",), slides, str)


def test_patients_slides_and_columns(store, folders, tmp_path):
    said: list[str] = []
    slides = [Shown(folder, {}, lambda store: [], contextlib.ExitStack(), str) for folder in folders]
    found = PatientMap(store, [corpus(store)], (), slides, said.append)
    told = found.described()
    assert told["names"] == [*NAMES, "elsewhere"] and told["kinds"][-1] == "slide" and len(found) == 31
    assert told["slides"][NAMES.index("P07")] == [1, 2] and told["slides"][-1] == [0]
    assert sum(map(len, told["slides"])) == 3
    columns = {one["name"]: one for one in told["columns"]}
    assert [columns["EGFR"]["values"][code] if code >= 0 else "" for code in columns["EGFR"]["codes"][:3]] == [
        "true", "false", ""] and columns["EGFR"]["codes"][-1] == -1  # fmt: skip
    assert "cohort" in columns and "cluster" in columns and "no advice" in told["note"] and "Virtual" in told["banner"]
    x, y = np.frombuffer(found.places(), "<f4").reshape(2, -1)
    cohort = np.arange(30) % 2
    middle = [np.array([x[:30][cohort == k].mean(), y[:30][cohort == k].mean()]) for k in range(2)]
    inside = [np.hypot(x[:30] - at[0], y[:30] - at[1]) for at in middle]
    assert ((inside[0] < inside[1]) == (cohort == 0)).mean() > 0.95
    other = made_store(tmp_path / "other.embeddings", SYMBOLS, store.rows(PREDICTED), checkpoint="another")
    assert len(PatientMap(other, [], (), slides, said.append)) == 30
    assert "not on the map" in said[-1] and "of checkpoint none" in said[-1]


@pytest.fixture(scope="module")
def browser():
    with chromium_browser() as browser:
        yield browser


def place_of(page, name: str) -> tuple[float, float]:
    """Where a patient is drawn, found as a person does: by name, and the ring around it."""
    page.fill("#patients input", name)
    box = page.locator("#patients canvas").bounding_box()
    ring = page.evaluate("""() => {
      const canvas = document.querySelector("#patients canvas"), ratio = devicePixelRatio;
      const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const dark = [];
      for (let i = 0; i < data.length; i += 4)
        if (data[i + 3] > 200 && Math.max(data[i], data[i + 1], data[i + 2]) < 60)
          dark.push([((i / 4) % width) / ratio, Math.floor(i / 4 / width) / ratio]);
      return dark;
    }""")
    return box, np.array(ring)


def test_a_click_opens_the_slide_and_a_link_restores_the_map(browser, store, folders):
    with served(folders, patients_of(store)) as address:
        context = browser.new_context(viewport=SIZE, color_scheme="light")
        page, wrong = context.new_page(), []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        opened(page, address)
        assert page.locator("#patients").is_hidden() and "31 patients" in page.inner_text("#patients-button")
        page.keyboard.press("p")
        page.wait_for_selector("#patients canvas[data-drawn='cohort:31']")
        assert page.input_value("#slide") == "0" and "no advice on a treatment" in page.inner_text("#patients")
        page.select_option("#patients select", label="EGFR")
        page.wait_for_selector("#patients canvas[data-drawn='EGFR:31']")
        assert [row.split(" (")[0] for row in page.locator("#patients .legend button").all_inner_texts()] == [
            "false", "true", "not known"]  # fmt: skip
        page.fill("#patients input", "p03")
        assert page.inner_text("#patients output").startswith("P03: cohort OV, EGFR true")
        assert page.is_disabled("#patients button[data-part=open]")
        box, before = place_of(page, "")
        _, after = place_of(page, "P07")  # whose ring is wider, and its slide is here
        assert "its 2 slides are here" in page.inner_text("#patients output")
        fresh = {tuple(at) for at in after} - {tuple(at) for at in before}
        x, y = np.mean(list(fresh), 0)
        page.fill("#patients input", "")
        for slide in ("1", "2", "1"):  # core and border, and again
            page.mouse.click(box["x"] + x, box["y"] + y)
            for _ in range(100):
                if page.input_value("#slide") == slide:
                    break
                page.wait_for_timeout(50)
            assert page.input_value("#slide") == slide
        assert page.inner_text("#patients output").startswith("P07")
        page.wait_for_timeout(400)
        link = page.url.partition("/#")[2]
        assert "patients=EGFR" in link
        again = context.new_page()
        opened(again, address, f"#{link}")
        again.wait_for_selector("#patients canvas[data-drawn='EGFR:31']")
        assert again.input_value("#slide") == "1"
        again.keyboard.press("p")
        assert again.locator("#patients").is_hidden()
        context.close()
        assert not wrong


def test_a_page_without_patients_has_no_map_of_them(browser, folders):
    with served(folders[:1]) as address:
        page = browser.new_page()
        opened(page, address)
        assert page.locator("#patients-button").is_hidden()
        answer = page.request.get(f"{address}/api/patients")
        assert answer.status == 422 and "--patients=NAME.embeddings" in answer.json()["reason"]
        page.close()
