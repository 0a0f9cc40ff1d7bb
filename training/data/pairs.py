"""The denoising loss on images with their words: L_pre of eq. 5, and how reward-ranked learning learns from winners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ...sampling.sampler import DiffusersSampler

EMPTY_CAPTIONS = 0.1
"""The share of images that are paired with no words, as guidance needs them."""


class Pair(NamedTuple):
    """An image [C, h, w] with its caption, noise [C, h, w] and noise level to train on."""

    latent: Tensor
    noise: Tensor
    t: Tensor
    caption: str


class Pairs:
    """Latents [N, C, h, w] with a caption each, learnt from at the noise levels from `min_timestep` to the last."""

    def __init__(self, latents: Tensor, captions: Sequence[str], min_timestep: int = 0) -> None:
        self.latents, self.captions, self.min_timestep = latents, list(captions), min_timestep

    def loss(self, sampler: DiffusersSampler, unet: nn.Module, seeds: Sequence[int]) -> Tensor:
        """Mean squared error of the UNet's prediction on one pair a seed, which draws pair, noise and noise level."""
        device, steps = sampler.unet.device, sampler.scheduler.config.num_train_timesteps
        drawn = [self._draw(torch.Generator().manual_seed(seed), steps) for seed in seeds]
        latents, noise, t = (torch.stack([getattr(one, name) for one in drawn]).to(device) for name in Pair._fields[:3])
        schedule = DDPMScheduler.from_config(sampler.scheduler.config)
        words = sampler.encode_prompts([one.caption for one in drawn]).clone()
        predicted = sampler.predict(schedule.add_noise(latents, noise, t), t, words, unet)
        return F.mse_loss(predicted.float(), _target(schedule, latents, noise, t))

    def _draw(self, generator: torch.Generator, steps: int) -> Pair:
        picked = int(torch.randint(len(self.captions), (), generator=generator))
        silent = float(torch.rand((), generator=generator)) < EMPTY_CAPTIONS
        latent = self.latents[picked]
        noise = torch.randn(latent.shape, generator=generator)
        t = torch.randint(self.min_timestep, steps, (), generator=generator)
        return Pair(latent, noise, t, "" if silent else self.captions[picked])


def _target(schedule: DDPMScheduler, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the UNet should say of the noised latents."""
    if schedule.config.prediction_type == "v_prediction":
        return schedule.get_velocity(latents, noise, t)
    return latents if schedule.config.prediction_type == "sample" else noise
