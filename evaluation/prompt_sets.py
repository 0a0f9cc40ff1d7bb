"""The prompts that methods are compared on: a file that `core.prompt_files` reads, or those of the demo world.

A prompt keeps its number in the file, so that a part of it (`--first`, `--count`) gives the same images as the whole.
"""

from __future__ import annotations

from typing import NamedTuple

from ..core.embedded import DEMO
from ..core.errors import RealignError
from ..core.prompt_files import Prompts, read_prompts
from ..demo.prompts import two_object_prompts


class Numbered(NamedTuple):
    """A prompt and its number in its file, from 0. The number names the image, and is added to the seed."""

    index: int
    text: str


def prompt_set(
    source: str,
    *,
    first: int = 0,
    count: int | None = None,
    column: str | None = None,
    one_caption: bool = True,
    repeats: bool = False,
) -> tuple[list[Numbered], tuple[str, ...]]:
    """The prompts of a file from number `first` on, and a sentence for each row without a prompt.

    source: a file, a folder, or `demo`, the held-out two-object prompts of the demo world.
    count: how many; by default all. A prompt that occurs twice is sampled twice, from different noise.
    one_caption: take one caption per image from COCO's file, so that FID compares equal numbers of images.
    repeats: keep prompts that successive rows of a table repeat (see `read_prompts`).
    """
    if source == DEMO:
        found = Prompts(tuple(text for text, _ in two_object_prompts(held_out=True)))
    else:
        found = read_prompts(source, column, one_caption=one_caption, repeats=repeats)
    total = len(found.texts)
    if not 0 <= first < total:
        raise RealignError(f"first is {first}; give a whole number from 0 to {total - 1}: there are {total} prompts.")
    left = total - first
    if count is not None and not 1 <= count <= left:
        raise RealignError(f"count is {count}; give a whole number from 1 to {left}, as many prompts there are.")
    end = total if count is None else first + count
    return [Numbered(i, found.texts[i]) for i in range(first, end)], found.problems
