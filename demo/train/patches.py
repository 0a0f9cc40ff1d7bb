"""Patch labels. Without this loss image encoders learn colours at once, and shapes very late or never."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import world
from .data import Scenes

PATCH = 8
"""Pixels per side."""


class PatchLabels:
    """A dense auxiliary task: which shape (or none) does each patch of an image encoder show?"""

    def __init__(self, scenes: Scenes, device: str, width: int) -> None:
        grid = world.SIZE // PATCH
        centre = (np.arange(grid) + 0.5) * PATCH
        labels = np.zeros((len(scenes), grid, grid), np.int64)
        for i, things in enumerate(scenes.things):
            for t in things:
                rows, columns = (np.abs(centre - v) <= t.r + PATCH / 4 for v in (t.y, t.x))
                labels[i][np.ix_(rows, columns)] = 1 + world.SHAPES.index(t.shape)
        self.labels = torch.from_numpy(labels).flatten(1).to(device)  # [N, patches]
        self.head = nn.Linear(width, 1 + len(world.SHAPES)).to(device)
        self.weight = torch.tensor([0.2] + [1.0] * len(world.SHAPES), device=device)

    def loss(self, tokens: Tensor, index: Tensor) -> Tensor:
        """tokens [B, 1 + patches, width], the first one of the whole image → weighted cross-entropy."""
        logits = self.head(tokens[:, 1:]).float().flatten(0, 1)
        return F.cross_entropy(logits, self.labels[index.to(self.labels.device)].flatten(), weight=self.weight)
