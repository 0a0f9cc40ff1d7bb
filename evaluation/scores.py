"""Numbers of images: each is made once for an image and its prompt, and kept on the disk.

    OUT/scores/clip-1a2b3c4d/….npz      what one model said of a batch of images

What is kept goes by the bytes of the file and the prompt, so a metric that is added later, an image that two methods
share, or a run that was stopped costs nothing twice.
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
from ..demo.judge import Verdict, judge
from ..demo.world import SIZE, parse
from ..pipeline.realign import CaptionedImage
from ..rewards.reward import Reward
from .images import read
from .processes import Processes

Judge = Callable[[Sequence[Image.Image], Sequence[str]], np.ndarray]
"""B pictures of one size and their prompts → [B, K]."""
AT_ONCE = 16
"""Pictures that a metric is shown at once."""


@dataclass(frozen=True)
class Metric:
    """K numbers of an image and its prompt."""

    name: str
    columns: tuple[str, ...]
    """What the tables call the numbers; none for features."""
    models: Mapping[str, str]
    """What it judges with: names, and path and state of their files."""
    load: Callable[[], Judge]
    """Read the models; asked for only when a number is missing."""

    @property
    def slug(self) -> str:
        """The name of its folder, another one for other models."""
        return f"{self.name}-{short_hash(json.dumps(self.models, sort_keys=True))}"


class Item(NamedTuple):
    """An image to be judged."""

    key: str
    """Of the file's content and the prompt."""
    file: Path
    prompt: str


def item(file: Path, prompt: str = "") -> Item:
    """The file as something to judge.

    Raises:
        RealignError: it cannot be read.
    """
    try:
        content = hashlib.sha256(file.read_bytes())
    except OSError as error:
        raise RealignError(f"The image '{file}' cannot be read ({error.strerror}): replace it.") from error
    content.update(prompt.encode("utf-8", "surrogatepass"))
    return Item(content.hexdigest()[:32], file, prompt)


class Cache:
    """A folder with one file a batch, which any number of processes may add to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values: dict[str, np.ndarray] = {}
        for file in sorted(folder.glob("*.npz")):
            try:
                with np.load(file) as part:
                    self.values.update(zip(part["keys"].tolist(), part["values"], strict=True))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue  # as if it had never been there

    def add(self, keys: Sequence[str], values: np.ndarray) -> None:
        """Keep values [B, K] under B keys.

        Raises:
            RealignError: they cannot be written.
        """
        data = io.BytesIO()
        np.savez(data, keys=np.array(keys), values=values)
        write_whole(self.folder / f"{keys[0]}.npz", data.getvalue())
        self.values.update(zip(keys, values, strict=True))


def measure(metric: Metric, items: Sequence[Item], folder: Path, processes: Processes) -> None:
    """Let this process's share of the images be judged, but for what is in `folder` already."""
    there = Cache(folder / metric.slug)
    unique = list({one.key: one for one in items}.values())  # the same in every process
    todo = [one for one in processes.share(unique) if one.key not in there.values]
    if not todo:
        return
    there.folder.mkdir(parents=True, exist_ok=True)
    judge = metric.load()
    with tqdm(total=len(todo), desc=metric.name, unit="image", disable=not processes.first) as bar:
        for start in range(0, len(todo), AT_ONCE):
            for batch, pictures in _of_one_size(todo[start : start + AT_ONCE]):
                values = judge(pictures, [one.prompt for one in batch])
                there.add([one.key for one in batch], np.asarray(values, np.float32))
                bar.update(len(batch))


def _of_one_size(items: Sequence[Item]) -> Iterator[tuple[list[Item], list[Image.Image]]]:
    pictures = sorted(((one, read(one.file)) for one in items), key=lambda pair: pair[1].size)
    for _, group in groupby(pictures, key=lambda pair: pair[1].size):
        own = list(group)
        yield [one for one, _ in own], [picture for _, picture in own]


def measured(metric: Metric, items: Mapping[str, Sequence[Item]], folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """What was measured of the N images of each method: [N, K], float64; of one method after the other."""
    values = Cache(folder / metric.slug).values
    for name, own in items.items():
        yield name, np.stack([values[one.key] for one in own]).astype(np.float64)


def of_reward(name: str, models: Mapping[str, str], load: Callable[[], Reward]) -> Metric:
    """A reward as a metric."""

    def loaded() -> Judge:
        reward = load()

        def judge(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
            images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).float() / 255
            with torch.inference_mode():
                return reward(images, prompts).float().cpu().numpy()[:, None]

        return judge

    return Metric(name, (name,), models, loaded)


def of_judge() -> Metric:
    """The demo world's judge, which has no trained parts; of a prompt that names no coloured shape it says nothing."""
    return Metric("judge", Verdict._fields, {}, lambda: _judge)


def _judge(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
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


def of_looks(looks: Sequence[CaptionedImage], prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """What the judge says of images of the demo world that are not on the disk, and their caption rewards: [N] each."""
    images = to_uint8(torch.stack([seen.image for seen in looks]))
    judged = np.array([judge(image, parse(prompt)) for image, prompt in zip(images, prompts, strict=True)])
    rewards = np.array([seen.reward for seen in looks])
    return {**dict(zip(Verdict._fields, judged.T, strict=True)), "caption_reward": rewards}


def stayed_right(both_right: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Of the images that the first method drew right, whether they are right: [N] in {0, 1}, NaN for the others."""
    return np.where(first == 1, both_right, np.nan)
