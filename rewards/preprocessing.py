"""Images to a network's input, as the model's image processor does it, but in torch, so that pixels get a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.images import resize

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Per colour channel, in [0, 1]: CLIP, BLIP and most models after them were trained with these."""
_FILTERS = {2: "bilinear", 3: "bicubic"}
"""By Pillow's numbers."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop the middle, normalise.

    The processors of transformers and torchvision resize 8-bit images, and round and clip after each direction. Here
    nothing is rounded, and clipped values keep their gradient. So values differ by up to 2/255, and by 6/255 at
    enlarged sharp edges of black or white. Where an odd number of pixels is cropped, torchvision's crop may be off by
    one pixel.
    """

    size: tuple[int, int] | int
    """Height and width to resize to. One number is the length of the shorter side; the aspect ratio is kept."""
    crop: tuple[int, int] | None = None
    """Height and width of the centre crop; None keeps all."""
    mean: Sequence[float] = OPENAI_MEAN
    std: Sequence[float] = OPENAI_STD
    filter: str = "bicubic"

    @classmethod
    def of(cls, processor: Any) -> Preprocessing:
        """The same steps as an image processor of transformers for CLIP or BLIP."""
        size, crop = processor.size, getattr(processor, "crop_size", None)
        edge = size.get("shortest_edge")
        cropped = crop if getattr(processor, "do_center_crop", None) else None
        return cls(
            size=edge if edge is not None else (size["height"], size["width"]),
            crop=(cropped["height"], cropped["width"]) if cropped else None,
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
            filter=_FILTERS.get(int(processor.resample), "bicubic"),
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, H, W, 3] → normalised pixels [B, 3, h, w], float32, differentiable.

        Values outside [0, 1] count as 0 or 1, but keep their gradient.
        """
        x = images.permute(0, 3, 1, 2).float()
        size = self._resized(*x.shape[-2:])
        x = resize(x, size, self.filter)
        if self.crop is not None:
            height, width = self.crop
            top, left = (size[0] - height) // 2, (size[1] - width) // 2
            x = x[..., top : top + height, left : left + width]
        mean, std = (torch.tensor(v).to(x).view(3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.size, int):
            return self.size
        short, long = min(height, width), max(height, width)
        long = int(self.size * long / short)
        return (self.size, long) if height <= width else (long, self.size)
