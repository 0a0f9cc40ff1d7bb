"""The files of an evaluation's images: one PNG per prompt and method, written whole or not at all.

OUT/images/METHOD/made.json     models and settings; a folder never mixes images of different ones
OUT/images/METHOD/00000.png     its header holds the prompt and the seed
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from torch import Tensor

from ..core.errors import RealignError
from ..core.files import write_whole
from ..core.images import to_pil
from ..core.pictures import find_pictures, is_whole_png, open_picture
from .prompt_sets import Numbered

MADE = "made.json"


def image_file(folder: Path, index: int) -> Path:
    """The file of prompt `index`."""
    return folder / f"{index:05d}.png"


def write_image(file: Path, image: Tensor, prompt: str, seed: int) -> None:
    """Write image [H, W, 3] in [0, 1]."""
    about = PngImagePlugin.PngInfo()
    about.add_itxt("prompt", prompt.encode("utf-8", "replace").decode())
    about.add_text("seed", str(seed))
    write_png(file, to_pil(image[None])[0], about)


def write_png(file: Path, picture: Image.Image, about: PngImagePlugin.PngInfo | None = None) -> None:
    """Write a PNG, whole or not at all."""
    data = io.BytesIO()
    picture.save(data, "PNG", pnginfo=about)
    write_whole(file, data.getvalue())


def missing_images(folder: Path, prompts: Sequence[Numbered], seed: int) -> list[Numbered]:
    """The prompts without an image. A file that is damaged or cut off counts as missing."""
    return [prompt for prompt in prompts if not _exists(image_file(folder, prompt.index), prompt, seed)]


def _exists(file: Path, prompt: Numbered, seed: int) -> bool:
    if not is_whole_png(file):
        return False
    with Image.open(file) as picture:
        about = picture.info
    drawn, wanted = about.get("prompt"), prompt.text.encode("utf-8", "replace").decode()
    if drawn != wanted:
        raise RealignError(
            f"'{file}' was drawn for “{drawn}”, but prompt {prompt.index} is now “{wanted}”: give another --out, or "
            "the prompts of then."
        )
    if about.get("seed") != str(seed + prompt.index):
        raise RealignError(f"'{file}' has the seed {about.get('seed')}, not {seed + prompt.index}: give another --out.")
    return True


def claim(folder: Path, made_of: Mapping[str, Any]) -> None:
    """Make a method's folder, or check that its images were made with these models and settings, JSON-ready."""
    file = folder / MADE
    wanted = json.loads(json.dumps(made_of))
    try:
        was = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        was = None
    if not isinstance(was, dict):
        if any(folder.glob("*.png")):
            raise RealignError(f"'{folder}' holds images, but no {MADE} says how they were made: give another --out.")
        write_whole(file, json.dumps(wanted, indent=2, ensure_ascii=False) + "\n")
    elif was != wanted:
        name = next(name for name in {**was, **wanted} if was.get(name) != wanted.get(name))
        raise RealignError(
            f"The images in '{folder}' were made with {name} {was.get(name)}, not {wanted.get(name)}: give another "
            "--out, or remove that folder."
        )


def other_images(folder: Path, prompts: Sequence[Numbered]) -> list[Path]:
    """Another system's images of the prompts.

    If the files are named by numbers from 0 on (7.png, 00007.jpg), a number is that of the prompt. Else there must be
    one image per prompt, in the order of the names (`image2` before `image10`).
    """
    files, left_out = find_pictures(folder, recursive=False)
    numbers = {int(file.stem): file for file in files if re.fullmatch(r"[0-9]+", file.stem)}
    wanted = [prompt.index for prompt in prompts]
    if len(numbers) == len(files) and 0 in numbers and numbers.keys() >= set(wanted):
        return [numbers[index] for index in wanted]
    if len(files) != len(prompts):
        raise RealignError(
            f"'{folder}' holds {len(files)} images, and there are {len(prompts)} prompts: give one image per prompt, "
            f"or name each by the number of its prompt, from 00000.png on. {left_out}".rstrip()
        )
    return sorted(files, key=_natural)


def _natural(file: Path) -> list[tuple[int, str]]:
    """A sort key that puts `image2` before `image10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", file.name) if part]


def read_image(file: Path) -> Image.Image:
    """Read an image as RGB, upright."""
    try:
        return open_picture(file)
    except Exception as error:  # Pillow raises errors of many kinds
        raise RealignError(f"The image '{file}' cannot be read ({error}): replace it.") from error
