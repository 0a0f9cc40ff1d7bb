"""The demo Stable Diffusion: `CLIPTextModel` and `UNet2DConditionModel`, trained together from scratch.

Fully trained it hardly ever errs. So it is then confused on purpose, by some steps on captions with swapped colors (web
captions are often wrong too), until it mixes up two objects about half of the time; one object still comes out right.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..world import caption
from .data import Scenes
from .fit import Recipe, fit, save
from .vae import encode, load
from .vocabulary import clip_tokenizer

RECIPE = Recipe(steps=5000, batch=32, lr=1e-3, weight_decay=1e-4, ema=0.998)
WIDTH = 64
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CONFUSION = Recipe(steps=800, batch=32, lr=4e-4, weight_decay=1e-4, ema=0.99)
"""The second training; half of its captions have two colors swapped."""
CAPTION_DROPOUT = 0.1


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """The configuration of the text encoders of the text-to-image model and of CLIP."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build() -> UNet2DConditionModel:
    """A UNet with random weights; attention at 16 x 16 and 8 x 8."""
    return UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,  # diffusers' name for the number of heads
        norm_num_groups=8,
    )


def train(scenes: Scenes, out: Path, device: str, recipe: Recipe) -> None:
    """Noise prediction on cached latents, captions dropped 10 % of the time. Saves to `out/stable_diffusion`."""
    folder = out / "stable_diffusion"
    vae, tokenizer = load(out, device), clip_tokenizer(folder / "tokenizer")
    confusion = CONFUSION if recipe is RECIPE else replace(CONFUSION, steps=recipe.steps)
    torch.manual_seed(recipe.seed)
    text_encoder = CLIPTextModel(text_config(tokenizer)).to(device).train()
    unet = build().to(device, memory_format=torch.channels_last).train()
    latents = encode(vae, scenes, device)
    right, confused = (_token_ids(scenes, tokenizer, swapped).to(device) for swapped in (0.0, 0.5))
    empty = torch.tensor(tokenizer([""], padding="max_length").input_ids, device=device)
    noise_schedule = DDPMScheduler(num_train_timesteps=1000, **NOISE)

    def loss_of(index: Tensor, ids: Tensor) -> Tensor:
        batch, index = len(index), index.to(device)
        x0, words = latents[index], ids[index].clone()
        words[torch.rand(batch).to(device) < CAPTION_DROPOUT] = empty
        t = torch.randint(1000, (batch,)).to(device)
        noise = torch.randn(x0.shape).to(device)
        x_t = noise_schedule.add_noise(x0, noise, t)
        return F.mse_loss(unet(x_t, t, text_encoder(words).last_hidden_state).sample.float(), noise)

    fit(recipe, [unet, text_encoder], scenes, partial(loss_of, ids=right), "text-to-image")
    fit(confusion, [unet, text_encoder], scenes, partial(loss_of, ids=confused), "text-to-image, confused")
    save(folder / "unet", unet)
    save(folder / "text_encoder", text_encoder)
    scheduler = DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.save_pretrained(folder / "scheduler")


def _token_ids(scenes: Scenes, tokenizer: CLIPTokenizer, swapped: float) -> Tensor:
    """Token ids [N, 77] of captions in random order; the share `swapped` has the first two things' colors swapped."""
    rng = random.Random(0)
    captions = []
    for things in scenes.things:
        pairs = [thing.pair for thing in rng.sample(things, len(things))]
        if len(pairs) > 1 and rng.random() < swapped:
            (a, one), (b, two), *rest = pairs
            pairs = [(b, one), (a, two), *rest]
        captions.append(caption(pairs))
    return torch.tensor(tokenizer(captions, padding="max_length", truncation=True).input_ids)
