"""Images in ComfyUI's form, [B, H, W, 3] in [0, 1]: checked, resized, converted."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .errors import RealignError

MIN_SIDE = 8


def check_images(images: Tensor) -> Tensor:
    """The images [B, H, W, 3] clamped to [0, 1], float32; a RealignError for another shape, a side under 8 or NaN."""
    if images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise RealignError(f"Images have shape {tuple(images.shape)}; give a batch [B, H, W, 3] with RGB last.")
    if min(images.shape[1:3]) < MIN_SIDE:
        raise RealignError(
            f"The image is {images.shape[2]} x {images.shape[1]} pixels; nothing can be seen in one under "
            f"{MIN_SIDE} x {MIN_SIDE}: give a larger image."
        )
    broken = [i for i, image in enumerate(images) if not torch.isfinite(image).all()]
    if broken:
        raise RealignError(
            f"Image {broken[0] + 1} of {len(images)} holds values that are not numbers (NaN or infinite): the step "
            "that made it failed, often a VAE in half precision; decode it in full precision."
        )
    return images.float().clamp(0, 1)


def resize(images: Tensor, size: tuple[int, int], filter: str = "bicubic") -> Tensor:
    """Images [B, 3, H, W] → [B, 3, h, w] with values in [0, 1]; every pixel keeps its gradient.

    Values are clamped to [0, 1] before and after resizing, as in a saved picture. The gradient passes the clamp
    (straight-through), so that training can change a saturated pixel back.
    """
    images = _clamp(images)
    if images.shape[-2:] == size:
        return images
    return _clamp(F.interpolate(images, size, mode=filter, antialias=True))


def _clamp(x: Tensor) -> Tensor:
    """x clamped to [0, 1], with the gradient of x."""
    return x.detach().clamp(0, 1) + (x - x.detach())


def to_pil(images: Tensor) -> list[Image.Image]:
    """Images [B, H, W, 3] in [0, 1] → RGB pictures; checks them."""
    return [Image.fromarray(array) for array in to_uint8(images)]


def to_uint8(images: Tensor) -> np.ndarray:
    """Images [B, H, W, 3] in [0, 1] → the same in 0...255; checks them."""
    return (check_images(images) * 255).round().to(torch.uint8).cpu().numpy()
