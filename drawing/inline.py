"""A picture inside a web page, so that the page is one file."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

from PIL import Image

SMALL = 160
"""Pictures up to this many pixels per side keep every pixel; a browser should show them as squares."""


class InlineImage(NamedTuple):
    """What an <img> needs: a data URL, and the picture's size in pixels."""

    address: str
    width: int
    height: int
    small: bool


def inline(picture: Image.Image, largest: int) -> InlineImage:
    """The picture as a data URL, without metadata: a PNG if it is small, else a JPEG of at most `largest` pixels per
    side."""
    small = max(picture.size) <= SMALL
    picture = picture.convert("RGB")
    picture.info = {}  # Pillow would copy the file's comment, which may name the method that made the picture
    if not small:
        picture.thumbnail((largest, largest))
    content = io.BytesIO()
    picture.save(content, "PNG" if small else "JPEG", quality=88)
    data = base64.b64encode(content.getvalue()).decode("ascii")
    return InlineImage(f"data:image/{'png' if small else 'jpeg'};base64,{data}", *picture.size, small)
