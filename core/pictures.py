"""Pictures from files of any kind that people have, as 8 bits of RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""How the names of image files end."""


def opened(file: Path) -> Image.Image:
    """The image, upright, in RGB; what is transparent becomes white."""
    with Image.open(file) as picture:
        picture.load()
        picture = upright(picture)
        if picture.mode.startswith(("I", "F")):
            return eight_bits(picture).convert("RGB")
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says, or as it is where the EXIF is damaged."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # of many kinds, as from reading the picture
        return picture


def eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of more than 8 bits (Pillow's I;16, I, F), which Pillow itself would cut off at 255, in 8 bits.

    White is 65535 in 16 bits; else 1 (F only), 255 or 65535, whichever is the least that no value exceeds, or the
    highest value.
    """
    values = np.nan_to_num(np.asarray(picture, dtype=np.float64), posinf=0, neginf=0)
    highest = values.max()
    whites = {"I": (255, 65535, highest), "F": (1, 255, 65535, highest)}.get(picture.mode, (65535,))
    white = next(white for white in whites if white >= highest)
    return Image.fromarray((values.clip(min=0) / white * 255).round().astype(np.uint8))
