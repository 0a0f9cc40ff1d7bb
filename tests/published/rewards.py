"""ImageReward's and open_clip's published files, at any size: names, shapes, and weights from a seed.

`golden/originals.py` runs the original implementations on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from .layouts import Shapes, affine, bert_attention, bert_feed_forward, norms, seeded, vit_block

PROMPTS = ("a red circle", "a blue square and a red circle", "a green triangle")
"""Each picture is scored with each prompt."""


@dataclass(frozen=True)
class ImageRewardSize:
    """A ViT of `depth` layers of `width` channels, a BERT of `text_depth` layers of `text` channels."""

    width: int
    depth: int
    text: int
    text_depth: int
    image: int
    words: int
    places: int = 512


@dataclass(frozen=True)
class ClipSize:
    """A ViT of `depth` layers of `width` channels, a text tower of `text_depth` layers of `text` channels."""

    width: int
    depth: int
    patch: int
    image: int
    text: int
    text_depth: int
    words: int
    shared: int
    places: int = 77


IMAGE_REWARD = {
    "ImageReward": ImageRewardSize(1024, 24, 768, 12, 224, 30524),
    "small": ImageRewardSize(128, 2, 128, 2, 48, 1032, 64),
}
CLIP = {
    "ViT-B-32": ClipSize(768, 12, 32, 224, 512, 12, 49408, 512),
    "small": ClipSize(128, 2, 8, 48, 64, 2, 321, 32),
}


def pictures(side: int) -> tuple[tuple[int, int, int], ...]:
    """(seed, height, width): two pictures that the model only crops, and two that it resizes."""
    return (1, side, side), (2, side + 20, side), (3, 96, 128), (4, 2 * side, 2 * side)


def image_reward_layout(size: ImageRewardSize) -> Shapes:
    """`ImageReward.pt`."""
    w, t = size.width, size.text
    vision, text = "blip.visual_encoder", "blip.text_encoder"
    out: Shapes = {
        f"{vision}.cls_token": (1, 1, w),
        f"{vision}.pos_embed": (1, (size.image // 16) ** 2 + 1, w),
        f"{text}.embeddings.word_embeddings.weight": (size.words, t),
        f"{text}.embeddings.position_embeddings.weight": (size.places, t),
        f"{text}.embeddings.position_ids": (1, size.places),
    }
    affine(out, f"{vision}.patch_embed.proj", w, 3, 16, 16)
    for i in range(size.depth):
        vit_block(out, f"{vision}.blocks.{i}", w)
    norms(out, vision, w, "norm")
    norms(out, f"{text}.embeddings", t, "LayerNorm")
    for i in range(size.text_depth):
        layer = f"{text}.encoder.layer.{i}"
        bert_attention(out, f"{layer}.attention", t, t)
        bert_attention(out, f"{layer}.crossattention", t, w)
        bert_feed_forward(out, layer, t, 4 * t)
    affine(out, "blip.vision_proj", 256, w)
    affine(out, "blip.text_proj", 256, t)
    widths = (t, 1024, 128, 64, 16, 1)
    for i, (before, after) in zip((0, 2, 4, 6, 7), pairwise(widths), strict=True):
        affine(out, f"mlp.layers.{i}", after, before)
    return out


def clip_layout(size: ClipSize) -> Shapes:
    """`open_clip_pytorch_model.bin`, and the `state_dict` in `negclip.pth`."""
    out: Shapes = {
        "visual.class_embedding": (size.width,),
        "visual.positional_embedding": ((size.image // size.patch) ** 2 + 1, size.width),
        "visual.conv1.weight": (size.width, 3, size.patch, size.patch),
        "visual.proj": (size.width, size.shared),
        "token_embedding.weight": (size.words, size.text),
        "positional_embedding": (size.places, size.text),
        "text_projection": (size.text, size.shared),
    }
    norms(out, "visual", size.width, "ln_pre", "ln_post")
    affine(out, "ln_final", size.text)
    for tower, w, depth in (("visual.", size.width, size.depth), ("", size.text, size.text_depth)):
        for i in range(depth):
            block = f"{tower}transformer.resblocks.{i}"
            out[f"{block}.attn.in_proj_weight"], out[f"{block}.attn.in_proj_bias"] = (3 * w, w), (3 * w,)
            affine(out, f"{block}.attn.out_proj", w, w)
            affine(out, f"{block}.mlp.c_fc", 4 * w, w)
            affine(out, f"{block}.mlp.c_proj", w, 4 * w)
            norms(out, block, w, "ln_1", "ln_2")
    return out


def image_reward_weights(size: ImageRewardSize) -> dict[str, torch.Tensor]:
    """Weights whose scores differ between pictures and between prompts."""
    tensors = seeded(image_reward_layout(size), gain=1.5)
    tensors["blip.text_encoder.embeddings.position_ids"] = torch.arange(size.places)[None]
    tensors["blip.text_encoder.embeddings.word_embeddings.weight"] *= 4
    return tensors


def clip_weights(size: ClipSize) -> dict[str, torch.Tensor]:
    return {**seeded(clip_layout(size), gain=1.5), "logit_scale": torch.tensor(4.6)}
