"""Grids of sample images, one a file; each tells in its PNG header which prompts it shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ...core.files import write_whole

KEY = "realigndiff.samples"
"""Where the PNG header holds `{"prompts": [...], "size": [width, height]}`; `size` is of one picture."""
PATTERN = "step-*.png"


class Grid(NamedTuple):
    """The pictures of one file."""

    step: int
    prompts: tuple[str, ...]
    """One a picture; none for a file that does not say."""
    pictures: tuple[Image.Image, ...]
    """Of a file that does not say what it shows, all of it as one picture."""


def save(folder: Path, step: int, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Path:
    """Write the pictures of one step, all of one size, as one file.

    Raises:
        RealignError: it cannot be written.
    """
    told = PngInfo()
    told.add_text(KEY, json.dumps({"prompts": list(prompts), "size": pictures[0].size}))
    file = folder / f"step-{step:08d}.png"
    write_picture(file, in_rows(pictures), told)
    return file


def write_picture(file: Path, picture: Image.Image, header: PngInfo | None = None) -> None:
    """Write a PNG, whole or not at all.

    Raises:
        RealignError: it cannot be written.
    """
    write_whole(file, lambda partial: picture.save(partial, "PNG", pnginfo=header))


def load(file: Path) -> Grid:
    """A file that `save` wrote, or, as one picture without a prompt, any other image.

    Raises:
        OSError: it is no image, or one that is cut off.
    """
    with Image.open(file) as opened:
        canvas = opened.convert("RGB")
        told = getattr(opened, "text", {}).get(KEY)
    try:
        about = json.loads(told)
        prompts, (width, height) = tuple(map(str, about["prompts"])), about["size"]
        columns = canvas.width // width
        corners = [(i % columns * width, i // columns * height) for i in range(len(prompts))]
        cells = tuple(canvas.crop((x, y, x + width, y + height)) for x, y in corners)
    except (TypeError, ValueError, KeyError, ZeroDivisionError):
        prompts, cells = (), (canvas,)
    return Grid(_step(file), prompts, cells)


def files(folder: Path, last: float = float("inf")) -> list[Path]:
    """The grids up to step `last`, in their order; later ones are of a run that was begun anew."""
    found = [file for file in folder.glob(PATTERN) if file.stem.removeprefix("step-").isdecimal()]
    return sorted((file for file in found if _step(file) <= last), key=_step)


def newest_picture(folder: Path, last: float = float("inf")) -> Image.Image | None:
    """The first picture of the newest grid up to step `last`, if there is one that can be read."""
    for file in reversed(files(folder, last)):
        try:
            return load(file).pictures[0]
        except (OSError, IndexError):
            continue
    return None


def in_rows(pictures: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Pictures of one size, side by side; a few take one row of their own width."""
    columns = min(columns, len(pictures))
    width, height = pictures[0].size
    canvas = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for i, picture in enumerate(pictures):
        canvas.paste(picture, (i % columns * width, i // columns * height))
    return canvas


def _step(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))
