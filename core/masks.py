"""Masks: their shapes, their boxes, and a batch of them for ComfyUI."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import RealignError
from .regions import Box, Region, RegionSet

Size = tuple[int, int]
"""(height, width) in pixels."""


def as_masks(value: Tensor) -> Tensor:
    """A MASK of any of the shapes in use, [H, W], [N, H, W] or [N, 1, H, W], as [N, H, W] in [0, 1]."""
    masks = value[None] if value.ndim == 2 else value
    masks = masks[:, 0] if masks.ndim == 4 and masks.shape[1] == 1 else masks
    if masks.ndim != 3 or not len(masks):
        raise RealignError(f"A mask has shape {tuple(value.shape)}: give [H, W] or a batch [N, H, W].")
    return masks.detach().float().cpu().nan_to_num().clamp(0, 1)


def mask_batch(sets: Sequence[RegionSet], size: Size | None = None) -> Tensor:
    """The masks of all regions in order, an empty one where nothing was found: [N, H, W]; one empty mask if N is 0."""
    found = [region.mask for one in sets for region in one if region.mask is not None]
    height, width = size or (found[0].shape if found else (64, 64))
    masks = [
        torch.zeros(height, width) if region.mask is None else _resized(region.mask, (height, width))
        for one in sets
        for region in one
    ]
    return torch.stack(masks) if masks else torch.zeros(1, height, width)


def box_mask(box: Box, size: Size) -> Tensor:
    """A box (fractions) as a mask [H, W]; at least one pixel."""
    height, width = size
    x0, y0, x1, y1 = box
    mask = torch.zeros(height, width)
    left, top = min(math.floor(x0 * width + 0.5), width - 1), min(math.floor(y0 * height + 0.5), height - 1)
    right, bottom = max(math.floor(x1 * width + 0.5), left + 1), max(math.floor(y1 * height + 0.5), top + 1)
    mask[top:bottom, left:right] = 1
    return mask


def mask_box(mask: Tensor) -> Box | None:
    """The box (fractions) around a mask [H, W]; None around an empty one."""
    rows, columns = (mask > 0.5).any(1).nonzero().flatten(), (mask > 0.5).any(0).nonzero().flatten()
    if not len(rows):
        return None
    height, width = mask.shape
    return (
        columns[0].item() / width,
        rows[0].item() / height,
        (columns[-1].item() + 1) / width,
        (rows[-1].item() + 1) / height,
    )


def empty_masks(regions: Sequence[Region]) -> list[str]:
    """A sentence for each region whose mask has no pixel."""
    return [
        f"The mask of '{r.phrase or r.tag}' is empty, so it re-weights nothing."
        for r in regions
        if r.mask is not None and r.area == 0
    ]


def _resized(mask: Tensor, size: Size) -> Tensor:
    if tuple(mask.shape) == tuple(size):
        return mask
    return torch.nn.functional.interpolate(mask[None, None].float(), size, mode="bilinear")[0, 0]
