"""The denoising loss on images with captions: L_pre of eq. 5, and what reward-ranked learning minimises on winners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ...sampling.sampler import DiffusersSampler

CAPTION_DROPOUT = 0.1
"""The share of captions that are replaced by the empty prompt, which classifier-free guidance needs."""


class Pair(NamedTuple):
    """One training example: latent [C, h, w], noise [C, h, w], timestep and caption."""

    latent: Tensor
    noise: Tensor
    t: Tensor
    caption: str


class Pairs:
    """Latents [N, C, h, w] with a caption each, trained on at timesteps from `min_timestep` to the last."""

    def __init__(self, latents: Tensor, captions: Sequence[str], min_timestep: int = 0) -> None:
        self.latents, self.captions, self.min_timestep = latents, list(captions), min_timestep

    def loss(self, sampler: DiffusersSampler, unet: nn.Module, seeds: Sequence[int]) -> Tensor:
        """Mean squared error of the UNet's prediction: [], with gradient.

        seeds: one per example; it selects pair, noise and timestep.
        """
        device, steps = sampler.unet.device, sampler.scheduler.config.num_train_timesteps
        examples = [self.draw(torch.Generator().manual_seed(seed), steps) for seed in seeds]
        latents, noise, t = (
            torch.stack([getattr(one, name) for one in examples]).to(device) for name in Pair._fields[:3]
        )
        schedule = DDPMScheduler.from_config(sampler.scheduler.config)
        prompt_embeds = sampler.encode_prompts([one.caption for one in examples]).clone()
        predicted = sampler.predict(schedule.add_noise(latents, noise, t), t, prompt_embeds, unet)
        return F.mse_loss(predicted.float(), _target(schedule, latents, noise, t))

    def draw(self, generator: torch.Generator, steps: int) -> Pair:
        """One training example at a timestep below `steps`."""
        picked = int(torch.randint(len(self.captions), (), generator=generator))
        dropped = float(torch.rand((), generator=generator)) < CAPTION_DROPOUT
        latent = self.latents[picked]
        noise = torch.randn(latent.shape, generator=generator)
        t = torch.randint(self.min_timestep, steps, (), generator=generator)
        return Pair(latent, noise, t, "" if dropped else self.captions[picked])


def _target(schedule: DDPMScheduler, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The regression target of the UNet for the noised latents."""
    if schedule.config.prediction_type == "v_prediction":
        return schedule.get_velocity(latents, noise, t)
    return latents if schedule.config.prediction_type == "sample" else noise
