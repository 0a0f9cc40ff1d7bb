"""Model folders of the true classes, with random weights and few of them, which draw 64 × 64 pixels; and stand-ins."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from realigndiff.core.embedded import WEIGHTS
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

NOISE_LEVELS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
TOKENIZER = WEIGHTS / "stable_diffusion" / "tokenizer"


def save_sd1(folder: Path, **scheduler: Any) -> Path:
    """A Stable Diffusion 1 or 2, which has DDIM's scheduler with the settings given."""
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=vae(),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        text_encoder=text_encoder(CLIPTextModel, 32),
        unet=unet(cross_attention_dim=32),
        scheduler=DDIMScheduler(**{**NOISE_LEVELS, "clip_sample": False, "set_alpha_to_one": False, **scheduler}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def save_sdxl(folder: Path, force_zeros_for_empty_prompt: bool = True, **scheduler: Any) -> Path:
    """An SDXL, which has Euler's scheduler as SDXL's own folder does."""
    torch.manual_seed(0)
    pipeline = StableDiffusionXLPipeline(
        vae=vae(),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        tokenizer_2=CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!"),
        text_encoder=text_encoder(CLIPTextModel, 32),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, 48, projection_dim=40),
        unet=unet(
            cross_attention_dim=32 + 48,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=40 + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(**{**NOISE_LEVELS, **scheduler}),
        force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def text_encoder(kind: type, width: int, **more: Any) -> CLIPTextModel:
    """Its vectors are as large as a trained one's, so that other words give other images."""
    config = CLIPTextConfig(
        vocab_size=321,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        bos_token_id=319,
        eos_token_id=320,
        pad_token_id=320,
        initializer_factor=4.0,
        **more,
    )
    return kind(config).eval()


def unet(**options: Any) -> UNet2DConditionModel:
    small = {
        "sample_size": 16,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": (2, 4),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**{**small, **options}).eval()


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.13025,
    ).eval()


PREDICTIONS = ("epsilon", "v_prediction", "sample")


def predicting(sampler, kind):
    """The sampler as if its UNet had been trained to say `kind`, and √ᾱ_t and √(1 − ᾱ_t) [1000, 1, 1, 1]."""
    other = copy.copy(sampler)
    other.scheduler = DDIMScheduler.from_config(sampler.scheduler.config, prediction_type=kind)
    alphas = other.scheduler.alphas_cumprod.view(-1, 1, 1, 1)
    return other, alphas.sqrt(), (1 - alphas).sqrt()
