"""The prompts that methods are compared on, from the files in which they are published.

COCO's captions (`captions_val2014.json`), ABC-6K and CC-500 (a prompt a line), whatever `training.prompts.read_prompts`
reads, or the word `demo`. A prompt keeps the number that it has in its file, so that a part of a file (`--first`,
`--count`) is drawn as the whole would be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import RealignError
from ..demo.prompts import two_object_prompts
from ..training.prompts import DEMO, Prompts, read_prompts


class Numbered(NamedTuple):
    """A prompt and its number in its file, from 0: its image's name, and what is added to the seed for its noise."""

    index: int
    text: str


def prompt_set(
    source: str, *, first: int = 0, count: int | None = None, column: str | None = None, one_caption: bool = True
) -> tuple[list[Numbered], tuple[str, ...]]:
    """The prompts of a file from number `first` on, and a sentence for each row that is none.

    source: a file, a folder, or `demo`, the held-out two-object prompts of the demo world.
    count: how many; all that there are by default. A prompt that stands there twice is drawn twice, from other noise.
    one_caption: of COCO's file one caption an image (see `coco_captions`), not all of them.

    Raises:
        RealignError: there are not so many, or the file cannot be read.
    """
    found = _read(source, column, one_caption)
    there = len(found.texts)
    if not 0 <= first < there:
        raise RealignError(f"first is {first}; give a whole number from 0 to {there - 1}: there are {there} prompts.")
    left = there - first
    if count is not None and not 1 <= count <= left:
        raise RealignError(f"count is {count}; give a whole number from 1 to {left}, as many prompts there are.")
    end = there if count is None else first + count
    return [Numbered(i, found.texts[i]) for i in range(first, end)], found.problems


def _read(source: str, column: str | None, one_caption: bool) -> Prompts:
    if source == DEMO:
        return Prompts(tuple(text for text, _ in two_object_prompts(held_out=True)))
    if Path(source).suffix.lower() == ".json":
        return coco_captions(Path(source), one_caption)
    return read_prompts(source, column)


def coco_captions(file: Path, one: bool = True) -> Prompts:
    """The captions of a COCO annotation file, with line breaks and spaces around them taken out.

    one: of each image the caption with the lowest id, in the order of the images' ids: FID is then asked of as many
        images as the real ones. Else all captions, in the order of the file.

    Raises:
        RealignError: it is no such file, or there is no caption in it.
    """
    rows = _annotations(file)
    if one:
        rows = sorted(rows, key=lambda row: (row["image_id"], row["id"]))
        rows = list({row["image_id"]: row for row in reversed(rows)}.values())[::-1]
    texts, problems = [], []
    for row in rows:
        text = " ".join(row["caption"].replace("\0", " ").split())
        if text:
            texts.append(text)
        else:
            problems.append(f"{file.name}, annotation {row['id']}: the text is empty.")
    if not texts:
        raise RealignError(f"There is no caption in {file}: give COCO's captions_*.json.")
    return Prompts(tuple(texts), tuple(problems))


def _annotations(file: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(file.read_bytes())["annotations"]
        rows = [{"id": int(row["id"]), "image_id": int(row["image_id"]), "caption": row["caption"]} for row in rows]
        if not all(isinstance(row["caption"], str) for row in rows):
            raise TypeError("a caption is not text")
    except OSError as error:
        raise RealignError(f"{file} could not be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RealignError(
            f"{file} is no file of COCO captions ({type(error).__name__}: {error}): give captions_*.json, or prompts "
            "as .txt, .csv, .tsv or .jsonl."
        ) from error
    return rows
