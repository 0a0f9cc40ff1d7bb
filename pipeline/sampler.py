"""Text-to-image sampling with diffusers, in which some images of a batch may be re-aligned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ..attention.diffusers_adapter import modulate
from ..attention.settings import ModulationSettings
from ..core.errors import RealignError
from ..core.regions import RegionSet
from ..perception.loading import from_folder
from .settings import SamplingSettings


class DiffusersSampler:
    """A Stable Diffusion in the diffusers folder layout."""

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: DDIMScheduler,
    ) -> None:
        self.tokenizer, self.text_encoder, self.unet = tokenizer, text_encoder, unet
        self.vae, self.scheduler = vae, scheduler

    @classmethod
    def load(
        cls, folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> DiffusersSampler:
        """Read `tokenizer`, `text_encoder`, `unet`, `vae` and `scheduler` from the sub-folders of `folder`."""
        folder = Path(folder)
        models = [
            from_folder(kind, folder / name, dtype=dtype).to(device).eval()
            for kind, name in ((CLIPTextModel, "text_encoder"), (UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
        ]
        tokenizer = from_folder(CLIPTokenizer, folder / "tokenizer")
        return cls(tokenizer, *models, from_folder(DDIMScheduler, folder / "scheduler"))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the latent the UNet was trained on."""
        size = self.unet.config.sample_size
        return self.unet.config.in_channels, size, size

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """One latent of N(0, 1) noise a seed, drawn on the CPU: the same on every device and in every batch.

        Raises:
            RealignError: a seed is below 0 or needs more than 64 bits.
        """
        for seed in seeds:
            if not isinstance(seed, int) or not 0 <= seed < 2**64:
                raise RealignError(f"The seed is {seed}; give a whole number from 0 to {2**64 - 1}.")
        return torch.stack([torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(s)) for s in seeds])

    @torch.inference_mode()
    def sample(self, prompts: Sequence[str], noise: Tensor, settings: SamplingSettings, **options: Any) -> Tensor:
        """Sample one image a prompt, from noise [B, C, h, w], to images [B, H, W, 3] in [0, 1]; see `latents`."""
        return self.decode(self.latents(prompts, noise, settings, **options))

    @torch.inference_mode()
    def latents(
        self,
        prompts: Sequence[str],
        noise: Tensor,
        settings: SamplingSettings,
        *,
        region_sets: Sequence[RegionSet | None] | None = None,
        modulation: ModulationSettings | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Sample one latent a prompt, from noise [B, C, h, w] to the autoencoder's scaled latents of the same shape.

        region_sets: for each prompt the regions that its attention is re-weighted by; None leaves that image alone.
        modulation: how strongly; the paper's settings by default.
        on_step: called with (step, steps) after each step; raise in it to interrupt.
        """
        words = self.encode(["", *prompts])
        context = torch.cat([words[:1].expand(len(prompts), -1, -1), words[1:]])
        guided = settings.cfg != 1
        x = noise.to(self.unet.device, self.unet.dtype) * self.scheduler.init_noise_sigma
        self.scheduler.set_timesteps(settings.steps)
        with self._modulated(prompts, region_sets, modulation, x, guided) as modulated:
            for i, t in enumerate(self.scheduler.timesteps):
                if modulated is not None:
                    modulated.at(float(t) / self.scheduler.config.num_train_timesteps, i / settings.steps)
                if guided:
                    empty, worded = self.unet(torch.cat([x, x]), t, context).sample.chunk(2)
                    epsilon = empty + settings.cfg * (worded - empty)
                else:
                    epsilon = self.unet(x, t, context[len(prompts) :]).sample
                x = self.scheduler.step(epsilon, t, x).prev_sample
                if on_step is not None:
                    on_step(i + 1, settings.steps)
        return x

    def _modulated(self, prompts, region_sets, modulation, x: Tensor, guided: bool):
        """The adapter's context for this batch, the unconditional half untouched; or nothing to do."""
        if region_sets is None or not any(s is not None and s.active for s in region_sets):
            return nullcontext()
        rows = [*([None] * len(prompts) if guided else []), *region_sets]
        return modulate(self.unet, rows, self.tokenizer, x.shape[-2:], modulation or ModulationSettings())

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] → images [B, H, W, 3] in [0, 1], float32."""
        image = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample.float()
        return ((image + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).contiguous()

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts → [B, 77, D]."""
        ids = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.text_encoder(ids.to(self.text_encoder.device)).last_hidden_state
