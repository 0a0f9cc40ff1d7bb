"""A picture inside a web page, so that the page is one file."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

from PIL import Image

SMALL = 160
"""A picture whose longer side, in pixels, is at most this keeps every pixel; a browser should show them as squares."""


class Inline(NamedTuple):
    """What an <img> needs: the data URL, and the size in pixels of the picture in it."""

    address: str
    width: int
    height: int
    small: bool


def inline(picture: Image.Image, largest: int) -> Inline:
    """The picture alone as a data URL, without the notes in its file: PNG if it is small, else a JPEG of at most
    `largest` pixels a side."""
    small = max(picture.size) <= SMALL
    picture = picture.convert("RGB")
    picture.info = {}  # Pillow would write a comment of the file again, and that may say what made the picture
    if not small:
        picture.thumbnail((largest, largest))
    content = io.BytesIO()
    picture.save(content, "PNG" if small else "JPEG", quality=88)
    data = base64.b64encode(content.getvalue()).decode("ascii")
    return Inline(f"data:image/{'png' if small else 'jpeg'};base64,{data}", *picture.size, small)
