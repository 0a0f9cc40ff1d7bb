"""ReFL's rollout: sample without gradient to a late step, one step with gradient, and the image it predicts.

x_T → … → x_t (no gradient) → x_0' = (x_t − √(1 − ᾱ_t) ε_θ(x_t, t, prompt)) / √ᾱ_t → decoded image → reward
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from ..pipeline.sampler import DiffusersSampler


class Rollout:
    """Rollouts of one model with fixed steps and guidance scale; autoencoder and text encoder are frozen."""

    def __init__(self, sampler: DiffusersSampler, steps: int, cfg: float) -> None:
        self.sampler, self.cfg = sampler, cfg
        sampler.vae.requires_grad_(False)
        sampler.text_encoder.requires_grad_(False)
        self.scheduler = DDIMScheduler.from_config(sampler.scheduler.config)
        self.scheduler.set_timesteps(steps, device=sampler.unet.device)
        self.empty = sampler.encode([""]).clone()  # a normal tensor: autograd refuses those of inference mode

    def images(self, prompts: Sequence[str], noise: Tensor, index: int, unet: nn.Module | None = None) -> Tensor:
        """The images [B, H, W, 3] that step `index` (from 0) predicts, with gradient in the UNet's trainable weights.

        noise: [B, C, h, w] of N(0, 1). Not clamped, so that no pixel loses its gradient. unet: the model, if something
        such as a data-parallel wrapper must be called in its place.
        """
        unet = unet or self.sampler.unet
        context = self.sampler.encode(prompts).clone()
        x = noise.to(self.empty.device, self.empty.dtype) * self.scheduler.init_noise_sigma
        with torch.no_grad():
            for t in self.scheduler.timesteps[:index]:
                x = self.scheduler.step(self._epsilon(unet, x, t, context), t, x).prev_sample
        t = self.scheduler.timesteps[index]
        alpha = self.scheduler.alphas_cumprod[t].to(x)  # ᾱ_t
        x0 = (x - (1 - alpha).sqrt() * self._epsilon(unet, x, t, context)) / alpha.sqrt()
        vae = self.sampler.vae
        image = vae.decode((x0 / vae.config.scaling_factor).to(vae.dtype)).sample.float()
        return ((image + 1) / 2).permute(0, 2, 3, 1)

    def _epsilon(self, unet: nn.Module, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Guided noise prediction; only the conditional half gets a gradient, which halves the memory of the step."""
        worded = unet(x, t, context).sample
        if self.cfg == 1:
            return worded
        with torch.no_grad():
            empty = unet(x, t, self.empty.expand(len(x), -1, -1)).sample
        return empty + self.cfg * (worded - empty)
