"""The page of the human study in Chromium, as a rater uses it; skipped where playwright or Chromium is missing."""

import json

import pytest
from PIL import Image
from realigndiff.evaluation import ranks
from realigndiff.evaluation.page import write_page
from realigndiff.tests.comfy.browser import browser, chromium

pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = pytest.mark.skipif(not chromium(), reason="needs Chromium: set CHROMIUM to its path")

PROMPTS = ["a </script><script>document.title = 'alert'</script> cat", 'قطة "&amp;" 🐈', "a hen"]
METHODS = ["base", "other", "__proto__", "ours"]
COLORS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
"""Of each method's images."""


@pytest.fixture(scope="module")
def chrome():
    with browser() as running:
        yield running


@pytest.fixture
def context(chrome):
    """A browser that keeps what pages store, with nothing stored; stops at what it asks the network for."""
    opened = chrome.new_context(viewport={"width": 1280, "height": 800})
    opened.set_default_timeout(10_000)
    opened.asked = []
    opened.on("request", lambda request: opened.asked.append(request.url))
    yield opened
    opened.close()
    assert not [url for url in opened.asked if not url.startswith(("file:", "data:image/", "blob:"))]


@pytest.fixture
def page(context, tmp_path):
    """The page of four methods' images of three prompts."""
    images = {name: [Image.new("RGB", (48, 48), color)] * 3 for name, color in zip(METHODS, COLORS, strict=True)}
    opened = context.new_page()
    errors = []
    opened.on("console", lambda told: errors.append(told.text))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(write_page(tmp_path / "page.html", PROMPTS, images, title="Which follows the text?").as_uri())
    yield opened
    assert not errors


def order(page) -> list[str]:
    """The methods of the shown images, known by their colors."""
    colors = page.evaluate(
        """async () => Promise.all([...document.querySelectorAll('#images img')].map(async image => {
            await image.decode()
            const canvas = document.createElement('canvas').getContext('2d')
            canvas.drawImage(image, 0, 0)
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
        }))"""
    )
    return [METHODS[COLORS.index(tuple(color))] for color in colors]


def places(page) -> list[str]:
    """What is written at the images, in the order shown."""
    return page.locator(".image b").all_text_contents()


def press(page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def save(page, folder, do) -> ranks.Results:
    """The results that `do` saves."""
    with page.expect_download() as output:
        do()
    file = folder / output.value.suggested_filename
    output.value.save_as(file)
    return ranks.read_results(file)


def test_a_rater_needs_no_mouse_and_loses_nothing(page, tmp_path):
    assert page.title() == "Which follows the text?"
    first = order(page)
    press(page, "2", "1", "Backspace", "Backspace", "3", "3", "1", "4", "2")
    assert places(page) == ["2nd", "4th", "1st", "3rd"]
    press(page, "Enter")
    assert page.locator("#text").text_content() == PROMPTS[1]
    second = order(page)
    press(page, "4", "Shift+Digit1", "2", "=", "3")
    assert places(page) == ["= 1st", "= 2nd", "= 2nd", "= 1st"]
    press(page, "ArrowRight", "2")

    page.reload()
    assert page.locator("#count").text_content() == "3 of 3"
    third = order(page)
    assert places(page) == ["", "1st", "", ""]
    assert page.locator("#progress").evaluate("bar => [bar.value, bar.max]") == [2, 3]
    press(page, "ArrowLeft")
    assert places(page) == ["= 1st", "= 2nd", "= 2nd", "= 1st"]

    results = save(page, tmp_path, lambda: press(page, "s"))
    assert (results.rater, results.methods, results.title) == ("", METHODS, "Which follows the text?")
    assert results.answers == {
        0: dict(zip(first, (2, 4, 1, 3), strict=True)),
        1: dict(zip(second, (1, 2, 2, 1), strict=True)),
        2: {third[1]: 1},
    }
    output = ranks.summarize([results])
    assert (output["answers"], output["incomplete"]) == (2, 1)
    halved = dict(zip(second, (1.5, 3.5, 3.5, 1.5), strict=True))
    wanted = {name: (results.answers[0][name] + halved[name]) / 2 for name in METHODS}
    assert {row["method"]: row["mean_rank"] for row in output["rows"]} == pytest.approx(wanted)


def test_a_rater_needs_no_keys(page, tmp_path):
    images = page.locator(".image")
    images.nth(1).click()
    page.get_by_role("button", name="Equal").click()
    images.nth(0).click()
    images.nth(3).click()
    images.nth(3).click()
    page.get_by_role("button", name="Undo").click()
    images.nth(2).click()
    images.nth(3).click(modifiers=["Shift"])
    assert places(page) == ["= 1st", "= 1st", "= 2nd", "= 2nd"]
    page.get_by_label("your name").fill("Ann s 2")
    page.get_by_role("button", name="Next").click()
    press(page, "1", "Enter")
    assert page.locator("#text").text_content() == PROMPTS[2], "the name has the keys no more"
    page.get_by_role("button", name="Next").click()
    assert "2 of 3 prompts are not ranked yet" in page.locator("#summary").text_content()
    results = save(page, tmp_path, lambda: page.get_by_role("button", name="Save").click())
    assert results.rater == "Ann s 2" and results.file.name == f"ranks-{results.study}-Ann-s-2.json"
    page.get_by_role("button", name="Go to the first").click()
    assert places(page) == ["1st", "", "", ""]


def test_another_rater_starts_with_nothing(page):
    page.get_by_label("your name").fill("Ann")
    page.get_by_label("your name").press("Enter")
    press(page, "1", *["ArrowRight"] * 5)
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Start again").click()
    assert page.locator("#count").text_content() == "1 of 3"
    assert places(page) == [""] * 4
    assert page.get_by_label("your name").input_value() == ""


def test_images_can_be_told_and_reached_without_sight_or_mouse(page):
    buttons = page.get_by_role("group", name="images").get_by_role("button")
    assert [button.get_attribute("alt") for button in page.locator("#images img").all()] == [
        f"image {i}" for i in range(1, 5)
    ]
    press(page, "Tab", "Tab", "Enter")
    assert buttons.nth(1).aria_snapshot().startswith('- button "image 2 1st"')
    assert buttons.nth(1).evaluate("button => getComputedStyle(button).outlineStyle") == "solid"
    assert page.get_by_role("status").text_content() == "Which image is the next best?"
    press(page, "ArrowRight")
    assert page.get_by_role("button", name="image 1").evaluate("button => button === document.activeElement")


def test_what_was_stored_and_is_no_progress_does_no_harm(page, context):
    (slot,) = page.evaluate("Object.keys(localStorage)")
    page.evaluate("slot => localStorage.setItem(slot, '{')", slot)
    page.reload()
    press(page, "1")
    assert places(page) == ["1st", "", "", ""]
    assert json.loads(page.evaluate("slot => localStorage.getItem(slot)", slot))["prompt"] == 0


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
@pytest.mark.parametrize("count", [2, 4, 9])
def test_images_are_seen_without_scrolling_sideways(context, tmp_path, size, count):
    images = {str(i): [Image.new("RGB", (512, 320))] for i in range(count)}
    page = context.new_page()
    page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    page.goto(write_page(tmp_path / "page.html", ["a cat"], images, title="").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = [image.bounding_box() for image in page.locator("#images img").all()]
    assert len(boxes) == count and all(box["width"] >= 140 for box in boxes)
    assert all(box["width"] / box["height"] == pytest.approx(1.6, rel=0.03) for box in boxes)
    if size[0] > 1000:
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
