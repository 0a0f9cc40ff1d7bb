"""Masks: their shapes, their boxes, and batches of them for ComfyUI."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import RealignError
from .regions import Box, Region, RegionSet

Size = tuple[int, int]
"""(height, width) in pixels."""
MOST_VALUES = 2**31
"""The most values in all masks of a batch; each takes 4 bytes."""
RANGE = (-0.5, 1.5)
"""Mask values in this range are clamped to [0, 1], because resizing a mask may overshoot; others are refused."""


def as_masks(value: Tensor) -> Tensor:
    """A MASK [H, W], [N, H, W] or [N, 1, H, W] as [N, H, W] in [0, 1].

    Another shape, and a value that is NaN or outside of `RANGE`, raise a RealignError.
    """
    masks = value[None] if value.ndim == 2 else value
    masks = masks[:, 0] if masks.ndim == 4 and masks.shape[1] == 1 else masks
    if masks.ndim != 3 or not len(masks):
        raise RealignError(f"A mask has shape {tuple(value.shape)}: give [H, W] or a batch [N, H, W].")
    masks = masks.detach().float().cpu()
    low, high = (edge.item() for edge in masks.aminmax()) if masks.numel() else (0.0, 0.0)
    if not (RANGE[0] <= low and high <= RANGE[1]):  # also NaN
        raise RealignError(f"A mask has values from {low:g} to {high:g}: give values from 0 to 1.")
    return masks.clamp(0, 1)


def check_memory(number: int, size: Size) -> None:
    """Raise a RealignError where `number` masks of a size have more than MOST_VALUES in total."""
    height, width = size
    if number * height * width > MOST_VALUES:
        gigabytes = number * height * width * 4 / 1e9
        raise RealignError(
            f"{number:,} masks of {width} x {height} pixels take {gigabytes:.0f} GB: give fewer, or a smaller image."
        )


def mask_batch(sets: Sequence[RegionSet], size: Size | None = None) -> Tensor:
    """The masks of all regions in order, [N, H, W]; empty where a region has none. Without regions one empty mask."""
    found = [region.mask for one in sets for region in one if region.mask is not None]
    height, width = size or (found[0].shape if found else (64, 64))
    regions = [region for one in sets for region in one]
    check_memory(len(regions), (height, width))
    masks = torch.zeros(max(len(regions), 1), height, width)
    for mask, region in zip(masks, regions, strict=False):
        if region.mask is not None:
            mask.copy_(_resized(region.mask, (height, width)))
    return masks


def box_mask(box: Box, size: Size) -> Tensor:
    """A box (in fractions) as a mask [H, W] of at least one pixel."""
    height, width = size
    x0, y0, x1, y1 = box
    mask = torch.zeros(height, width)
    left, top = min(math.floor(x0 * width + 0.5), width - 1), min(math.floor(y0 * height + 0.5), height - 1)
    right, bottom = max(math.floor(x1 * width + 0.5), left + 1), max(math.floor(y1 * height + 0.5), top + 1)
    mask[top:bottom, left:right] = 1
    return mask


def mask_box(mask: Tensor) -> Box | None:
    """The box (in fractions) around a mask [H, W]; None for an empty mask."""
    rows, columns = (mask > 0.5).any(1).nonzero().flatten(), (mask > 0.5).any(0).nonzero().flatten()
    if not len(rows):
        return None
    height, width = mask.shape
    (left, right), (top, bottom) = columns[[0, -1]].tolist(), rows[[0, -1]].tolist()
    return left / width, top / height, (right + 1) / width, (bottom + 1) / height


def empty_masks(regions: Sequence[Region]) -> list[str]:
    """One sentence per region whose mask has no pixel."""
    return [
        f"The mask of '{r.phrase or r.tag}' is empty, so it re-weights nothing."
        for r in regions
        if r.mask is not None and r.area == 0
    ]


def _resized(mask: Tensor, size: Size) -> Tensor:
    if tuple(mask.shape) == tuple(size):
        return mask
    return torch.nn.functional.interpolate(mask[None, None].float(), size, mode="bilinear")[0, 0]
