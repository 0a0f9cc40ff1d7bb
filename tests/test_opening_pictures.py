"""Overlays, panels and labelled maps show what they should, where they should: colour, outline and ink."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageColor
from realigndiff.core.regions import MAYBE, Region, RegionSet
from realigndiff.drawing.attention_map import FOOT, GAP, HEAD, draw_labelled_map, draw_outline
from realigndiff.drawing.overlay import PALETTE, overlay
from realigndiff.drawing.panel import draw_panel
from realigndiff.pipeline.phrase_attention import PhraseAttention
from realigndiff.pipeline.realign import CaptionedImage, RealignResult

GREY = 0.5
PROMPT = "a red circle and a blue square"


def box_mask(x0, y0, x1, y1, side=64):
    mask = torch.zeros(side, side)
    mask[y0:y1, x0:x1] = 1
    return mask


def things(*masks, boxes=None, phrases=None):
    """A region a mask; the boxes as fractions."""
    boxes, phrases = boxes or [None] * len(masks), phrases or ["a thing"] * len(masks)
    return RegionSet(
        PROMPT,
        tuple(
            Region(tag="thing", phrase=phrase, mask=mask, box=box)
            for mask, box, phrase in zip(masks, boxes, phrases, strict=True)
        ),
    )


def drawn(regions, side=384):
    """The overlay over a grey image, [side, side, 3]."""
    return np.asarray(overlay(torch.full((64, 64, 3), GREY), regions, side)).astype(int)


def of_color(pixels, index):
    """Which pixels have the very colour of a region's label and outline."""
    return (pixels == ImageColor.getrgb(PALETTE[index])).all(-1)


def grey(pixels):
    return (abs(pixels - round(GREY * 255)) <= 1).all(-1)


# Masks


def test_a_mask_is_coloured_inside_and_nothing_is_outside():
    pixels = drawn(things(box_mask(16, 32, 48, 56)))
    inside = np.zeros((384, 384), bool)
    inside[192:336, 96:288] = True
    label = np.zeros_like(inside)
    label[:40] = True  # of a region without a box: at the top
    assert grey(pixels)[~inside & ~label].all()
    colored = ~grey(pixels)[inside]
    assert 0.3 < colored.mean() < 0.7  # striped, so that the image shows through
    towards = np.array(ImageColor.getrgb(PALETTE[0])) - round(GREY * 255)
    moved = pixels[inside][colored] - round(GREY * 255)
    assert (moved @ towards > 0.5 * (towards @ towards)).all()


def test_each_region_has_a_colour_of_its_own():
    pixels = drawn(things(box_mask(4, 32, 28, 60), box_mask(36, 32, 60, 60)))
    left, right = pixels[200:350, 30:160], pixels[200:350, 220:350]
    colors = [half[~grey(half)].mean(0) for half in (left, right)]
    for color, index in zip(colors, (0, 1), strict=True):
        distances = [np.linalg.norm(color - np.array(ImageColor.getrgb(PALETTE[i]))) for i in (0, 1)]
        assert distances[index] < distances[1 - index]


def test_a_mask_of_another_size_than_the_image_lies_where_it_should():
    pixels = drawn(things(box_mask(8, 16, 16, 24, side=32)))
    rows, columns = (~grey(pixels)[48:]).nonzero()
    assert (rows.min() + 48, rows.max() + 49) == (192, 288)
    assert (columns.min(), columns.max() + 1) == (96, 192)


def test_a_region_that_was_not_found_leaves_no_trace():
    found, missing = things(box_mask(8, 8, 24, 24)), Region(tag="thing", phrase="another thing")
    assert (drawn(found) == drawn(found.with_regions([*found, missing]))).all()
    assert grey(drawn(found.with_regions([missing]))).all()


@pytest.mark.parametrize(("height", "width", "size"), [(64, 32, (192, 384)), (32, 64, (384, 192))])
def test_the_longer_side_of_an_overlay_has_the_size_asked_for(height, width, size):
    assert overlay(torch.full((height, width, 3), GREY), things(torch.ones(height, width)), 384).size == size


# Boxes and labels


def test_a_box_is_outlined_where_it_is():
    pixels = drawn(things(torch.zeros(64, 64), boxes=[(0.25, 0.5, 0.75, 0.875)]))
    outline = of_color(pixels, 0)
    x0, y0, x1, y1 = 96, 192, 288, 336
    for side in (outline[y0 + 5 : y1 - 5, x0], outline[y0 + 5 : y1 - 5, x1], outline[y1, x0:x1], outline[y0, x0:x1]):
        assert side.all()
    assert grey(pixels)[y0 + 5 : y1 - 5, x0 + 5 : x1 - 5].all()


def areas(pixels, count):
    """How many pixels have the colour of each region's label, which is a filled box with its text in white."""
    return [int(of_color(pixels, i).sum()) for i in range(count)]


@pytest.mark.parametrize("boxes", [None, [(0.3, 0.4, 0.7, 0.6)] * 6], ids=["without boxes", "of the same box"])
def test_neither_another_label_nor_an_outline_covers_a_label(boxes):
    """Each has as much of its colour in the picture of all as where it is alone."""
    masks, phrases = [torch.zeros(64, 64)] * 6, ["a red circle", "a ring", "a very large blue square", "x", "y", "z"]
    together = areas(drawn(things(*masks, boxes=boxes, phrases=phrases)), 6)
    bare = things(*masks, phrases=phrases)
    for i in range(6):
        missing = Region(tag="thing", phrase="not found")
        alone = [region if k == i else missing for k, region in enumerate(bare)]
        label_area = areas(drawn(bare.with_regions(alone)), 6)[i]
        assert label_area > 200
        assert together[i] >= label_area


def label(regions):
    """The part of the overlay that the first region's label covers."""
    pixels = drawn(regions)
    rows, columns = of_color(pixels, 0).nonzero()
    return pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def test_a_label_says_the_regions_words_in_white_ink():
    empty = torch.zeros(64, 64)
    short, long, other = (label(things(empty, phrases=[words])) for words in ("a cat", "a very old cat", "a dog"))
    for one in (short, long, other):
        assert 0.02 < (one.min(-1) > 200).mean() < 0.5
    assert long.shape[1] > short.shape[1]
    assert short.shape != other.shape or (short != other).any()
    certain = things(empty, phrases=["a cat"])
    maybe = certain.with_regions([dataclasses.replace(certain.regions[0], likelihood=MAYBE)])
    assert label(maybe).shape != label(certain).shape


@pytest.mark.parametrize(
    "box",
    [(0.0, 0.0, 1.0, 1.0), (0.9, 0.0, 1.0, 0.1), (0.9, 0.95, 1.0, 1.0)],
    ids=["whole", "top right", "bottom right"],
)
def test_a_label_lies_inside_the_picture_wherever_its_box_is(box):
    words = ["a large green triangle"]
    free, boxed = (drawn(things(torch.zeros(64, 64), boxes=ours, phrases=words)) for ours in (None, [box]))
    assert of_color(boxed, 0).sum() >= of_color(free, 0).sum()


# Panels


def result(**changed):
    coarse = CaptionedImage(torch.full((64, 64, 3), 0.2), "a red square", 0.5)
    fine = CaptionedImage(torch.full((64, 64, 3), 0.8), "a red circle", 0.95)
    found = RegionSet(PROMPT, (Region(tag="circle", phrase="a red circle", mask=box_mask(8, 8, 40, 40)),))
    return dataclasses.replace(RealignResult(PROMPT, 3, coarse, fine, found, "It was sampled again."), **changed)


def look(base, **changed):
    return dataclasses.replace(base, **changed)


BASE = result()
WIDTH = 3 * 384 + 4 * 24
THIRDS = {"left": (0, WIDTH / 3), "middle": (WIDTH / 3, 2 * WIDTH / 3), "right": (2 * WIDTH / 3, WIDTH)}
TITLE, PICTURES, TEXT = (0, 86), (110, 498), (498, 592)
MISSING = BASE.regions.with_regions([*BASE.regions, Region(tag="square", phrase="a blue square")])


@pytest.mark.parametrize(
    ("changed", "columns", "rows"),
    [
        ({"prompt": "a green ring"}, (0, WIDTH), TITLE),
        ({"seed": 4}, (0, WIDTH), TITLE),
        ({"before": look(BASE.before, caption="two green rings")}, THIRDS["left"], TEXT),
        ({"before": look(BASE.before, reward=0.6)}, THIRDS["left"], TEXT),
        ({"before": look(BASE.before, image=torch.rand(64, 64, 3))}, (0, 2 * WIDTH / 3), PICTURES),
        ({"after": look(BASE.after, caption="two green rings")}, THIRDS["right"], TEXT),
        ({"after": look(BASE.after, reward=0.99)}, THIRDS["right"], TEXT),
        ({"after": look(BASE.after, image=torch.rand(64, 64, 3))}, THIRDS["right"], PICTURES),
        ({"regions": MISSING}, THIRDS["middle"], TEXT),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_panel_says_stands_where_it_belongs(changed, columns, rows):
    """What is changed of a result changes ink there, and nothing elsewhere."""
    before, after = draw_panel(BASE), draw_panel(result(**changed))
    x0, y0, x1, y1 = ImageChops.difference(before, after).getbbox()
    assert columns[0] <= x0 < x1 <= columns[1]
    assert rows[0] <= y0 < y1 <= rows[1]


@pytest.mark.parametrize("column", range(3))
def test_each_picture_of_a_panel_has_a_title_above_and_words_below(column):
    left = 24 + column * 408
    title, words = (np.asarray(draw_panel(BASE).crop((left, top, left + 384, top + 18))) for top in (86, 506))
    for pixels in (title, words):
        assert 0.02 < (pixels.max(-1) < 150).mean() < 0.3  # dark ink on white


def test_an_unchanged_result_says_why_in_its_panel():
    kept = dataclasses.replace(BASE, after=BASE.before, verdict="Unchanged: it reaches the gate.")
    other = dataclasses.replace(kept, verdict="Unchanged: there was nothing to re-weight in the whole image.")
    x0, y0, x1, y1 = ImageChops.difference(draw_panel(kept), draw_panel(other)).getbbox()
    assert THIRDS["middle"][0] <= x0 < x1 <= THIRDS["middle"][1] and TEXT[0] <= y0 < y1 <= TEXT[1]


def test_a_panel_shows_the_coarse_image_its_regions_and_the_re_aligned_one():
    picture = draw_panel(BASE)
    # near the lower right corner of each picture, in the middle one outside the mask
    values = [picture.getpixel((24 + column * 408 + 380, 112 + 380)) for column in range(3)]
    assert values == [(51, 51, 51), (51, 51, 51), (204, 204, 204)]
    middle = np.asarray(picture.crop((432 + 60, 112 + 60, 432 + 230, 112 + 230))).astype(int)
    assert ((middle.max(-1) - middle.min(-1)) > 60).any()  # the mask's colour


HEAT = torch.zeros(16, 16)
HEAT[4:8, 4:8] = 0.004


@pytest.mark.parametrize(
    ("changed", "rows"),
    [
        ({"region": dataclasses.replace(BASE.regions.regions[0], phrase="a green ring")}, (0, 32)),
        ({"before": HEAT.roll(6, 0)}, (32, 32 + 176 + 76)),
        ({"after": HEAT.roll(6, 0)}, (32, 32 + 176 + 76)),
        ({"before": HEAT * 2}, (32, 32 + 176 + 76)),
    ],
    ids=["phrase", "before", "after", "scale"],
)
def test_the_attention_below_a_panel_shows_each_phrase_and_how_much_lies_on_its_region(changed, rows):
    phrase = PhraseAttention(BASE.regions.regions[0], HEAT, HEAT.clone())
    one, other = draw_panel(BASE, [phrase]), draw_panel(BASE, [phrase._replace(**changed)])
    x0, y0, x1, y1 = ImageChops.difference(one, other).getbbox()
    top = draw_panel(BASE).height + 40
    assert top + rows[0] <= y0 < y1 <= top + rows[1]
    assert 0 <= x0 < x1 <= WIDTH / 3 + 12
    if "phrase" not in changed and "region" not in changed:  # the share on the region is told below the maps
        below = (0, top + 32 + 176 + 26, WIDTH, one.height)
        same = ImageChops.difference(one.crop(below), other.crop(below)).getbbox() is None
        assert same == (torch.equal(changed.get("before", HEAT), HEAT * 2))


# Labelled maps


def test_a_labelled_map_has_its_words_above_and_its_largest_value_below():
    size = (200, 100)
    heat = torch.zeros(16, 16)
    heat[:8] = 0.01
    one, renamed, twice = (
        draw_labelled_map(heat, "a cat", size),
        draw_labelled_map(heat, "a dog", size),
        draw_labelled_map(2 * heat, "a cat", size),
    )
    words, value = (ImageChops.difference(one, other).getbbox() for other in (renamed, twice))
    assert words[0] >= GAP and words[3] <= HEAD
    assert value[1] >= HEAD + 100 and value[3] <= HEAD + 100 + FOOT
    assert one.size == (200 + 2 * GAP, HEAD + 100 + FOOT)


def test_words_that_are_too_long_for_a_map_are_cut_and_stay_on_it():
    picture = draw_labelled_map(torch.rand(16, 16), "a very long phrase that goes on and on", (120, 100))
    ink = np.asarray(picture.convert("L"))[:HEAD] < 200
    assert ink[:, GAP : GAP + 120].any() and not ink[:, GAP + 121 :].any()


def test_an_outline_runs_along_the_edge_of_its_mask():
    dark = Image.new("RGB", (64, 64), "black")
    white = np.asarray(draw_outline(dark, box_mask(16, 24, 40, 48)))[..., 0] > 128
    assert white[24:48, 15].all() and white[24:48, 40].all() and white[23, 16:40].all() and white[48, 16:40].all()
    assert not white[26:46, 18:38].any() and not white[:22].any() and not white[:, :14].any()
