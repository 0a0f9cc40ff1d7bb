"""Cross-attention maps (DAAM) as pictures: bright where many pixels attend to the words, dark where few do."""

from __future__ import annotations

import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from torch import Tensor

from ..attention.equation.maps import scale_to_max
from ..core.images import to_pil
from .overlay import font

INFERNO = ("000004", "1f0c48", "550f6d", "88226a", "ba3655", "e35933", "f98c0a", "f9c932", "fcffa4")
"""Matplotlib's colormap inferno at equal distances: lightness rises evenly, also in print and for colour-blind eyes."""
DIM = 0.55
"""Brightness of a white image under the darkest part of a map, in [0, 1]."""
HEAD, FOOT, GAP = 40, 28, 12
INK, GREY = "#1f2328", "#636c76"


def apply_colormap(values: Tensor) -> Tensor:
    """Values [..., h, w] in [0, 1] → colours [..., h, w, 3] in [0, 1]."""
    table = torch.tensor([[int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)] for color in INFERNO])
    place = values.clamp(0, 1) * (len(table) - 1)
    below = place.long().clamp(max=len(table) - 2)
    return torch.lerp(table[below], table[below + 1], (place - below)[..., None])


def draw_map(values: Tensor, size: tuple[int, int], image: Tensor | None = None) -> Image.Image:
    """A map [h, w] in [0, 1] as a picture of (width, height) pixels.

    image: [H, W, 3] in [0, 1], shown through the map, dimmed and in grey.
    """
    values = _resize(values, size)
    picture = apply_colormap(values)
    if image is not None:
        grey = DIM * _resize(image.mean(-1), size)[..., None]
        picture = torch.lerp(grey, picture, (0.25 + 0.55 * values)[..., None])
    return to_pil(picture[None])[0]


def draw_labelled_map(
    probabilities: Tensor, words: str, size: tuple[int, int], image: Tensor | None = None
) -> Image.Image:
    """A map [h, w] with its words above and a colour scale below, which ends at the largest probability.

    size: (width, height) of the map; the picture is GAP wider on both sides, and HEAD and FOOT higher.
    """
    width, height = size
    canvas = Image.new("RGB", (width + 2 * GAP, HEAD + height + FOOT), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, 9), fit_text(draw, words, width, 19), fill=INK, font=font(19))
    canvas.paste(draw_map(scale_to_max(probabilities), size, image), (GAP, HEAD))
    draw_scale(canvas, (GAP, HEAD + height + 8, width), float(probabilities.max()))
    return canvas


def draw_outline(picture: Image.Image, mask: Tensor) -> Image.Image:
    """The picture with the outline of a mask [H, W] in [0, 1] in white."""
    inside = to_pil((mask[None, ..., None] > 0.5).float().expand(-1, -1, -1, 3))[0].convert("L").resize(picture.size)
    edge = ImageChops.difference(inside.filter(ImageFilter.MaxFilter(3)), inside.filter(ImageFilter.MinFilter(3)))
    return Image.composite(Image.new("RGB", picture.size, "white"), picture, edge)


def draw_scale(canvas: Image.Image, at: tuple[int, int, int], largest: float) -> None:
    """Draw the colour scale from 0 to `largest` at (x, y), some width wide."""
    draw, (x, y, width) = ImageDraw.Draw(canvas), at
    text_font = font(13)
    low, high = "0", f"{largest:.1%}"
    left, right = (int(draw.textlength(text, text_font)) + 8 for text in (low, high))
    if width > left + right + 16:  # else there is no room
        canvas.paste(draw_map(torch.linspace(0, 1, 256)[None], (width - left - right, 10)), (x + left, y + 2))
    draw.text((x, y - 2), low, fill=GREY, font=text_font)
    draw.text((x + width - right + 8, y - 2), high, fill=GREY, font=text_font)


def fit_text(draw: ImageDraw.ImageDraw, text: str, width: int, points: int) -> str:
    """The text, shortened by … if it is wider than `width` pixels."""
    whole = text
    while text and draw.textlength(text if text == whole else text + "…", font(points)) > width:
        text = text[:-1]
    return text if text == whole else text.rstrip() + "…"


def _resize(values: Tensor, size: tuple[int, int]) -> Tensor:
    """[h, w] → [height, width], bicubic."""
    width, height = size
    resized = torch.nn.functional.interpolate(values[None, None], (height, width), mode="bicubic", antialias=True)
    return resized[0, 0].clamp(0, 1)
