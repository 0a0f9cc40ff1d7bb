"""Coarse images of many prompts, captioned and scored: what programs that compare settings or weights begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..core.regions import RegionSet
from ..pipeline.realign import CaptionedImage, Models, RealignSettings, caption_and_score, find_regions

BATCH = 48


class CoarseImages(NamedTuple):
    """N prompts with their noise [N, C, h, w], coarse images, and the regions found in them."""

    prompts: Sequence[str]
    noise: Tensor
    images: list[CaptionedImage]
    regions: list[RegionSet]


def sample_coarse(
    models: Models,
    prompts: Sequence[str],
    seed: int,
    settings: RealignSettings,
    *,
    with_regions: bool = True,
    batch: int = BATCH,
) -> CoarseImages:
    """Sample prompt i from the noise of seed + i, caption and score the image, and find its regions if wanted."""
    noise = models.sampler.noise(range(seed, seed + len(prompts)))
    captioned, regions = [], []
    for rows in tqdm(torch.arange(len(prompts)).split(batch), desc="coarse images"):
        texts = [prompts[int(i)] for i in rows]
        images = models.sampler.sample(texts, noise[rows], settings.sampling)
        captioned += caption_and_score(models, images, texts)
        regions += find_regions(models, images, texts, settings) if with_regions else []
    return CoarseImages(prompts, noise, captioned, regions)
