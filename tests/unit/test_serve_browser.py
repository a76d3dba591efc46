"""The web page in a real browser: two versions side by side, the keyboard, a phone, promote behind the token."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everclip.sealing import sealed
from everclip.store.paths import MANIFEST
from everclip.store.records import Gate
from everclip.store.versions import Store
from serving import TOKEN, copied, image, running, two_versions

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}
GATES = [
    Gate(
        name="retention", state="pass", value=0.002, low=-0.004, high=0.008, limit=0.01, reason="within 0.01"
    ),
    Gate(name="gain", state="pass", value=0.12, low=0.07, high=0.17, limit=0.0, reason="above 0"),
]


@pytest.fixture
def store(micro_folder: Path, tmp_path: Path) -> Store:
    made = two_versions(tmp_path / "made", micro_folder / "model")
    store = copied(made, tmp_path)
    second = store.version("v0002").model_copy(update={"gates": GATES})
    (store.folder("v0002") / MANIFEST).write_text(sealed(second))
    return store


@pytest.fixture
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as play:
        made = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


def opened(browser: Any, url: str, **options: Any) -> tuple[Any, list[str]]:
    """Open the page; also return what the browser complains about and every address that it asks outside."""
    page = browser.new_page(**options)
    page.set_default_timeout(120_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
    page.on(
        "request",
        lambda of: faults.append(of.url) if not of.url.startswith((url, "blob:", "data:")) else None,
    )
    page.goto(url)
    until(page, "#status", "serves")
    return page, faults


def until(page: Any, place: str, text: str) -> None:
    """Wait until an element holds a text. (Functions that wait inside the page are refused by its policy.)"""
    from playwright.sync_api import expect

    expect(page.locator(place)).to_contain_text(text, timeout=120_000)


def picture(page: Any, name: str) -> None:
    """Keep a screenshot for people, if `EVERCLIP_SCREENSHOTS` names a folder."""
    if folder := os.environ.get("EVERCLIP_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def fits(page: Any) -> bool:
    """Whether nothing sticks out sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_the_page(browser: Any, store: Store, tmp_path: Path, size: Any, scheme: Any) -> None:
    name = "desktop" if size is DESKTOP else "phone"
    (tmp_path / "image.png").write_bytes(image(3, 200))
    with running(store, beside=("v0002",)) as url:
        page, faults = opened(browser, url, viewport=size, color_scheme=scheme)
        page.set_input_files("#classify-image", str(tmp_path / "image.png"))
        page.fill("#classify-names", "<b>red</b>\ngreen\nblue\nround\nsquare")
        page.click("#classify-form button")
        page.wait_for_selector("#classify-answers .card:nth-child(2)")
        heads = page.locator("#classify-answers h3").all_inner_texts()
        assert heads == ["v0001 (serves)", "v0002"]
        assert "<b>red</b>" in page.locator("#classify-answers").inner_text()  # as text, not as HTML
        assert page.locator("#classify-answers b").count() == 0
        picture(page, f"{name}-classify")
        assert fits(page)

        page.click("#tab-versions")
        assert page.locator("#version-list .card").count() == 2
        assert page.locator("#curves svg").count() == 2
        picture(page, f"{name}-versions")
        assert fits(page)

        page.click("text=Promote v0002")  # without the token
        until(page, "#service-error", "Give the token")
        page.fill("#token", "a wrong token")
        page.click("#rollback")
        until(page, "#service-error", "missing or wrong")
        picture(page, f"{name}-service")
        assert fits(page)
        faults[:] = [fault for fault in faults if "401" not in fault and "404" not in fault]
        page.fill("#token", TOKEN)
        page.click("#tab-versions")
        page.click("text=Promote v0002")
        until(page, "#status", "v0002 serves")
        assert store.current.version == "v0002"
        page.click("#tab-service")
        page.click("#rollback")
        until(page, "#status", "v0001 serves")

        page.click("#tab-search")
        assert (page.input_value("#left"), page.input_value("#right")) == ("v0001", "v0002")
        page.fill("#search-text", "red")
        page.keyboard.press("Enter")
        until(page, "#search-error", "no search index")
        picture(page, f"{name}-search")
        page.fill("#search-text", " ")
        page.click("#search-form button")
        until(page, "#search-error", "Give a text or an image.")
        assert [fault for fault in faults if "404" not in fault] == []


def test_a_version_without_vectors_leaves_the_other_one_its_answer(
    browser: Any, store: Store, micro_folder: Path
) -> None:
    pytest.importorskip("lancedb")
    from everclip.search.adding import add, images_of
    from everclip.search.index import Index
    from everclip.store.indexed import model_of

    for images in images_of([str(micro_folder / "reference.parquet")], "id"):
        add(Index.create(store.path), model_of(store, "v0002"), images)
    with running(store, beside=("v0002",)) as url:  # as after an update, before `reindex`
        page, _ = opened(browser, url, viewport=PHONE)
        page.click("#tab-search")
        page.fill("#search-text", "red")
        page.keyboard.press("Enter")
        until(page, "#search-answers .card:nth-child(1)", "no vectors of v0001")
        assert page.locator("#search-answers .card:nth-child(2) img").count() == 12
        assert page.locator("#search-note").inner_text() == ""
        assert page.locator("#search-answers .only").count() == 0
        page.select_option("#right", "")
        page.click("#search-form button")
        until(page, "#search-error", "no vectors of v0001")
        assert fits(page)


def test_the_keyboard_reaches_everything(browser: Any, store: Store) -> None:
    with running(store) as url:
        page, _ = opened(browser, url, viewport=DESKTOP)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "tab-classify"
        for expected in ("tab-search", "tab-versions", "tab-service", "tab-classify"):
            page.keyboard.press("ArrowRight")
            assert page.evaluate("document.activeElement.id") == expected
        reached = []
        for _ in range(7):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert reached[:2] == ["left", "right"]
        assert {"classify-image", "classify-names", "classify-template"} <= set(reached)
        assert "BUTTON" in reached
        unnamed = page.evaluate(
            "[...document.querySelectorAll('input, select, textarea')].filter(x => !x.labels.length).length"
        )
        assert unnamed == 0
