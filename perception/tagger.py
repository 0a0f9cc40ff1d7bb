"""RAM and RAM++: images → tags, the names of what they show (c_i)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers.image_utils import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from transformers.image_utils import IMAGENET_DEFAULT_STD as IMAGENET_STD

from ..checkpoints.networks.ram import Ram, RamPlus
from ..checkpoints.ram import load_ram
from ..core.errors import RealignError
from ..core.images import to_pil
from .labels import Labels, read_labels, read_lines

TAG_LIST, THRESHOLD_LIST = "ram_tag_list.txt", "ram_tag_list_threshold.txt"
"""Files beside the weights; published in `ram/data` of github.com/xinyu1205/recognize-anything."""
THRESHOLD = 0.68  # the published threshold for tags without one


class Tag(NamedTuple):
    """A tag and its confidence in [0, 1]."""

    name: str
    confidence: float


class Tagger:
    """A `Ram` or `RamPlus` with its tags and a threshold per tag."""

    def __init__(self, model: Ram, tags: list[str], thresholds: Tensor, notes: tuple[str, ...] = ()) -> None:
        self.model, self.tags, self.thresholds = model.eval(), tags, thresholds
        self.notes = notes  # messages for the user about how it was loaded

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        labels: str | Path | None = None,
    ) -> Tagger:
        """Read a tagger and, beside its weights, `ram_tag_list.txt` and `ram_tag_list_threshold.txt`.

        path: a published file, e.g. `ram_plus_swin_large_14m.pth`; its folder; or one with our `model.safetensors`.
        labels: a file of label embeddings whose tags replace the model's own; see `labels.read_labels`.
        """
        model = load_ram(path, dtype)
        if labels is not None:
            replacement = read_labels(labels)
            _replace_labels(model, replacement, labels)
            return cls(model.to(device), replacement.tags, replacement.thresholds)
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        tags, thresholds, notes = _read_lists(folder, len(model.label_embed))
        return cls(model.to(device), tags, thresholds, notes)

    def tag(self, images: Tensor, *, threshold: float | None = None, deny: Collection[str] = ()) -> list[list[Tag]]:
        """images [B, H, W, 3] in [0, 1] → each image's tags, the most confident first; perhaps none.

        threshold: one for all tags, in [0, 1]; by default each tag has its own. deny: tags to leave out, in any case.
        """
        check_threshold(threshold)
        confidence = self.logits(images).sigmoid()
        limits = self.thresholds if threshold is None else torch.full_like(self.thresholds, threshold)
        denied = {name.strip().casefold() for name in deny}
        out = []
        for row in confidence:
            found = [Tag(self.tags[i], float(row[i])) for i in torch.nonzero(row > limits).flatten().tolist()]
            allowed = (tag for tag in found if tag.name.casefold() not in denied)
            out.append(sorted(allowed, key=lambda tag: -tag.confidence))
        return out

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """images [B, H, W, 3] in [0, 1] → [B, K] in fp32 on the CPU."""
        size = self.model.config.image_size
        pixels = torch.stack([_pixels(picture, size) for picture in to_pil(images)])
        weight = self.model.fc.weight
        return self.model(pixels.to(weight.device, weight.dtype)).float().cpu()


def check_threshold(threshold: float | None) -> None:
    """Raise a RealignError if a threshold for all tags is out of its range."""
    if threshold is not None and not 0 <= threshold <= 1:  # also for NaN
        raise RealignError(f"The tags' threshold is {threshold}; give a number from 0 to 1.")


def _read_lists(folder: Path, count: int) -> tuple[list[str], Tensor, tuple[str, ...]]:
    """The names and thresholds of `count` tags from the folder, and a note if it has no thresholds."""
    if not (folder / TAG_LIST).is_file():
        raise RealignError(
            f"The names of the tagger's {count} tags are missing: put {TAG_LIST} (from ram/data of the repository "
            f"github.com/xinyu1205/recognize-anything) into '{folder}'."
        )
    tags, notes = read_lines(folder / TAG_LIST, "The names of the tagger's tags"), ()
    if (folder / THRESHOLD_LIST).is_file():
        lines = read_lines(folder / THRESHOLD_LIST, "The tags' thresholds")
    else:
        lines, notes = [str(THRESHOLD)] * count, (f"{THRESHOLD_LIST} is not there: every tag's is {THRESHOLD}",)
    try:
        thresholds = torch.tensor([float(line) for line in lines])
    except ValueError as error:
        raise RealignError(
            f"'{folder / THRESHOLD_LIST}' holds more than numbers ({error}): download it again."
        ) from error
    if not thresholds.isfinite().all():
        raise RealignError(f"'{folder / THRESHOLD_LIST}' holds a threshold that is not finite: download it again.")
    if not len(tags) == len(thresholds) == count:
        raise RealignError(
            f"The tagger in '{folder}' knows {count} tags, but its files list {len(tags)} tags and "
            f"{len(thresholds)} thresholds: copy the list and the thresholds that belong to the weights."
        )
    return tags, thresholds, notes


def _replace_labels(model: Ram, labels: Labels, file: str | Path) -> None:
    _, descriptions, width = labels.embed.shape
    if width != model.config.label_width:
        raise RealignError(
            f"The label embeddings in '{file}' are {width} wide, and the tagger's {model.config.label_width}: make "
            "them with the text encoder of CLIP ViT-B/16."
        )
    many = isinstance(model, RamPlus)
    if descriptions > 1 and not many:
        raise RealignError(
            f"'{file}' holds {descriptions} descriptions per tag, which only a RAM++ can read: give one embedding per "
            "tag."
        )
    embed = labels.embed if many else labels.embed[:, 0]
    model.label_embed = nn.Parameter(embed.to(model.label_embed), requires_grad=False)


def _pixels(picture: Image.Image, size: int) -> Tensor:
    """[3, size, size], normalised with ImageNet's statistics; stretched bilinearly, not cropped, as in training."""
    array = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR), np.float32) / 255
    array = (array - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
    return torch.from_numpy(array).permute(2, 0, 1)
