"""The page in a real browser, as somebody uses it who has never seen it: on the bundled model, from draw to upload."""

import pytest

from app_server import CHROMIUM, CLOSED, needs_chromium, needs_gradio, pictures_of, serving
from profusion_pipeline.app.inputs import CONCEPT, PHOTOS
from profusion_pipeline.app.studio import Studio
from profusion_pipeline.demo import load_demo_pipeline

pytestmark = [needs_gradio, needs_chromium, pytest.mark.slow, pytest.mark.filterwarnings("default")]
MINUTE = 60_000


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CLOSED)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with serving(Studio(load_demo_pipeline(), model="demo"), tmp_path_factory.mktemp("uploads")) as address:
        yield address


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(5 * MINUTE)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("#draw")
    yield page
    strangers = {url for url in asked if not url.startswith((address, "data:", "blob:"))}
    page.close()
    assert not strangers  # the page asks nobody but its own server


def set_slider(page, name: str, value: int) -> None:
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.blur()


def open_all(page) -> None:
    page.get_by_text("Advanced", exact=True).click()


def drawn(page, other_than: list[bytes] | None = None) -> list[bytes]:
    """The pictures of the page, once they are there and others than those of before."""
    page.wait_for_selector("#pictures .gallery")
    for _ in range(5 * 60 * 5):  # five minutes
        found = pictures_of(page.inner_html("#pictures"))
        if found and found != other_than:
            return found
        page.wait_for_timeout(200)
    raise AssertionError("After five minutes the pictures are still those of before.")


def test_from_the_first_picture_to_a_concept_of_ones_own(page, tmp_path):
    open_all(page)
    page.locator("#prompts textarea").fill("a portrait of S*, at the beach")
    set_slider(page, "steps", 2)
    page.locator("#seed input").fill("1")
    page.click("#draw")
    first = drawn(page)
    assert len(first) == 1

    # A knob is turned: the same noise, another picture.
    set_slider(page, "position", 1)
    page.click("#draw")
    drawn(page, other_than=first)

    # Where S* comes from decides what is asked for.
    assert page.locator("#portrait").is_visible() and not page.locator("#photos").is_visible()

    # Customise for a few steps, take the file home, and come back with it.
    page.get_by_role("tab", name="Customise").click()
    page.locator("#learning-steps input").fill("3")
    caption = page.locator("#caption textarea, #caption input")
    page.click("#describe")
    page.wait_for_function("document.querySelector('#caption textarea, #caption input').value.includes('overalls')")
    caption.fill("wearing a hoodie")
    page.click("#customise")
    page.wait_for_selector("#download a")
    assert page.locator("#curve svg").count() == 1 and len(pictures_of(page.inner_html("#before-after"))) == 1
    with page.expect_download() as download:
        page.click("#download a")
    download.value.save_as(tmp_path / "concept.safetensors")
    page.reload()
    page.wait_for_selector("#draw")
    open_all(page)
    page.get_by_label(CONCEPT, exact=True).check()
    page.set_input_files("#concept-file input[type=file]", tmp_path / "concept.safetensors")
    page.wait_for_selector("#concept-shown code")
    set_slider(page, "steps", 2)
    page.click("#draw")
    assert len(drawn(page)) == 2

    # Uploads that are none are told in the page, in a sentence without the place of the file.
    (tmp_path / "text.png").write_text("no picture")
    page.get_by_label(PHOTOS).check()
    page.set_input_files("#photos input[type=file]", tmp_path / "text.png")
    page.get_by_text("text.png").first.wait_for()
    page.click("#draw")
    toast = page.get_by_test_id("toast-body").filter(has_text="Pillow can read, 'text.png' is not one")
    toast.wait_for()
    assert "/" not in toast.inner_text().replace("text.png", "")
