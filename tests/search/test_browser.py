"""The page for review in a browser; skipped without Playwright and Chromium."""

import contextlib
import shutil
import socket
import threading
import time

import pytest

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")
uvicorn = pytest.importorskip("uvicorn")
api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or pytest.skip(
    "no Chromium", allow_module_level=True
)

from reid_jax.search import gallery as galleries  # noqa: E402
from reid_jax.search import web  # noqa: E402
from reid_jax.search.marks import Marks  # noqa: E402
from tests.search.test_command import made  # noqa: E402, F401


@contextlib.contextmanager
def _served(app, listening):
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=running.run, args=([listening],))
    thread.start()
    try:
        while not running.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as play:
        yield play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.mark.parametrize("width", [1280, 390])
def test_an_operator_reviews(width, browser, made, extractors, photos, tmp_path):  # noqa: F811
    marks = Marks(tmp_path / "marks")
    with (
        galleries.existing(str(made)) as opened,
        socket.create_server(("127.0.0.1", 0)) as listening,
        _served(web.make(opened, extractors["toy"], marks), listening) as place,
    ):
        page = browser.new_page(viewport={"width": width, "height": 844})
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda m: m.type == "error" and wrong.append(m.text))
        page.goto(place)
        page.set_input_files("#file", photos / "2_c1.png")
        cards = page.locator(".card")
        cards.nth(17).wait_for()
        assert "2_c1.png" in cards.nth(0).inner_text()
        cards.nth(1).locator("button.same").click()
        page.locator(".card.same").wait_for()
        cards.nth(1).locator(".open").click()
        page.locator("#large button.unsure").click()
        page.locator(".card.unsure").wait_for()
        page.locator("#shut").click()
        # Of the gallery: before its answers are there, no others can be marked.
        left = []

        def asked(route):
            left.append(cards.count())
            route.continue_()

        page.route("**/api/search*", asked)
        page.locator("#choice button[title$='3_c2.png']").click()
        cards.nth(16).wait_for()
        page.unroute("**/api/search*")
        assert left == [0]
        page.locator("#asked").wait_for(state="hidden")
        # Filtered: a phone has its filters folded.
        if width < 760:
            page.locator("summary").click()
        page.fill("#camera", "0")
        page.locator("#camera").press("Tab")
        page.get_by_text("6 nearest").wait_for()
        assert all("_c0.png" in text for text in cards.all_inner_texts())
        wide = page.evaluate("document.documentElement.scrollWidth")
        page.close()
    assert wide == width  # nothing has to be scrolled sideways
    assert wrong == []
    assert marks.counts() == {"same": 0, "different": 0, "unsure": 1}
    marks.close()
