"""RAM as a tagger: images in, the names of what they show out (c_i)."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..core.errors import RealignError
from .images import to_pil
from .loading import existing_folder
from .ram import Ram, RamConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Tag(NamedTuple):
    """A tag and how sure the tagger is of it, in [0, 1]."""

    name: str
    confidence: float


class Tagger:
    """A `Ram` with its list of tags and its threshold for each."""

    def __init__(self, model: Ram, tags: list[str], thresholds: Tensor) -> None:
        self.model, self.tags, self.thresholds = model.eval(), tags, thresholds

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Tagger:
        """Read `config.json`, `model.safetensors`, `ram_tag_list.txt` and `ram_tag_list_threshold.txt`."""
        folder = existing_folder(folder)
        try:
            model = Ram(RamConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8"))))
            model.load_state_dict(load_file(folder / "model.safetensors"))
            tags = (folder / "ram_tag_list.txt").read_text(encoding="utf-8").splitlines()
            thresholds = [float(v) for v in (folder / "ram_tag_list_threshold.txt").read_text().split()]
        except FileNotFoundError as error:
            raise RealignError(f"The tagger's file '{error.filename}' is missing: copy it into the folder.") from error
        except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise RealignError(
                f"The files in '{folder}' are damaged or not a RAM ({reason}): copy or download them again."
            ) from error
        if not len(tags) == len(thresholds) == model.config.num_tags:
            raise RealignError(
                f"The tagger in '{folder}' knows {model.config.num_tags} tags, but its files list {len(tags)} tags and "
                f"{len(thresholds)} thresholds: copy the list and the thresholds that belong to the weights."
            )
        return cls(model.to(device, dtype), tags, torch.tensor(thresholds))

    @torch.inference_mode()
    def tag(self, images: Tensor, *, threshold: float | None = None, deny: Collection[str] = ()) -> list[list[Tag]]:
        """images [B, H, W, 3] in [0, 1] → the tags of each, surest first; an empty list where none is found.

        threshold: one for all tags, in [0, 1]; by default each tag's own. deny: tags never reported.
        """
        size = self.model.config.image_size
        pixels = torch.stack([_pixels(picture, size) for picture in to_pil(images)])
        weight = self.model.fc.weight
        confidence = self.model(pixels.to(weight.device, weight.dtype)).float().sigmoid().cpu()  # [B, K]
        limits = self.thresholds if threshold is None else torch.full_like(self.thresholds, threshold)
        out = []
        for row in confidence:
            found = [Tag(self.tags[i], float(row[i])) for i in torch.nonzero(row >= limits).flatten().tolist()]
            out.append(sorted((t for t in found if t.name not in deny), key=lambda t: -t.confidence))
        return out


def _pixels(picture: Image.Image, size: int) -> Tensor:
    """[3, size, size], ImageNet's mean and spread; stretched, not cropped, as RAM was trained."""
    array = np.asarray(picture.resize((size, size), Image.BICUBIC), np.float32) / 255
    array = (array - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
    return torch.from_numpy(array).permute(2, 0, 1)
