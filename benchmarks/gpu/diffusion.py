"""Stable Diffusion 1.5 and XL of their true sizes with random weights, made in the memory of the device."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ...checkpoints.folders import from_folder
from ...core.embedded import embedded
from ...sampling.prompt_encoding import SecondEncoder
from ...sampling.sampler import DiffusersSampler
from .models import T, random

UNETS: dict[str, dict[str, Any]] = {
    "SD1.5": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "SDXL": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    },
}
"""Of the published UNets, what differs from diffusers' defaults."""
FEW = {"sample_size": 8, "norm_num_groups": 8, "layers_per_block": 1}
MINIATURES: dict[str, dict[str, Any]] = {
    "SD1.5": FEW | {"block_out_channels": (16, 16, 32, 32), "cross_attention_dim": 32, "attention_head_dim": 2},
    "SDXL": FEW
    | {
        "block_out_channels": (16, 16, 32),
        "cross_attention_dim": 32 + 48,
        "attention_head_dim": (1, 2, 2),
        "transformer_layers_per_block": (1, 1, 2),
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 40 + 6 * 8,
    },
}


def sampler(name: str, device: torch.device, dtype: torch.dtype, quick: bool = False) -> DiffusersSampler:
    """Stable Diffusion 1.5 or XL; with `quick` one of the same kind of blocks, but few numbers."""
    torch.manual_seed(0)
    unet = UNETS[name] | (MINIATURES[name] if quick else {})
    tokenizer = from_folder(CLIPTokenizer, embedded("model") / "tokenizer")  # 77 tokens, as with CLIP's
    second = None
    if name == "SDXL":
        wide = _text_encoder(CLIPTextModelWithProjection, device, dtype, *((48, 1, 2) if quick else (1280, 32, 20)),
                             projection_dim=40 if quick else 1280, hidden_act="gelu")  # fmt: skip
        second = SecondEncoder(tokenizer, wide, force_zeros_for_empty_prompt=True)
    return DiffusersSampler(
        tokenizer,
        _text_encoder(CLIPTextModel, device, dtype, *((32, 1, 2) if quick else (768, 12, 12))),
        random(UNet2DConditionModel, device, dtype, **unet).to(memory_format=torch.channels_last),
        _vae(name, device, dtype, quick),
        from_folder(DDIMScheduler, embedded("model") / "scheduler"),  # its numbers are Stable Diffusion's
        second,
    )


def _text_encoder(
    kind: type[T], device: torch.device, dtype: torch.dtype, width: int, layers: int, heads: int, **more: Any
) -> T:
    """A text encoder of CLIP whose end token is the demo tokenizer's."""
    words = 321 if width < 100 else 49408
    tokens = {"bos_token_id": 319, "eos_token_id": 320, "pad_token_id": 320}
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
    depth = {"num_hidden_layers": layers, "num_attention_heads": heads}
    return random(kind, device, dtype, CLIPTextConfig(vocab_size=words, **tokens | sizes | depth | more))


def _vae(name: str, device: torch.device, dtype: torch.dtype, quick: bool) -> AutoencoderKL:
    if name == "SDXL" and dtype == torch.float16:
        dtype = torch.float32  # as SDXL's own, whose numbers leave fp16's range
    channels, layers, groups = ((8, 8, 16, 16), 1, 4) if quick else ((128, 256, 512, 512), 2, 32)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    sizes = {"block_out_channels": channels, "layers_per_block": layers, "norm_num_groups": groups}
    scale = 0.13025 if name == "SDXL" else 0.18215
    return random(AutoencoderKL, device, dtype, scaling_factor=scale, **blocks, **sizes)
