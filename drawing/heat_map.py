"""Heat maps as pictures: warm where much is, dark where little is."""

from __future__ import annotations

import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from torch import Tensor

from ..attention.equation.maps import scale_to_max
from ..core.images import to_pil
from .overlay import font

INFERNO = ("000004", "1f0c48", "550f6d", "88226a", "ba3655", "e35933", "f98c0a", "f9c932", "fcffa4")
"""Matplotlib's inferno at equal distances: its lightness rises evenly, also for colour-blind eyes and in print."""
DIM = 0.55
"""How bright a white image is in the dark, in [0, 1]."""
HEAD, FOOT, GAP = 40, 28, 12
INK, GREY = "#1f2328", "#636c76"


def colored(heat: Tensor) -> Tensor:
    """Values [..., h, w] in [0, 1] as colours [..., h, w, 3] in [0, 1]."""
    table = torch.tensor([[int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)] for color in INFERNO])
    place = heat.clamp(0, 1) * (len(table) - 1)
    below = place.long().clamp(max=len(table) - 2)
    return torch.lerp(table[below], table[below + 1], (place - below)[..., None])


def heat_map(heat: Tensor, size: tuple[int, int], image: Tensor | None = None) -> Image.Image:
    """A map [h, w] in [0, 1] as a picture of (width, height) pixels.

    image: [H, W, 3] in [0, 1], to be seen through the map, in grey and as in the dark.
    """
    heat = _scaled(heat, size)
    picture = colored(heat)
    if image is not None:
        grey = DIM * _scaled(image.mean(-1), size)[..., None]
        picture = torch.lerp(grey, picture, (0.25 + 0.55 * heat)[..., None])
    return to_pil(picture[None])[0]


def labelled(heat: Tensor, words: str, size: tuple[int, int], image: Tensor | None = None) -> Image.Image:
    """A map [h, w] of probabilities under its words, its colours from 0 to its largest value, with their scale below.

    size: (width, height) of the map's picture; what is returned is GAP wider on both sides, HEAD and FOOT higher.
    """
    width, height = size
    canvas = Image.new("RGB", (width + 2 * GAP, HEAD + height + FOOT), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, 9), fitting(draw, words, width, 19), fill=INK, font=font(19))
    canvas.paste(heat_map(scale_to_max(heat), size, image), (GAP, HEAD))
    scale(canvas, (GAP, HEAD + height + 8, width), float(heat.max()))
    return canvas


def outlined(picture: Image.Image, mask: Tensor) -> Image.Image:
    """The picture with the outline of a mask [H, W] in [0, 1] in white."""
    inside = to_pil((mask[None, ..., None] > 0.5).float().expand(-1, -1, -1, 3))[0].convert("L").resize(picture.size)
    edge = ImageChops.difference(inside.filter(ImageFilter.MaxFilter(3)), inside.filter(ImageFilter.MinFilter(3)))
    return Image.composite(Image.new("RGB", picture.size, "white"), picture, edge)


def scale(canvas: Image.Image, at: tuple[int, int, int], largest: float) -> None:
    """Draw which colour means what, from 0 to `largest`, into a line at (x, y) of some width."""
    draw, (x, y, width) = ImageDraw.Draw(canvas), at
    text_font = font(13)
    low, high = "0", f"{largest:.1%}"
    left, right = (int(draw.textlength(text, text_font)) + 8 for text in (low, high))
    if width > left + right + 16:  # else there is no room
        canvas.paste(heat_map(torch.linspace(0, 1, 256)[None], (width - left - right, 10)), (x + left, y + 2))
    draw.text((x, y - 2), low, fill=GREY, font=text_font)
    draw.text((x + width - right + 8, y - 2), high, fill=GREY, font=text_font)


def fitting(draw: ImageDraw.ImageDraw, text: str, width: int, points: int) -> str:
    """The text, cut where it would be longer than `width` pixels."""
    whole = text
    while text and draw.textlength(text if text == whole else text + "…", font(points)) > width:
        text = text[:-1]
    return text if text == whole else text.rstrip() + "…"


def _scaled(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """[h, w] → [height, width], without corners."""
    width, height = size
    whole = torch.nn.functional.interpolate(heat[None, None], (height, width), mode="bicubic", antialias=True)
    return whole[0, 0].clamp(0, 1)
