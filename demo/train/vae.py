"""The demo VAE: `AutoencoderKL`, 64 x 64 x 3 → 16 x 16 x 4.

Two lessons: with few channels, groups of the group norm need several channels each (with one it is instance norm, which
forgets colour), and residual branches should start at zero.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from .data import Scenes
from .fit import Recipe, fit

RECIPE = Recipe(steps=2400, batch=16, lr=2e-3, weight_decay=0.0)
FOLDER = "stable_diffusion/vae"
CYCLES = 2
"""The learning rate rises and falls twice: after one cycle small diamonds still came out as crosses."""
SD_SCALING = 0.18215
"""Stable Diffusion's latent scale: the demo VAE takes it too, so hosts need no special case."""


def build() -> AutoencoderKL:
    """A small VAE with random weights; channel counts are multiples of 32, which ComfyUI's class insists on."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=SD_SCALING,
    )
    for module in vae.modules():
        if module.__class__.__name__ == "ResnetBlock2D":
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
    return vae


def train(scenes: Scenes, out: Path, device: str, recipe: Recipe) -> None:
    """Reconstruction (L1 + L2) and a very small KL term; latents are whitened after each cycle.

    Saves to `out/stable_diffusion/vae`.
    """
    torch.manual_seed(recipe.seed)
    vae = build().to(device, memory_format=torch.channels_last)

    def loss_of(index: Tensor) -> Tensor:
        x = scenes.pixels(index, device)
        posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.sample()).sample.float() - x
        return error.abs().mean() + error.pow(2).mean() + 1e-5 * posterior.kl().mean() / 64

    for cycle in range(CYCLES):
        fit(recipe, [vae], scenes, loss_of, f"vae {cycle + 1}/{CYCLES}")
        whiten(vae.eval(), scenes, device)
    vae.save_pretrained(out / FOLDER)


def load(out: Path, device: str) -> AutoencoderKL:
    """The trained VAE."""
    return AutoencoderKL.from_pretrained(out / FOLDER).to(device).eval()


@torch.no_grad()
def whiten(vae: AutoencoderKL, scenes: Scenes, device: str) -> None:
    """Fold each channel's mean and deviation into the quant convolutions, so that scaled latents are N(0, 1)."""
    z = _latents(vae, scenes, min(2000, len(scenes)), device)
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3)) * SD_SCALING
    into, out = vae.quant_conv, vae.post_quant_conv
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= std[None, :, None, None]
    into.bias[:4] -= mean
    into.weight[:4] /= std[:, None, None, None]
    into.bias[:4] /= std
    into.bias[4:] -= 2 * std.log()


@torch.no_grad()
def encode(vae: AutoencoderKL, scenes: Scenes, device: str) -> Tensor:
    """All scenes as scaled latents [N, 4, 16, 16]."""
    return _latents(vae, scenes, len(scenes), device) * vae.config.scaling_factor


def _latents(vae: AutoencoderKL, scenes: Scenes, count: int, device: str) -> Tensor:
    """The first scenes' latents, before scaling."""
    batches = torch.arange(count).split(250)
    return torch.cat([vae.encode(scenes.pixels(i, device)).latent_dist.mean for i in batches])


@torch.no_grad()
def with_reconstructions(out: Path, scenes: Scenes, count: int, device: str) -> Scenes:
    """The scenes with the first `count` images replaced by their reconstructions: generated images look like these."""
    vae, images = load(out, device), scenes.images.clone()
    for index in torch.arange(count).split(250):
        x = vae.decode(vae.encode(scenes.pixels(index, device)).latent_dist.mean).sample
        images[index] = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    return Scenes(images, scenes.things, scenes.masks)
