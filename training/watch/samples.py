"""Grids of sample images, one per PNG file, whose header holds the prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ...core.files import write_whole

KEY = "realigndiff.samples"
"""The key of the PNG header for `{"prompts": [...], "size": [width, height]}`; `size` is that of one picture."""


class Grid(NamedTuple):
    """The pictures of one file."""

    step: int
    prompts: tuple[str, ...]  # one per picture; empty if the header does not hold them
    pictures: tuple[Image.Image, ...]  # a file without our header is one picture


def save(folder: Path, step: int, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Path:
    """Write the pictures of one step, all of equal size, as one file; its path."""
    header = PngInfo()
    header.add_text(KEY, json.dumps({"prompts": list(prompts), "size": pictures[0].size}))
    file = folder / f"step-{step:08d}.png"
    write_picture(file, in_rows(pictures), header)
    return file


def write_picture(file: Path, picture: Image.Image, header: PngInfo | None = None) -> None:
    """Write a PNG, whole or not at all."""
    write_whole(file, lambda partial: picture.save(partial, "PNG", pnginfo=header))


def load(file: Path) -> Grid:
    """Read a file that `save` wrote; any other image becomes one picture without a prompt.

    Raises:
        OSError: it is no image, or a truncated one.
    """
    with Image.open(file) as opened:
        canvas = opened.convert("RGB")
        header: Any = getattr(opened, "text", {}).get(KEY)
    try:
        about = json.loads(header)
        prompts, (width, height) = tuple(map(str, about["prompts"])), about["size"]
        columns = canvas.width // width
        corners = [(i % columns * width, i // columns * height) for i in range(len(prompts))]
        cells = tuple(canvas.crop((x, y, x + width, y + height)) for x, y in corners)
    except (TypeError, ValueError, KeyError, ZeroDivisionError):
        prompts, cells = (), (canvas,)
    return Grid(_step(file), prompts, cells)


def files(folder: Path, last: float = float("inf")) -> list[Path]:
    """The grids up to step `last`, by step; later ones are from a run that was started over."""
    grids = [file for file in folder.glob("step-*.png") if file.stem.removeprefix("step-").isdecimal()]
    return sorted((file for file in grids if _step(file) <= last), key=_step)


def newest_picture(folder: Path, last: float = float("inf")) -> Image.Image | None:
    """The first picture of the newest readable grid up to step `last`, if any."""
    for file in reversed(files(folder, last)):
        try:
            return load(file).pictures[0]
        except (OSError, IndexError):
            continue
    return None


def in_rows(pictures: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Pictures of equal size in rows of `columns`; fewer pictures make one shorter row."""
    columns = min(columns, len(pictures))
    width, height = pictures[0].size
    canvas = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for i, picture in enumerate(pictures):
        canvas.paste(picture, (i % columns * width, i // columns * height))
    return canvas


def _step(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))
