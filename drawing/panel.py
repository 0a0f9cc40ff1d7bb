"""One picture of one result: the coarse image, what was seen in it, the re-aligned image."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw
from torch import Tensor

from ..core.describe import not_helped
from ..core.images import to_pil
from ..pipeline.realign import CaptionedImage, RealignResult
from .heat_map import fitting, heat_map, outlined, scale
from .overlay import font, overlay

if TYPE_CHECKING:
    from ..pipeline.phrase_attention import PhraseAttention

SIDE, GAP, HEAD, FOOT = 384, 24, 112, 96
PAIR, PAIR_HEAD, PAIR_FOOT = 176, 32, 76
LINES = 4
"""Below each picture."""
INK, GREY, GREEN, AMBER = "#1f2328", "#636c76", "#1a7f37", "#9a6700"


def panel(result: RealignResult, attention: Sequence[PhraseAttention] = ()) -> Image.Image:
    """Three labelled pictures in a row, [~600 x ~1250] pixels; below them, three in a row, the attention to phrases."""
    pictured = HEAD + SIDE + FOOT
    rows = -(-len(attention) // 3)
    below = rows * (PAIR_HEAD + PAIR + PAIR_FOOT) + (48 if rows else 0)
    canvas = Image.new("RGB", (3 * SIDE + 4 * GAP, pictured + below), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, 16), f"“{result.prompt}”", fill=INK, font=font(26))
    draw.text((GAP, 52), f"seed {result.seed}", fill=GREY, font=font(15))
    pictures = (
        ("1  coarse image", _enlarged(result.before), _says(result.before)),
        ("2  what was seen in it", overlay(result.before.image, result.regions, SIDE), _seen(result)),
        ("3  re-aligned image", _enlarged(result.after), _says(result.after)),
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
        draw.text((GAP, pictured + 8), title, fill=INK, font=font(17))
    for i, phrase in enumerate(attention):
        row, column = divmod(i, 3)
        y = pictured + 40 + row * (PAIR_HEAD + PAIR + PAIR_FOOT)
        _pair(canvas, (GAP + column * (SIDE + GAP), y), phrase)
    return canvas


def _pair(canvas: Image.Image, at: tuple[int, int], phrase: PhraseAttention) -> None:
    """A phrase's heat maps before and after in the same colours, on both of them its region's outline."""
    draw, (x, y) = ImageDraw.Draw(canvas), at
    draw.text((x, y + 6), fitting(draw, phrase.region.phrase, SIDE, 15), fill=INK, font=font(15))
    largest = float(max(phrase.before.max(), phrase.after.max()))
    y += PAIR_HEAD
    for heat, left in ((phrase.before, x), (phrase.after, x + SIDE - PAIR)):
        canvas.paste(_on_region(heat / max(largest, 1e-9), phrase.region.mask), (left, y))
    middle, height = x + SIDE // 2, y + PAIR // 2
    draw.line([middle - 9, height, middle + 3, height], fill=GREY, width=3)  # an arrow: the font has none
    draw.polygon([(middle + 10, height), (middle + 1, height - 6), (middle + 1, height + 6)], fill=GREY)
    scale(canvas, (x, y + PAIR + 8, SIDE), largest)
    before, after = phrase.mass
    says = f"on its own region lies {before:.0%} of it, then {after:.0%}"
    draw.text((x, y + PAIR + 30), says, fill=GREEN if after > before else AMBER, font=font(15))


def _on_region(heat: Tensor, mask: Tensor) -> Image.Image:
    return outlined(heat_map(heat, (PAIR, PAIR)), mask)


def _enlarged(look: CaptionedImage) -> Image.Image:
    """The image in a square of SIDE pixels; small images keep their pixels."""
    picture = to_pil(look.image[None])[0]
    scale = SIDE / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.NEAREST if scale > 2 else Image.LANCZOS)


def _says(look: CaptionedImage) -> list[tuple[str, str]]:
    """What the captioner says of an image, and the reward."""
    color = GREEN if look.reward > 0.9 else AMBER
    lines = textwrap.wrap(f"the captioner says: {look.caption}", 52)[:2]
    return [(line, GREY) for line in lines] + [(f"caption reward {look.reward:.2f}", color)]


def _seen(result: RealignResult) -> list[tuple[str, str]]:
    """What the regions mean, and what became of those that were not re-weighted."""
    lines = [("phrase · likelihood (2 certain, 0.5 may appear, 0 unlikely)", GREY)]
    text = not_helped(result.regions) if result.changed else result.verdict
    return lines + [(line, AMBER) for line in textwrap.wrap(text, 52, max_lines=LINES - 1, placeholder=" …")]
