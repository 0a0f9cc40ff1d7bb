"""Text-to-image sampling with diffusers, in which some images of a batch may be re-aligned."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..attention.diffusers.processor import modulate
from ..attention.diffusers.recorder import record
from ..attention.equation.maps import AttentionMaps
from ..attention.equation.settings import ModulationSettings
from ..checkpoints.folders import Published, from_folder
from ..core.errors import RealignError
from ..core.regions import RegionSet
from .prompt_encoding import PromptEmbeds, SecondEncoder, encode_phrases, encode_prompts, isolate_phrases
from .settings import SamplingSettings

MAX_BATCH_PIXELS = 2**23
"""Pixels of the images that are sampled at once, where the caller does not say."""
MAX_DECODE_PIXELS = 2**21
"""Pixels that are decoded at once: eight images of 512², two of 1024²."""
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
"""What a UNet may be trained to predict."""


class DiffusersSampler:
    """A Stable Diffusion 1, 2 or XL in the diffusers folder layout."""

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: DDIMScheduler,
        second_encoder: SecondEncoder | None = None,
    ) -> None:
        """second_encoder: for SDXL only."""
        self.tokenizer, self.text_encoder, self.unet = tokenizer, text_encoder, unet
        self.vae, self.scheduler, self.second_encoder = vae, scheduler, second_encoder

    @classmethod
    def load(
        cls, folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> DiffusersSampler:
        """Read `tokenizer`, `text_encoder`, `unet`, `vae` and `scheduler` from the sub-folders of `folder`.

        For SDXL, `tokenizer_2`, `text_encoder_2` and, if there is one, `model_index.json` are read too. The sampler is
        DDIM with the noise schedule of the folder's scheduler.

        Raises:
            RealignError: a part is missing or damaged, or the model is of another kind.
        """
        folder = Path(folder)

        def read(kind: type[Published], name: str, dtype: torch.dtype = dtype) -> Any:
            model: Any = from_folder(kind, folder / name, dtype=dtype)
            return model.to(device).eval()

        text_encoder, unet = read(CLIPTextModel, "text_encoder"), read(UNet2DConditionModel, "unet")
        unet.to(memory_format=torch.channels_last)  # measured on a CPU: convolutions are faster
        second = None
        if unet.config.addition_embed_type == "text_time":
            tokenizer = from_folder(CLIPTokenizer, folder / "tokenizer_2")
            encoder = read(CLIPTextModelWithProjection, "text_encoder_2")
            second = SecondEncoder(tokenizer, encoder, _force_zeros_for_empty_prompt(folder / "model_index.json"))
        vae = read(AutoencoderKL, "vae")
        # Half precision's range is too small for SDXL's autoencoder. Older ones fit, but their configs do not say so.
        if second is not None and dtype == torch.float16 and vae.config.force_upcast:
            vae = read(AutoencoderKL, "vae", torch.float32)
        tokenizer = from_folder(CLIPTokenizer, folder / "tokenizer")
        return cls(tokenizer, text_encoder, unet, vae, _ddim(folder / "scheduler"), second)

    @property
    def text_encoders(self) -> list[CLIPTextModel | CLIPTextModelWithProjection]:
        """One, or SDXL's two."""
        return [self.text_encoder, *([self.second_encoder.text_encoder] if self.second_encoder else [])]

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per side of one latent element."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the latent the UNet was trained on."""
        size = self.unet.config.sample_size
        return self.unet.config.in_channels, size, size

    @property
    def max_batch(self) -> int:
        """How many images to sample at once where the caller does not say: 32 up to 512², 8 of 1024²."""
        side = self.latent_shape[-1] * self.vae_scale_factor
        return max(1, min(32, MAX_BATCH_PIXELS // side**2))

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """N(0, 1) latents [B, C, h, w], one per seed, drawn on the CPU: equal on every device and in every batch.

        Raises:
            RealignError: a seed is below 0 or needs more than 64 bits.
        """
        for seed in seeds:
            if not isinstance(seed, int) or not 0 <= seed < 2**64:
                raise RealignError(f"The seed is {seed}; give a whole number from 0 to {2**64 - 1}.")
        return torch.stack([torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(s)) for s in seeds])

    @torch.inference_mode()
    def sample(self, prompts: Sequence[str], noise: Tensor, settings: SamplingSettings, **options: Any) -> Tensor:
        """Noise [B, C, h, w] → images [B, H, W, 3] in [0, 1], one per prompt; options: see `sample_latents`."""
        return self.decode(self.sample_latents(prompts, noise, settings, **options))

    @torch.inference_mode()
    def sample_latents(
        self,
        prompts: Sequence[str],
        noise: Tensor,
        settings: SamplingSettings,
        *,
        region_sets: Sequence[RegionSet | None] | None = None,
        modulation: ModulationSettings | None = None,
        isolate_phrases: bool = False,
        maps: AttentionMaps | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Noise [B, C, h, w] → latents of the same shape, one per prompt, in the autoencoder's scale.

        region_sets: for each prompt the regions that attention is re-weighted by; None leaves that image alone.
        modulation: how strongly; by default the paper's settings.
        isolate_phrases: encode the regions' phrases alone, see `prompt_encoding.isolate_phrases`.
        maps: filled with the cross-attention maps of each step; recording them does not change the latents.
        on_step: called with (step, steps) after each step; raise an exception in it to interrupt.
        """
        count = len(prompts)
        embeds = self.encode_prompts(["", *prompts])
        if isolate_phrases and region_sets is not None:
            embeds = self.isolate_phrases(embeds, [None, *region_sets])
        embeds = embeds[[0] * count + list(range(1, count + 1))]
        guided = settings.cfg != 1
        x = noise.to(self.unet.device, self.unet.dtype) * self.scheduler.init_noise_sigma
        self.scheduler.set_timesteps(settings.steps)
        with (
            self._modulated(prompts, region_sets, modulation, x, guided) as modulated,
            nullcontext() if maps is None else record(self.unet, maps, (x.shape[-2], x.shape[-1]), modulated),
        ):
            for i, t in enumerate(self.scheduler.timesteps):
                if maps is not None:
                    maps.step = i
                if modulated is not None:
                    modulated.at(float(t) / self.scheduler.config.num_train_timesteps, i / settings.steps)
                if guided:
                    uncond, cond = self.predict(torch.cat([x, x]), t, embeds).chunk(2)
                    predicted = uncond + settings.cfg * (cond - uncond)
                else:
                    predicted = self.predict(x, t, embeds[count:])
                x = self.scheduler.step(predicted, t, x).prev_sample
                if on_step is not None:
                    on_step(i + 1, settings.steps)
        return x

    def _modulated(self, prompts, region_sets, modulation, x: Tensor, guided: bool):
        """The context that re-weights attention, except in the unconditional half; does nothing without regions."""
        if region_sets is None or not any(s is not None and s.active for s in region_sets):
            return nullcontext()
        batch = [*([None] * len(prompts) if guided else []), *region_sets]
        return modulate(
            self.unet, batch, self.tokenizer, (x.shape[-2], x.shape[-1]), modulation or ModulationSettings()
        )

    def isolate_phrases(self, embeds: PromptEmbeds, region_sets: Sequence[RegionSet | None]) -> PromptEmbeds:
        """B encoded prompts with the phrases of B region sets encoded alone, see `prompt_encoding.isolate_phrases`."""

        encoders = {"text_encoder": self.text_encoder, "second": self.second_encoder}
        encode = partial(encode_phrases, tokenizer=self.tokenizer, **encoders)
        return isolate_phrases(embeds, region_sets, self.tokenizer, encode)

    def predict(self, x: Tensor, t: Tensor, embeds: PromptEmbeds, unet: torch.nn.Module | None = None) -> Tensor:
        """The UNet's output for latents x [B, C, h, w] at timestep t, [] or [B]: noise, v or x_0, by `prediction_type`.

        embeds: B prompts. unet: called in place of the UNet, such as a data-parallel wrapper around it.
        """
        unet = self.unet if unet is None else unet
        return unet(x, t, embeds.prompt_embeds, added_cond_kwargs=self._added_cond_kwargs(x, embeds)).sample

    def _added_cond_kwargs(self, x: Tensor, embeds: PromptEmbeds) -> dict[str, Tensor] | None:
        """SDXL's second conditioning: the pooled prompt and the image's size, (h, w), uncropped."""
        if embeds.pooled is None:
            return None
        height, width = (side * self.vae_scale_factor for side in x.shape[-2:])
        original, corner, target = (height, width), (0, 0), (height, width)
        sizes = torch.tensor([original + corner + target], dtype=torch.float32, device=x.device)
        return {"text_embeds": embeds.pooled, "time_ids": sizes.expand(len(x), -1)}

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] → images [B, H, W, 3] in [0, 1], float32; decoded in parts to save memory."""
        height, width = (side * self.vae_scale_factor for side in latents.shape[-2:])
        parts = latents.split(max(1, MAX_DECODE_PIXELS // (height * width)))
        return torch.cat([self.decode_unclamped(part).clamp(0, 1) for part in parts]).contiguous()

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] → images [B, H, W, 3], float32, not clamped to [0, 1]; differentiable."""
        image = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample.float()
        return ((image + 1) / 2).permute(0, 2, 3, 1)

    @torch.no_grad()
    def encode_prompts(self, texts: Sequence[str]) -> PromptEmbeds:
        """Encode texts; an empty text gives the embeddings of the unconditional half."""
        return encode_prompts(texts, self.tokenizer, self.text_encoder, self.second_encoder)


def _ddim(folder: Path) -> DDIMScheduler:
    """A DDIM scheduler with the noise schedule and prediction type of the folder's scheduler, whatever its class."""
    config = from_folder(DDIMScheduler, folder).config
    defaults = set(config.get("_use_default_values", ()))
    if {"beta_schedule", "trained_betas"} <= defaults or config.prediction_type not in PREDICTION_TYPES:
        raise RealignError(
            f"The scheduler in '{folder}' is not one of Stable Diffusion 1, 2 or XL (it has no betas, or predicts "
            f"'{config.prediction_type}'): choose a model of these."
        )
    # Other classes do not have these settings, and DDIM's defaults for them are for images, not latents.
    for_latents = {name: False for name in ("clip_sample", "set_alpha_to_one") if name in defaults}
    return DDIMScheduler.from_config(config, **for_latents)


def _force_zeros_for_empty_prompt(file: Path) -> bool:
    """The setting of that name in a pipeline's `model_index.json`; by default true, as in diffusers."""
    if not file.is_file():
        return True
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get("force_zeros_for_empty_prompt", True))
    except (ValueError, AttributeError, RecursionError) as error:
        raise RealignError(f"'{file}' is not a JSON object ({error}): copy or download it again.") from error
