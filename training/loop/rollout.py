"""From noise to the image that the reward judges, with gradient in the UNet's weights at one step or a few.

x0 prediction (ReFL, the paper): sample without gradient to a step t, and judge what that step predicts:

    x_T → … → x_t (no gradient) → x_0' = (x_t − √(1 − ᾱ_t) ε_θ(x_t, t, prompt)) / √ᾱ_t → decoded image → reward

Full rollout (DRTune, arXiv 2405.00760): sample to the end and judge that. A DDIM step is linear in x_t and in the
UNet's output; the gradient flows back along these lines to the outputs of some steps, not through the UNet's inputs.

For a model that predicts v or x_0 instead of the noise ε, its scheduler converts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from ...sampling.prompt_encoding import PromptEmbeds
from ...sampling.sampler import DiffusersSampler


class Rollout:
    """Rollouts of one model with fixed steps and guidance scale; autoencoder and text encoder are frozen."""

    def __init__(self, sampler: DiffusersSampler, steps: int, cfg: float) -> None:
        self.sampler, self.cfg = sampler, cfg
        sampler.vae.requires_grad_(False)
        for encoder in sampler.text_encoders:
            encoder.requires_grad_(False)
        self.scheduler = DDIMScheduler.from_config(sampler.scheduler.config)
        self.scheduler.set_timesteps(steps, device=sampler.unet.device)
        self.empty = sampler.encode_prompts([""]).clone()  # a normal tensor: autograd refuses those of inference mode

    def predict_x0(self, prompts: Sequence[str], noise: Tensor, index: int, unet: nn.Module | None = None) -> Tensor:
        """The images [B, H, W, 3] that step `index` (from 0) predicts, with gradient in the UNet's trainable weights.

        The images are not clamped, so that no pixel loses its gradient; rewards read values beyond [0, 1] as 0 or 1 and
        pass the gradient on (`core/images.py`).

        noise: [B, C, h, w] of N(0, 1). unet: called in place of the sampler's UNet, such as a data-parallel wrapper.
        """
        prompt_embeds = self.sampler.encode_prompts(prompts).clone()
        x = noise.to(self.empty.prompt_embeds) * self.scheduler.init_noise_sigma
        with torch.no_grad():
            for t in self.scheduler.timesteps[:index]:
                x = self.scheduler.step(self.predict(unet, x, t, prompt_embeds), t, x).prev_sample
        t = self.scheduler.timesteps[index]
        x0 = self.scheduler.step(self.predict(unet, x, t, prompt_embeds), t, x).pred_original_sample
        return self.sampler.decode_unclamped(x0)

    def roll_out(
        self, prompts: Sequence[str], noise: Tensor, gradient_steps: Collection[int], unet: nn.Module | None = None
    ) -> Tensor:
        """The images at the end of sampling, with gradient at `gradient_steps` (from 0); else as `predict_x0`."""
        prompt_embeds = self.sampler.encode_prompts(prompts).clone()
        x = noise.to(self.empty.prompt_embeds) * self.scheduler.init_noise_sigma
        for i, t in enumerate(self.scheduler.timesteps):
            with torch.set_grad_enabled(i in gradient_steps):
                output = self.predict(unet, x.detach(), t, prompt_embeds)
            x = self.scheduler.step(output, t, x).prev_sample
        return self.sampler.decode_unclamped(x)

    def predict(self, unet: nn.Module | None, x: Tensor, t: Tensor, prompt_embeds: PromptEmbeds) -> Tensor:
        """Guided prediction; only the conditional half gets a gradient, which halves the memory of the step."""
        cond = self.sampler.predict(x, t, prompt_embeds, unet)
        if self.cfg == 1:
            return cond
        with torch.no_grad():
            uncond = self.sampler.predict(x, t, self.empty[[0] * len(x)], unet)
        return uncond + self.cfg * (cond - uncond)
