"""Training scenes, rendered in parallel and held as tensors, and what image encoders learn of them."""

from __future__ import annotations

import os
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import world

_CHUNK = 500
PATCH = 8
"""Pixels per side of an image encoder's patch."""


@dataclass(frozen=True)
class Scenes:
    """Many scenes: images, things and, where kept, masks."""

    images: Tensor
    """[N, 3, 64, 64] uint8."""
    things: list[tuple[world.Thing, ...]]
    masks: list[np.ndarray] | None = None
    """[n, 64, 64] float32 in [0, 1] each."""

    def __len__(self) -> int:
        return len(self.things)

    def pixels(self, index: Tensor, device: torch.device | str) -> Tensor:
        """[B, 3, 64, 64] float in [-1, 1]."""
        return self.images[index].to(device, non_blocking=True).float() / 127.5 - 1


def draw_scenes(
    count: int, seed: int, *, masks: bool = False, objects: int | None = None, held_out: bool | None = False
) -> Scenes:
    """`count` random scenes (a multiple of 500 is drawn, in parallel); equal seeds give equal scenes."""
    seeds = [seed * 100_000 + start for start in range(0, count, _CHUNK)]
    draw = partial(_draw_chunk, objects=objects, held_out=held_out)
    if len(seeds) > 1:
        with ProcessPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            chunks = list(pool.map(draw, seeds))
    else:
        chunks = map(draw, seeds)
    scenes = [scene for chunk in chunks for scene in chunk][:count]
    images = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2).contiguous()
    return Scenes(images, [s.things for s in scenes], [s.masks for s in scenes] if masks else None)


def _draw_chunk(seed: int, objects: int | None, held_out: bool | None) -> list[world.Scene]:
    rng = random.Random(seed)
    return [world.random_scene(rng, objects, held_out=held_out) for _ in range(_CHUNK)]


def roughen(pixels: Tensor) -> Tensor:
    """Blur some images [B, 3, H, W] a little and add noise to all: generated images are less clean than renders."""
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    choose = (torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.3).float()
    strength = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) * 0.08
    return torch.lerp(pixels, blurred, choose) + strength * torch.randn_like(pixels)


def imagenet(pixels: Tensor) -> Tensor:
    """[-1, 1] → ImageNet's mean and deviation, as RAM, GroundingDINO and SAM expect."""
    mean = pixels.new_tensor([0.485, 0.456, 0.406])[:, None, None]
    std = pixels.new_tensor([0.229, 0.224, 0.225])[:, None, None]
    return ((pixels + 1) / 2 - mean) / std


class PatchLabels:
    """A dense auxiliary task: which shape (or none) does each patch of an image encoder show?

    Without it image encoders learn colours at once, and shapes very late or never.
    """

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
