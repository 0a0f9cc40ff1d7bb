"""One picture of one result: the coarse image, what was seen in it, the re-aligned image."""

from __future__ import annotations

import textwrap

from PIL import Image, ImageDraw

from ..perception.images import to_pil
from .overlay import font, overlay
from .realign import Look, RealignResult

SIDE, GAP, HEAD, FOOT = 384, 24, 112, 96
INK, GREY, GREEN, AMBER = "#1f2328", "#636c76", "#1a7f37", "#9a6700"


def panel(result: RealignResult) -> Image.Image:
    """Three labelled pictures in a row, [~600 x ~1250] pixels."""
    canvas = Image.new("RGB", (3 * SIDE + 4 * GAP, HEAD + SIDE + FOOT), "white")
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
        for row, (text, color) in enumerate(lines[:4]):
            draw.text((x, HEAD + SIDE + 8 + 21 * row), text, fill=color, font=font(15))
    return canvas


def _enlarged(look: Look) -> Image.Image:
    """The image in a square of SIDE pixels; small images keep their pixels."""
    picture = to_pil(look.image[None])[0]
    scale = SIDE / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.NEAREST if scale > 2 else Image.LANCZOS)


def _says(look: Look) -> list[tuple[str, str]]:
    """What the captioner says of an image, and the reward."""
    color = GREEN if look.reward > 0.9 else AMBER
    lines = textwrap.wrap(f"the captioner says: {look.caption}", 52)[:2]
    return [(line, GREY) for line in lines] + [(f"caption reward {look.reward:.2f}", color)]


def _seen(result: RealignResult) -> list[tuple[str, str]]:
    """What the regions mean, and what was not found."""
    lines = [("phrase · likelihood (2 certain, 0.5 may appear, 0 unlikely)", GREY)]
    lines += [(f"not found: {phrase}", AMBER) for phrase in result.regions.missing]
    if not result.changed:
        lines += [(line, AMBER) for line in textwrap.wrap(result.verdict, 52)]
    return lines
