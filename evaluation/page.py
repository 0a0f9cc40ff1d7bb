"""The paper's human study as one web page: the images of several methods side by side, ranked without their names.

The page is one file and works offline. A rater saves a file from it; `evaluation/ranks.py` sums up these files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from ..core.errors import RealignError
from ..core.files import write_whole
from ..drawing.inline import inline
from .images import read_image

TEMPLATE = Path(__file__).with_name("page.html")
LARGEST = 512
FEWEST, MOST = 2, 9
"""How many methods a page can compare: each image has a digit key."""


def write_page(
    file: Path,
    prompts: Sequence[str],
    images: Mapping[str, Sequence[Image.Image | Path | None]],
    *,
    title: str,
    seed: int = 0,
    largest: int = LARGEST,
) -> Path:
    """Write the page of a study: for each prompt the images of all methods, in random order.

    The study's id depends only on the prompts, the names and the pixels: with another seed the page is the same study
    in another order, so each rater may have a page of their own.

    images: 2 to 9 methods, each with one image per prompt or its file.
    title: raters read it, so it should name no method. seed: of the orders.
    largest: pixels to which the longer side of larger images is reduced.
    """
    _check(prompts, images)
    study = hashlib.sha256(json.dumps([list(images), list(prompts)]).encode())
    orders, blocks = [], []
    draw = random.Random(seed)
    for index, text in enumerate(prompts):
        pictures = [_image(images, name, index, text) for name in images]
        for picture in pictures:
            study.update(repr(picture.size).encode() + picture.tobytes())
        order = draw.sample(range(len(pictures)), len(pictures))
        shown = [inline(pictures[method], largest) for method in order]
        orders.append(order)
        blocks.append(_block({"text": text, "images": [image._asdict() for image in shown]}, 'class="prompt"'))
    # As base64, so that the page's source does not show which image is whose.
    key = base64.b64encode(json.dumps({"methods": list(images), "orders": orders}).encode()).decode()
    about = _block({"id": study.hexdigest()[:16], "title": title, "key": key}, 'id="study"')
    parts = {"title": escape(title), "data": "\n".join([*blocks, about])}
    page = re.sub(r"{{(\w+)}}", lambda place: parts[place[1]], TEMPLATE.read_text("utf-8"))
    # A title may hold half of an emoji, which UTF-8 cannot encode.
    write_whole(file, page.encode("utf-8", "replace").decode())
    return file


def _check(prompts: Sequence[str], images: Mapping[str, Sequence[Any]]) -> None:
    if not FEWEST <= len(images) <= MOST:
        raise RealignError(f"There are {len(images)} methods to compare: give the images of {FEWEST} to {MOST}.")
    if not prompts:
        raise RealignError("There is no prompt to show images of: give at least one.")
    for name, pictures in images.items():
        if len(pictures) > len(prompts):
            raise RealignError(f"'{name}' has {len(pictures)} images for {len(prompts)} prompts: give one for each.")


def _image(images: Mapping[str, Sequence[Image.Image | Path | None]], name: str, index: int, text: str) -> Image.Image:
    picture = images[name][index] if index < len(images[name]) else None
    if picture is None:
        raise RealignError(f"'{name}' has no image of prompt {index + 1}, '{text}': make it, or leave the prompt out.")
    return read_image(picture) if isinstance(picture, Path) else picture.convert("RGB")


def _block(content: Mapping[str, Any], attribute: str) -> str:
    """A block of data for the page's code. Every `<` is escaped, so that no text can end the block."""
    text = json.dumps(content).replace("<", "\\u003c")
    return f'<script type="application/json" {attribute}>{text}</script>'
