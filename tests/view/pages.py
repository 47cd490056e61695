"""The page of maps in a real browser: served on this machine, opened in Chromium."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from find_chromium import chromium

from tario_jax.serve.server import bind
from tario_jax.view.app import make_app
from tario_jax.view.patients import PatientMap
from tario_jax.view.shown import Shown

SIZE = {"width": 1280, "height": 800}


@contextlib.contextmanager
def served(folders: list[Path], patients: Callable[[list[Shown]], PatientMap] | None = None) -> Iterator[str]:
    """The address of the page."""
    stack = contextlib.ExitStack()
    slides = [Shown(folder, {}, lambda store: [], stack, str) for folder in folders]
    bound = bind("127.0.0.1", 0)
    app = make_app(slides, stack, ("127.0.0.1",), patients and patients(slides))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        bound.close()


@contextlib.contextmanager
def chromium_browser() -> Iterator:
    """Skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not here; pip install playwright")
    try:
        program = chromium()
    except RuntimeError as error:
        pytest.skip(str(error))
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(page, address: str, link: str = "") -> None:
    page.goto(f"{address}/{link}")
    page.wait_for_selector("body[data-ready='1']", timeout=20_000)


def shows(page, what: str) -> None:
    page.wait_for_selector(f"#panes[data-shown='{what}']", timeout=20_000)
