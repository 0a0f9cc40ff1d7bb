"""Text-to-image sampling with diffusers, in which some images of a batch may be re-aligned."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..attention.diffusers.processor import Modulation, modulate
from ..attention.diffusers.recorder import record
from ..attention.equation.maps import AttentionMaps
from ..attention.equation.settings import ModulationSettings
from ..checkpoints.folders import from_folder
from ..core.errors import RealignError
from ..core.regions import RegionSet
from .prompt_encoding import SecondEncoder, Words, encode, encode_ids, isolate_phrases
from .settings import SamplingSettings

SAMPLED = 2**23
"""The pixels of the images that are sampled at once, where the caller leaves it open."""
DECODED = 2**21
"""The pixels that are decoded at once: eight images of 512², two of 1024²."""
PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What a UNet may be trained to say."""


class DiffusersSampler:
    """A Stable Diffusion 1, 2 or XL in the diffusers folder layout."""

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: DDIMScheduler,
        second: SecondEncoder | None = None,
    ) -> None:
        """second: for SDXL only."""
        self.tokenizer, self.text_encoder, self.unet = tokenizer, text_encoder, unet
        self.vae, self.scheduler, self.second = vae, scheduler, second

    @classmethod
    def load(
        cls, folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> DiffusersSampler:
        """Read `tokenizer`, `text_encoder`, `unet`, `vae` and `scheduler` from the sub-folders of `folder`.

        Of an SDXL also `tokenizer_2` and `text_encoder_2`, and `model_index.json` if there is one. Sampling is by DDIM,
        at the noise levels of whichever scheduler the folder has.

        Raises:
            RealignError: a part is missing or damaged, or the model is of another kind.
        """
        folder = Path(folder)

        def read(kind: type[torch.nn.Module], name: str, dtype: torch.dtype = dtype) -> Any:
            return from_folder(kind, folder / name, dtype=dtype).to(device).eval()

        text_encoder, unet = read(CLIPTextModel, "text_encoder"), read(UNet2DConditionModel, "unet")
        unet.to(memory_format=torch.channels_last)  # convolutions were faster so, measured on a CPU
        second = None
        if unet.config.addition_embed_type == "text_time":
            tokenizer = from_folder(CLIPTokenizer, folder / "tokenizer_2")
            encoder = read(CLIPTextModelWithProjection, "text_encoder_2")
            second = SecondEncoder(tokenizer, encoder, _empty_is_zero(folder / "model_index.json"))
        vae = read(AutoencoderKL, "vae")
        # Half precision's range is too small for SDXL's autoencoder. Older ones fit, but their configs do not say so.
        if second is not None and dtype == torch.float16 and vae.config.force_upcast:
            vae = read(AutoencoderKL, "vae", torch.float32)
        tokenizer = from_folder(CLIPTokenizer, folder / "tokenizer")
        return cls(tokenizer, text_encoder, unet, vae, _ddim(folder / "scheduler"), second)

    @property
    def text_encoders(self) -> list[CLIPTextModel | CLIPTextModelWithProjection]:
        """The one, or SDXL's two."""
        return [self.text_encoder, *([self.second.text_encoder] if self.second else [])]

    @property
    def cell(self) -> int:
        """The side in pixels of what one element of a latent becomes."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the latent the UNet was trained on."""
        size = self.unet.config.sample_size
        return self.unet.config.in_channels, size, size

    @property
    def at_once(self) -> int:
        """How many images a machine with room for training samples at once: 32 up to 512², 8 of 1024²."""
        side = self.latent_shape[-1] * self.cell
        return max(1, min(32, SAMPLED // side**2))

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
        isolate_phrases: bool = False,
        maps: AttentionMaps | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Sample one latent a prompt, from noise [B, C, h, w] to the autoencoder's scaled latents of the same shape.

        region_sets: for each prompt the regions that its attention is re-weighted by; None leaves that image alone.
        modulation: how strongly; the paper's settings by default.
        isolate_phrases: whether the regions' phrases have the embeddings of the phrase encoded alone, at all steps.
        maps: filled with where each prompt's words are attended to, at each step; the latents are the same without.
        on_step: called with (step, steps) after each step; raise in it to interrupt.
        """
        count = len(prompts)
        words = self.encode(["", *prompts])
        if isolate_phrases and region_sets is not None:
            words = self.isolated(words, [None, *region_sets])
        words = words[[0] * count + list(range(1, count + 1))]
        guided = settings.cfg != 1
        x = noise.to(self.unet.device, self.unet.dtype) * self.scheduler.init_noise_sigma
        self.scheduler.set_timesteps(settings.steps)
        with (
            self._modulated(prompts, region_sets, modulation, x, guided) as modulated,
            self._recorded(maps, x, modulated),
        ):
            for i, t in enumerate(self.scheduler.timesteps):
                if maps is not None:
                    maps.step = i
                if modulated is not None:
                    modulated.at(float(t) / self.scheduler.config.num_train_timesteps, i / settings.steps)
                if guided:
                    empty, worded = self.predict(torch.cat([x, x]), t, words).chunk(2)
                    predicted = empty + settings.cfg * (worded - empty)
                else:
                    predicted = self.predict(x, t, words[count:])
                x = self.scheduler.step(predicted, t, x).prev_sample
                if on_step is not None:
                    on_step(i + 1, settings.steps)
        return x

    def _modulated(self, prompts, region_sets, modulation, x: Tensor, guided: bool):
        """The adapter's context for this batch, the unconditional half untouched; or nothing to do."""
        if region_sets is None or not any(s is not None and s.active for s in region_sets):
            return nullcontext()
        rows = [*([None] * len(prompts) if guided else []), *region_sets]
        return modulate(self.unet, rows, self.tokenizer, x.shape[-2:], modulation or ModulationSettings())

    def isolated(self, words: Words, region_sets: Sequence[RegionSet | None]) -> Words:
        """The words of B prompts with the phrases of B region sets encoded alone."""

        def encoded(phrases: Sequence[Sequence[int]]) -> Words:
            return encode_ids(phrases, self.tokenizer, self.text_encoder, self.second)

        return isolate_phrases(words, region_sets, self.tokenizer, encoded)

    def _recorded(self, maps: AttentionMaps | None, x: Tensor, modulated: Modulation | None):
        """The recorder's context for this batch, or nothing to do."""
        return nullcontext() if maps is None else record(self.unet, maps, x.shape[-2:], modulated)

    def predict(self, x: Tensor, t: Tensor, words: Words, unet: torch.nn.Module | None = None) -> Tensor:
        """What the UNet makes of x [B, C, h, w] at timestep t, [] or [B]: the noise, or what `prediction_type` says.

        words: B rows. unet: the model, if something such as a data-parallel wrapper must be called in its place.
        """
        unet = self.unet if unet is None else unet
        return unet(x, t, words.hidden, added_cond_kwargs=self._beside_words(x, words)).sample

    def _beside_words(self, x: Tensor, words: Words) -> dict[str, Tensor] | None:
        """What SDXL reads beside the tokens: the text in one vector, and the image's size, uncropped, as (h, w)."""
        if words.pooled is None:
            return None
        height, width = (side * self.cell for side in x.shape[-2:])
        original, corner, target = (height, width), (0, 0), (height, width)
        sizes = torch.tensor([original + corner + target], dtype=torch.float32, device=x.device)
        return {"text_embeds": words.pooled, "time_ids": sizes.expand(len(x), -1)}

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] → images [B, H, W, 3] in [0, 1], float32; a few at a time, for memory's sake."""
        height, width = (side * self.cell for side in latents.shape[-2:])
        parts = latents.split(max(1, DECODED // (height * width)))
        return torch.cat([self.pixels(part).clamp(0, 1) for part in parts]).contiguous()

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] → images [B, H, W, 3], float32, which are not cut to [0, 1]; gradient goes through."""
        image = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample.float()
        return ((image + 1) / 2).permute(0, 2, 3, 1)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Words:
        """The words of each text; of an empty one, the unconditional words."""
        return encode(texts, self.tokenizer, self.text_encoder, self.second)


def _ddim(folder: Path) -> DDIMScheduler:
    """DDIM at the noise levels, steps and prediction type of the folder's scheduler, of whichever class that is.

    Raises:
        RealignError: it cannot be read, or is of a model with another kind of noise levels.
    """
    config = from_folder(DDIMScheduler, folder).config
    unsaid = set(config.get("_use_default_values", ()))
    if {"beta_schedule", "trained_betas"} <= unsaid or config.prediction_type not in PREDICTIONS:
        raise RealignError(
            f"The scheduler in '{folder}' is not one of Stable Diffusion 1, 2 or XL (it tells no betas, or predicts "
            f"'{config.prediction_type}'): choose a model of these."
        )
    # Other classes do not have these settings, and DDIM's defaults for them are for images, not latents.
    of_latents = {name: False for name in ("clip_sample", "set_alpha_to_one") if name in unsaid}
    return DDIMScheduler.from_config(config, **of_latents)


def _empty_is_zero(file: Path) -> bool:
    """What a pipeline's `model_index.json` says of empty prompts; unsaid, it is true, as in diffusers.

    Raises:
        RealignError: the file is not JSON.
    """
    if not file.is_file():
        return True
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get("force_zeros_for_empty_prompt", True))
    except (ValueError, AttributeError, RecursionError) as error:
        raise RealignError(f"'{file}' is not a JSON object ({error}): copy or download it again.") from error
