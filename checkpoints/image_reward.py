"""ImageReward as its authors published it (`ImageReward.pt`) as transformers' BLIP and a head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from .files import read_tensors
from .filling import empty_weights, fill, from_tensors
from .kinds import looks_like, wrong_file
from .names import count, rename
from .values import check_finite

KIND = "an ImageReward"
ROOTS = ("blip.", "mlp.layers.")  # what the names of its tensors begin with
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
"""What the names of tensors that scoring does not need begin with: BLIP's contrastive projections, and 0, 1, 2, …"""
HEAD = 64  # channels per attention head in every ViT and BERT of BLIP; they cannot be read from shapes

_VISION = "blip.visual_encoder."
_TEXT = "blip.text_encoder."
_MLP = "mlp.layers."
_LAYERS = (0, 2, 4, 6, 7)  # places of the linear layers in the head; dropout is between them
_WIDTHS = (1024, 128, 64, 16, 1)
_BLOCK = r"blocks.(\d+)."
_NAMES = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj", "embeddings.patch_embedding"),
    (rf"{_BLOCK}norm(\d)", r"encoder.layers.\1.layer_norm\2"),
    (rf"{_BLOCK}attn.qkv", r"encoder.layers.\1.self_attn.qkv"),
    (rf"{_BLOCK}attn.proj", r"encoder.layers.\1.self_attn.projection"),
    (rf"{_BLOCK}mlp", r"encoder.layers.\1.mlp"),
    ("norm", "post_layernorm"),
)


class ImageRewardNetworks(NamedTuple):
    """Image encoder, text encoder with cross-attention to the image, and the head that scores its first position."""

    vision: BlipVisionModel
    text: BlipTextModel
    head: nn.Sequential  # [B, D] → [B, 1], linear layers only; in float32


def load_image_reward(file: str | Path, dtype: torch.dtype = torch.float32) -> ImageRewardNetworks:
    """An ImageReward on the CPU; its sizes follow from the tensors' shapes."""
    tensors = {name: tensor for name, tensor in read_tensors(file, ROOTS).items() if not name.startswith(UNUSED)}
    if looks_like(tensors) != KIND:
        raise wrong_file(file, tensors, KIND)
    check_finite(tensors.items(), file)
    vision, text = (
        {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
        for part in (_VISION, _TEXT)
    )
    head = {name.removeprefix(_MLP): x for name, x in tensors.items() if not name.startswith((_VISION, _TEXT))}
    vision = from_tensors(BlipVisionModel, vision_config, convert_vision, vision, file, KIND, dtype)
    text = from_tensors(BlipTextModel, text_config, dict, text, file, KIND, dtype, add_pooling_layer=False)
    return ImageRewardNetworks(vision, text, _head(head, text.config.hidden_size, file))


def convert_vision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder's tensors under transformers' names; the text encoder's are the same in both."""
    return {rename(name, _NAMES): tensor for name, tensor in tensors.items()}


def vision_config(tensors: Mapping[str, Tensor]) -> BlipVisionConfig:
    """The image encoder's sizes, read from its tensors' shapes."""
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(tensors["blocks.0.mlp.fc1.weight"]),
        num_hidden_layers=count(tensors, "blocks."),
        num_attention_heads=width // HEAD,
        image_size=round((tensors["pos_embed"].shape[1] - 1) ** 0.5) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,  # transformers' default is 1e-5; the original keeps timm's
    )


def text_config(tensors: Mapping[str, Tensor]) -> BlipTextConfig:
    """The text encoder's sizes, read from its tensors' shapes."""
    words, width = tensors["embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=tensors["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=len(tensors["encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=count(tensors, "encoder.layer."),
        num_attention_heads=width // HEAD,
        max_position_embeddings=len(tensors["embeddings.position_embeddings.weight"]),
    )


def _head(tensors: Mapping[str, Tensor], width: int, file: str | Path) -> nn.Sequential:
    """Linear layers from `width` channels to one; the dropout between them only acts in training."""
    sizes = pairwise((width, *_WIDTHS))
    with empty_weights():
        layers = nn.Sequential(OrderedDict((str(i), nn.Linear(*size)) for i, size in zip(_LAYERS, sizes, strict=True)))
    fill(layers, tensors, file, KIND, torch.float32)
    return layers
