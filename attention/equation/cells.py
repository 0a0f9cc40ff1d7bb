"""Masks on the coarse grids of attention layers: which cells of a (h, w) grid a mask [H, W] covers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.errors import RealignError


def mask_to_cells(mask: Tensor, size: tuple[int, int], coverage: float = 0.5) -> Tensor:
    """A mask [H, W] in [0, 1] → the cells [h, w] (bool) of which it covers at least the fraction `coverage`.

    A mask with any pixel keeps at least the cell that it covers most, so that no small thing is lost on a coarse grid.
    """
    covered = covered_fractions(mask, size)
    enough = covered.max().clamp(max=coverage)
    return (covered >= enough * (1 - 1e-4)) & (covered > 0)  # 1e-4: for rounding, so that equal cells fare equally


def covered_fractions(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask [H, W] in [0, 1] → the fraction of each cell that it covers, [h, w] in [0, 1]."""
    rows, columns = (_overlap(n, m).to(mask.device) for n, m in zip(size, mask.shape, strict=True))
    return rows @ mask.float() @ columns.T


def _overlap(cells: int, pixels: int) -> Tensor:
    """[cells, pixels]: the fraction of each cell that each pixel takes, both dividing the same unit length."""
    cell = torch.arange(cells, dtype=torch.float64)[:, None] / cells
    pixel = torch.arange(pixels, dtype=torch.float64) / pixels
    shared = torch.minimum(cell + 1 / cells, pixel + 1 / pixels) - torch.maximum(cell, pixel)
    return (shared.clamp(min=0) * cells).float()


def grid_size(n_queries: int, latent_size: tuple[int, int]) -> tuple[int, int]:
    """The (h, w) of an attention layer with `n_queries` image tokens in a UNet that halves a latent (H, W) repeatedly.

    Raises:
        RealignError: no halving of the latent has as many cells.
    """
    height, width = latent_size
    for level in range(max(latent_size).bit_length() + 1):
        size = halve(latent_size, level)
        if math.prod(size) == n_queries:
            return size
    raise RealignError(
        f"An attention layer has {n_queries} queries, which is no halving of the latent {height}x{width}; "
        "give the size of the latent that the model is sampling."
    )


def halve(size: Sequence[int], times: int) -> tuple[int, int]:
    """The (h, w) of a grid (H, W) after so many halvings, each rounded up."""
    return tuple(-(-side // 2**times) for side in size)
