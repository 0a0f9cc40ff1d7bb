"""Regions drawn over their image: who is where, in which words, how likely."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..core.images import to_pil
from ..core.regions import Region
from ..core.text import short

PALETTE = ("#e6194b", "#0082c8", "#3cb44b", "#f58231", "#911eb4", "#008080", "#9a6324", "#e000a0")
"""One colour a region, in order; told apart also on paper and by most colour-blind eyes."""


def font(size: int) -> ImageFont.ImageFont:
    """Pillow's own font: no file of the system is needed."""
    return ImageFont.load_default(size=size)


def overlay(image: Tensor, regions: Iterable[Region], side: int = 384) -> Image.Image:
    """Draw the masks and boxes of `regions` over image [H, W, 3], its longer side scaled to `side` pixels."""
    picture = to_pil(image[None])[0]
    scale = side / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    canvas = picture.resize(size, Image.NEAREST if scale > 2 else Image.LANCZOS)
    drawn = []
    for i, region in enumerate(regions):
        if region.mask is not None:
            drawn.append((i, region))
            _tint(canvas, region, _color(i))
    draw = ImageDraw.Draw(canvas)
    for i, region in drawn:
        _outline(draw, canvas.size, region, _color(i))
    taken = np.zeros((0, 4))
    for i, region in drawn:  # after all outlines, so that none runs through a label
        taken = _label(draw, canvas.size, region, _color(i), taken)
    return canvas


def label_of(region: Region) -> str:
    """`a red circle · 2`, or the tag in brackets where no words of the prompt are meant."""
    return f"{region.phrase or f'({region.tag})'} · {region.likelihood:g}"


def _color(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _tint(canvas: Image.Image, region: Region, color: str) -> None:
    """Lay the region's mask over the canvas, half transparent, striped so that its own colour shows."""
    mask = Image.fromarray((region.mask.numpy() * 255).astype(np.uint8)).resize(canvas.size, Image.NEAREST)
    alpha = Image.fromarray((np.asarray(mask) * _stripes(canvas.height, canvas.width)).astype(np.uint8))
    inside = alpha.getbbox()
    if inside is not None:
        canvas.paste(color, inside, alpha.crop(inside))


@lru_cache(maxsize=1)  # for all regions of an image
def _stripes(height: int, width: int) -> np.ndarray:
    rows, columns = np.indices((height, width))
    return ((rows + columns) // 4 % 2 == 0) * 0.75


def _corners(region: Region, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The region's box in pixels; without one, a line along the top."""
    if region.box is None:
        return 4, 4, size[0], 4
    x0, y0, x1, y1 = (value * side for value, side in zip(region.box, (*size, *size), strict=True))
    return x0, y0, x1, y1


def _outline(draw: ImageDraw.ImageDraw, size: tuple[int, int], region: Region, color: str) -> None:
    """The region's box, if it has one."""
    if region.box is not None:
        corners = _corners(region, size)
        draw.rectangle(corners, outline="white", width=4)
        draw.rectangle(corners, outline=color, width=2)


def _label(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], region: Region, color: str, taken: np.ndarray
) -> np.ndarray:
    """The region's words above or below its box; labels do not cover each other.

    taken: [N, 4], where labels are already; returned with this one.
    """
    x0, y0, _, y1 = _corners(region, size)
    text, text_font = short(label_of(region)), font(15)
    width, height = text_font.getbbox(text)[2] + 8, 21
    x = min(max(0, x0), size[0] - width)
    for y in (y0 - height, y1, y0, *range(0, size[1] - height, height)):
        spot = (x, y, x + width, y + height)
        if 0 <= y <= size[1] - height and not _covers(spot, taken):
            break
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)  # Pillow counts both corners in
    draw.text((x + 4, y + 2), text, fill="white", font=text_font)
    return np.vstack([taken, spot])


def _covers(spot: tuple[float, float, float, float], taken: np.ndarray) -> bool:
    x0, y0, x1, y1 = spot
    return bool(((taken[:, 0] < x1) & (x0 < taken[:, 2]) & (taken[:, 1] < y1) & (y0 < taken[:, 3])).any())
