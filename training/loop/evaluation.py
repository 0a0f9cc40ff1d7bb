"""Images of fixed prompts from fixed noise, and their reward."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...sampling.settings import SamplingSettings
from .models import RunModels

SEED = 10**7
"""The seed of the first prompt; no training step uses it."""


def sample(models: RunModels, texts: Sequence[str], settings: SamplingSettings, first: int = 0) -> Tensor:
    """One image per prompt: [B, H, W, 3] in [0, 1].

    first: the index of the first prompt, which selects the noise.
    """
    noise = models.sampler.noise([SEED + first + i for i in range(len(texts))])
    return models.sampler.sample(texts, noise, settings)


def mean_reward(models: RunModels, texts: Sequence[str], settings: SamplingSettings) -> float:
    """The mean weighted reward of one image per prompt."""
    scores: list[float] = []
    for start in range(0, len(texts), models.sampler.max_batch):
        batch = texts[start : start + models.sampler.max_batch]
        images = sample(models, batch, settings, start)
        with models.rewards_on_device():
            scores += models.reward(images, batch).tolist()
    return sum(scores) / len(scores)
