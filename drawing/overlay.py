"""Regions drawn over their image: mask, box, phrase and likelihood of each."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..core.images import to_pil
from ..core.regions import Region
from ..core.text import shorten

PALETTE = ("#e6194b", "#0082c8", "#3cb44b", "#f58231", "#911eb4", "#008080", "#9a6324", "#e000a0")
"""One colour per region, in order; they differ in print and for most colour-blind eyes too."""
LABEL_HEIGHT = 21


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in font, so that no system font is needed."""
    return ImageFont.load_default(size=size)


def enlarge(image: Tensor, side: int) -> Image.Image:
    """Image [H, W, 3] in [0, 1] with its longer side scaled to `side` pixels; pixels of small images stay squares."""
    picture = to_pil(image[None])[0]
    scale = side / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)


def overlay(image: Tensor, regions: Iterable[Region], side: int = 384) -> Image.Image:
    """Draw the masks, boxes and labels of `regions` over image [H, W, 3], its longer side scaled to `side` pixels.

    Regions without a mask are not drawn; they use up a colour, so that a region keeps its own.
    """
    canvas = enlarge(image, side)
    found = [(region, PALETTE[i % len(PALETTE)]) for i, region in enumerate(regions) if region.mask is not None]
    for region, color in found:
        _tint(canvas, region, color)
    draw = ImageDraw.Draw(canvas)
    for region, color in found:
        if region.box is not None:
            box = _corners(region, canvas.size)
            draw.rectangle(box, outline="white", width=4)
            draw.rectangle(box, outline=color, width=2)
    taken = np.zeros((0, 4))
    for region, color in found:  # after all outlines, so that none crosses a label
        taken = _label(draw, canvas.size, region, color, taken)
    return canvas


def _tint(canvas: Image.Image, region: Region, color: str) -> None:
    """Paint the region's mask in half-transparent stripes, so that the image shows through."""
    assert region.mask is not None
    mask = Image.fromarray((region.mask.numpy() * 255).astype(np.uint8)).resize(canvas.size, Image.Resampling.NEAREST)
    alpha = Image.fromarray((np.asarray(mask) * _stripes(canvas.height, canvas.width)).astype(np.uint8))
    bounds = alpha.getbbox()
    if bounds is not None:
        canvas.paste(color, bounds, alpha.crop(bounds))


@lru_cache(maxsize=1)  # for all regions of an image
def _stripes(height: int, width: int) -> np.ndarray:
    rows, columns = np.indices((height, width))
    return ((rows + columns) // 4 % 2 == 0) * 0.75


def _corners(region: Region, size: tuple[int, int]) -> tuple[float, ...]:
    """The region's box in pixels; without one, a line along the top."""
    if region.box is None:
        return 4, 4, size[0], 4
    return tuple(value * side for value, side in zip(region.box, (*size, *size), strict=True))


def _label(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], region: Region, color: str, taken: np.ndarray
) -> np.ndarray:
    """Write `a red circle · 2` above or below the region's box, or where there is room; a tag stands in brackets.

    taken: [N, 4], the boxes of the labels so far. Returns them with the new one.
    """
    x0, y0, _, y1 = _corners(region, size)
    text, text_font = shorten(f"{region.phrase or f'({region.tag})'} · {region.likelihood:g}"), font(15)
    width, height = text_font.getbbox(text)[2] + 8, LABEL_HEIGHT
    x, (left, top, right, bottom) = min(max(0, x0), size[0] - width), taken.T
    for y in (y0 - height, y1, y0, *range(0, size[1] - height, height)):
        spot = (x, y, x + width, y + height)
        overlaps = (left < x + width) & (x < right) & (top < y + height) & (y < bottom)
        if 0 <= y <= size[1] - height and not overlaps.any():
            break
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)  # Pillow includes both corners
    draw.text((x + 4, y + 2), text, fill="white", font=text_font)
    return np.vstack([taken, spot])
