"""Scores of images, computed once for each image and prompt and kept on the disk.

    OUT/scores/clip-1a2b3c4d/….npz      one metric's scores of a batch of images

Scores are found by the content of the image file and the prompt: an image that two methods share, or that a stopped run
has scored, is not scored again.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..cli.models import short_hash
from ..core.errors import RealignError
from ..core.files import write_whole
from ..core.images import to_uint8
from ..demo.judge import Verdict, judge, judge_all
from ..demo.world import SIZE, parse
from ..pipeline.realign import CaptionedImage
from .images import read_image
from .processes import Processes

Scorer = Callable[[Sequence[Image.Image], Sequence[str]], np.ndarray]
"""B pictures of one size and their prompts → [B, K]."""
BATCH = 16
"""Pictures that are scored at once."""


@dataclass(frozen=True)
class Metric:
    """K scores of an image and its prompt."""

    name: str
    columns: tuple[str, ...]
    """The scores' names in tables; none for features."""
    models: Mapping[str, str]
    """Its models, with the path and the state of their files."""
    load: Callable[[], Scorer]
    """Load the models; called only if a score is missing."""

    @property
    def slug(self) -> str:
        """The name of its folder, which depends on its models."""
        return f"{self.name}-{short_hash(json.dumps(self.models, sort_keys=True))}"


class Item(NamedTuple):
    """An image to score."""

    key: str
    """A hash of the file's content and the prompt."""
    file: Path
    prompt: str


def item_of(file: Path, prompt: str = "") -> Item:
    """The item of an image file."""
    try:
        content = hashlib.sha256(file.read_bytes())
    except OSError as error:
        raise RealignError(f"The image '{file}' cannot be read ({error.strerror}): replace it.") from error
    content.update(prompt.encode("utf-8", "surrogatepass"))
    return Item(content.hexdigest()[:32], file, prompt)


class Cache:
    """A folder with one file per batch, to which any number of processes may add."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values: dict[str, np.ndarray] = {}
        for file in sorted(folder.glob("*.npz")):
            try:
                with np.load(file) as part:
                    self.values.update(zip(part["keys"].tolist(), part["values"], strict=True))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue  # a damaged file counts as missing

    def add(self, keys: Sequence[str], values: np.ndarray) -> None:
        """Keep values [B, K] under B keys."""
        data = io.BytesIO()
        np.savez(data, keys=np.array(keys), values=values)
        write_whole(self.folder / f"{keys[0]}.npz", data.getvalue())
        self.values.update(zip(keys, values, strict=True))


def measure(metric: Metric, items: Sequence[Item], folder: Path, processes: Processes) -> None:
    """Score this process's share of the images, except those whose scores are in `folder` already."""
    cache = Cache(folder / metric.slug)
    unique = list({item.key: item for item in items}.values())  # the same in every process
    todo = [item for item in processes.share(unique) if item.key not in cache.values]
    if not todo:
        return
    cache.folder.mkdir(parents=True, exist_ok=True)
    score = metric.load()
    with tqdm(total=len(todo), desc=metric.name, unit="image", disable=not processes.first) as bar:
        for start in range(0, len(todo), BATCH):
            for batch, pictures in _group_by_size(todo[start : start + BATCH]):
                values = score(pictures, [item.prompt for item in batch])
                cache.add([item.key for item in batch], np.asarray(values, np.float32))
                bar.update(len(batch))


def _group_by_size(items: Sequence[Item]) -> Iterator[tuple[Sequence[Item], Sequence[Image.Image]]]:
    pairs = sorted(((item, read_image(item.file)) for item in items), key=lambda pair: pair[1].size)
    for _, group in groupby(pairs, key=lambda pair: pair[1].size):
        same_size = list(group)
        yield [item for item, _ in same_size], [picture for _, picture in same_size]


def read_scores(metric: Metric, items: Mapping[str, Sequence[Item]], folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The scores of each method's N images, one method after the other: [N, K], float64."""
    values = Cache(folder / metric.slug).values
    for name, images in items.items():
        yield name, np.stack([values[item.key] for item in images]).astype(np.float64)


def judge_pictures(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
    """The demo world's judge as a scorer. A prompt without a coloured shape gets NaN."""
    rows = []
    for picture, prompt in zip(pictures, prompts, strict=True):
        pairs = parse(prompt)
        if pairs and picture.size != (SIZE, SIZE):
            raise RealignError(
                f"The demo world's judge sees images of {SIZE} x {SIZE}, and one has {picture.width} x "
                f"{picture.height}: name the metrics that you want with --metric, without judge."
            )
        rows.append(judge(np.asarray(picture), pairs) if pairs else [np.nan] * len(Verdict._fields))
    return np.array(rows, np.float64)


def score_images(images: Sequence[CaptionedImage], prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """The judge's verdicts on images of the demo world, and their caption rewards: columns [N]."""
    pixels = to_uint8(torch.stack([image.image for image in images]))
    verdicts = judge_all(pixels, [parse(prompt) for prompt in prompts])
    return {**verdicts, "caption_reward": np.array([image.reward for image in images])}


def stayed_right(both_right: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Whether images are right that the first method made right: [N] in {0, 1}, NaN for the other images."""
    return np.where(first == 1, both_right, np.nan)
