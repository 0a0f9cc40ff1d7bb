"""One picture of one result: the coarse image, the regions found in it, the re-aligned image."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from ..core.describe import describe_unhelped
from ..pipeline.realign import CaptionedImage, RealignResult
from .attention_map import GREY, INK, draw_map, draw_outline, draw_scale, fit_text
from .overlay import enlarge, font, overlay

if TYPE_CHECKING:
    from ..pipeline.phrase_attention import PhraseAttention

SIDE, GAP, HEAD, FOOT = 384, 24, 112, 96
PAIR, PAIR_HEAD, PAIR_FOOT = 176, 32, 76
LINES = 4
"""Lines of text below each picture."""
GREEN, AMBER = "#1a7f37", "#9a6700"


def draw_panel(result: RealignResult, attention: Sequence[PhraseAttention] = ()) -> Image.Image:
    """Three labelled pictures side by side, about 1250 x 600 pixels; below them the attention maps of the phrases."""
    top = HEAD + SIDE + FOOT
    rows = -(-len(attention) // 3)
    below = rows * (PAIR_HEAD + PAIR + PAIR_FOOT) + (48 if rows else 0)
    canvas = Image.new("RGB", (3 * SIDE + 4 * GAP, top + below), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, 16), f"“{result.prompt}”", fill=INK, font=font(26))
    draw.text((GAP, 52), f"seed {result.seed}", fill=GREY, font=font(15))
    pictures = (
        ("1  coarse image", enlarge(result.before.image, SIDE), _caption_lines(result.before)),
        ("2  what was seen in it", overlay(result.before.image, result.regions, SIDE), _region_lines(result)),
        ("3  re-aligned image", enlarge(result.after.image, SIDE), _caption_lines(result.after)),
    )
    for column, (title, picture, lines) in enumerate(pictures):
        x = GAP + column * (SIDE + GAP)
        draw.text((x, HEAD - 26), title, fill=INK, font=font(17))
        canvas.paste(picture, (x, HEAD))
        draw.rectangle([x - 1, HEAD - 1, x + SIDE, HEAD + SIDE], outline="#d1d9e0")
        for row, (text, color) in enumerate(lines[:LINES]):
            draw.text((x, HEAD + SIDE + 8 + 21 * row), text, fill=color, font=font(15))
    if attention:
        title = "4  which pixels attend to each phrase in the re-weighted steps: left plain, right re-weighted"
        draw.text((GAP, top + 8), title, fill=INK, font=font(17))
    for i, phrase in enumerate(attention):
        row, column = divmod(i, 3)
        y = top + 40 + row * (PAIR_HEAD + PAIR + PAIR_FOOT)
        _draw_pair(canvas, (GAP + column * (SIDE + GAP), y), phrase)
    return canvas


def _draw_pair(canvas: Image.Image, at: tuple[int, int], phrase: PhraseAttention) -> None:
    """A phrase's attention maps before and after, in one colour scale, with the outline of its region."""
    draw, (x, y) = ImageDraw.Draw(canvas), at
    draw.text((x, y + 6), fit_text(draw, phrase.region.phrase, SIDE, 15), fill=INK, font=font(15))
    largest = float(max(phrase.before.max(), phrase.after.max()))
    y += PAIR_HEAD
    for probabilities, left in ((phrase.before, x), (phrase.after, x + SIDE - PAIR)):
        picture = draw_map(probabilities / max(largest, 1e-9), (PAIR, PAIR))
        assert phrase.region.mask is not None  # the region is active
        canvas.paste(draw_outline(picture, phrase.region.mask), (left, y))
    middle, height = x + SIDE // 2, y + PAIR // 2
    draw.line([middle - 9, height, middle + 3, height], fill=GREY, width=3)  # an arrow: the font has none
    draw.polygon([(middle + 10, height), (middle + 1, height - 6), (middle + 1, height + 6)], fill=GREY)
    draw_scale(canvas, (x, y + PAIR + 8, SIDE), largest)
    before, after = phrase.mass
    shares = f"on its own region lies {before:.0%} of it, then {after:.0%}"
    draw.text((x, y + PAIR + 30), shares, fill=GREEN if after > before else AMBER, font=font(15))


def _caption_lines(image: CaptionedImage) -> list[tuple[str, str]]:
    """The caption and the reward: lines with their colours."""
    color = GREEN if image.reward > 0.9 else AMBER
    lines = textwrap.wrap(f"the captioner says: {image.caption}", 52)[:2]
    return [(line, GREY) for line in lines] + [(f"caption reward {image.reward:.2f}", color)]


def _region_lines(result: RealignResult) -> list[tuple[str, str]]:
    """A key to the labels, then which phrases were not helped, or why the image is unchanged."""
    lines = [("phrase · likelihood (2 certain, 0.5 may appear, 0 unlikely)", GREY)]
    text = describe_unhelped(result.regions) if result.changed else result.verdict
    return lines + [(line, AMBER) for line in textwrap.wrap(text, 52, max_lines=LINES - 1, placeholder=" …")]
