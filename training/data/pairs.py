"""The denoising loss on images with captions: L_pre of eq. 5, and what reward-ranked learning minimises on winners."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ...sampling.sampler import DiffusersSampler

CAPTION_DROPOUT = 0.1
"""The share of captions that are replaced by the empty prompt, which classifier-free guidance needs."""


class Pairs:
    """Latents [N, C, h, w] with a caption each, trained on at timesteps from `min_timestep` to the last."""

    def __init__(self, latents: Tensor, captions: Sequence[str], min_timestep: int = 0) -> None:
        self.latents, self.captions, self.min_timestep = latents, list(captions), min_timestep

    def loss(self, sampler: DiffusersSampler, unet: nn.Module, seeds: Sequence[int]) -> Tensor:
        """Mean squared error of the UNet's prediction: [], with gradient.

        seeds: one per example; it selects pair, noise and timestep.
        """
        device, steps = sampler.unet.device, sampler.scheduler.config.num_train_timesteps
        *tensors, captions = zip(*(self.draw(torch.Generator().manual_seed(s), steps) for s in seeds), strict=True)
        latents, noise, t = (torch.stack(tensor).to(device) for tensor in tensors)
        schedule = DDPMScheduler.from_config(sampler.scheduler.config)
        prompt_embeds = sampler.encode_prompts(list(captions)).clone()
        predicted = sampler.predict(schedule.add_noise(latents, noise, t), t, prompt_embeds, unet)
        target = latents if schedule.config.prediction_type == "sample" else noise
        if schedule.config.prediction_type == "v_prediction":
            target = schedule.get_velocity(latents, noise, t)
        return F.mse_loss(predicted.float(), target)

    def draw(self, generator: torch.Generator, steps: int) -> tuple[Tensor, Tensor, Tensor, str]:
        """One training example: latent [C, h, w], noise [C, h, w], a timestep [] below `steps`, and the caption."""
        picked = int(torch.randint(len(self.captions), (), generator=generator))
        dropped = float(torch.rand((), generator=generator)) < CAPTION_DROPOUT
        latent = self.latents[picked]
        noise = torch.randn(latent.shape, generator=generator)
        t = torch.randint(self.min_timestep, steps, (), generator=generator)
        return latent, noise, t, "" if dropped else self.captions[picked]
