"""The paper's human study as one page: the images of several methods side by side, ranked without their names.

The page is a file that needs nothing but a browser. Who ranks gives the file that it saves back to
`evaluation/ranks.py`, which sums up the ranks.
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
from ..core.files import make_folder, write_whole
from ..drawing.inline import inline

TEMPLATE = Path(__file__).with_name("page.html")
LARGEST = 512
FEWEST, MOST = 2, 9
"""How many methods can be compared: each image has a digit key."""


def write_page(
    file: Path,
    prompts: Sequence[str],
    images: Mapping[str, Sequence[Image.Image | None]],
    *,
    title: str,
    seed: int = 0,
    largest: int = LARGEST,
) -> Path:
    """Write the page of a study: for each prompt the images of all methods, in an order of its own.

    The study's id depends on the prompts, the names and the pixels alone: pages of the same images with other seeds
    are the same study, so each rater may have other orders.

    Args:
        file: the page; its folder is made.
        prompts: N texts.
        images: 2 to 9 methods, each with the N images of the prompts. They are asked for once, one after the other,
            so a sequence may open files when asked. Images of at most 160 pixels keep every pixel.
        title: what the page calls itself; raters read it, so it should not name a method.
        seed: of the orders.
        largest: pixels of the longer side that larger images are reduced to.

    Returns:
        The file.

    Raises:
        RealignError: an image is missing, there are too few or too many methods, or the page cannot be written.
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
    # As base64, so that a look at the source does not tell which image is whose.
    key = base64.b64encode(json.dumps({"methods": list(images), "orders": orders}).encode()).decode()
    about = _block({"id": study.hexdigest()[:16], "title": title, "key": key}, 'id="study"')
    parts = {"title": escape(title), "data": "\n".join([*blocks, about])}
    page = re.sub(r"{{(\w+)}}", lambda place: parts[place[1]], TEMPLATE.read_text("utf-8"))
    make_folder(file.parent)
    # A title may hold half of an emoji, which UTF-8 cannot say.
    write_whole(file, page.encode("utf-8", "replace").decode())
    return file


def _check(prompts: Sequence[str], images: Mapping[str, Sequence[Image.Image | None]]) -> None:
    if not FEWEST <= len(images) <= MOST:
        raise RealignError(f"There are {len(images)} methods to compare: give the images of {FEWEST} to {MOST}.")
    if not prompts:
        raise RealignError("There is no prompt to show images of: give at least one.")
    for name, own in images.items():
        if len(own) > len(prompts):
            raise RealignError(f"'{name}' has {len(own)} images for {len(prompts)} prompts: give one for each.")


def _image(images: Mapping[str, Sequence[Image.Image | None]], name: str, index: int, text: str) -> Image.Image:
    picture = images[name][index] if index < len(images[name]) else None
    if picture is None:
        raise RealignError(f"'{name}' has no image of prompt {index + 1}, '{text}': make it, or leave the prompt out.")
    return picture.convert("RGB")


def _block(content: Mapping[str, Any], attribute: str) -> str:
    """Data for the page's code. In JSON a `<` is in strings only, and there it may be written so that no text can
    end the block."""
    text = json.dumps(content).replace("<", "\\u003c")
    return f'<script type="application/json" {attribute}>{text}</script>'
