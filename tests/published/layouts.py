"""SAM's and GroundingDINO's original files, at any size: names, shapes, and weights from a seed.

`golden/originals.py` checks these layouts against the original implementations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

Shapes = dict[str, tuple[int, ...]]

PICTURES = ((1, 96, 128), (2, 150, 100), (3, 64, 64), (4, 96, 128))
"""(seed, height, width) of the pictures behind `golden/originals.json`."""
BOXES = ((0.1, 0.2, 0.7, 0.9), (0.4, 0.05, 0.95, 0.6), (0.0, 0.0, 1.0, 1.0))
"""x0, y0, x1, y1 as fractions: SAM's input for each picture."""
PHRASES = ("red circle", "blue square", "circle")
"""GroundingDINO's input for each picture."""
EDGES = (96, 160)
"""GroundingDINO's shortest image side, in place of 800, and its longest, in place of 1333."""
EVERY = 997
"""The step between logits that `golden/originals.json` keeps."""


@dataclass(frozen=True)
class SamSize:
    """A SAM: `depth` layers of `width` channels in `heads` heads; those in `whole` have global attention."""

    width: int
    depth: int
    heads: int
    whole: tuple[int, ...]
    image: int = 1024
    window: int = 14
    prompt: int = 256
    decoder_mlp: int = 2048


@dataclass(frozen=True)
class DinoSize:
    """A GroundingDINO on a Swin with `depths` layers of `heads` heads; its BERT has `words` tokens, `text` channels."""

    swin: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    layers: int = 6
    mlp: int = 2048
    queries: int = 900
    words: int = 30522
    text: int = 768
    text_layers: int = 12
    width: int = 256
    levels: int = 4


SAM = {
    "vit_b": SamSize(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": SamSize(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": SamSize(1280, 32, 16, (7, 15, 23, 31)),
    "small": SamSize(32, 3, 2, (1,), image=128, window=3, prompt=32, decoder_mlp=64),
}
DINO = {
    "swint_ogc": DinoSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swinb_cogcoor": DinoSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "small": DinoSize(16, (2, 1, 2, 1), (1, 2, 2, 4), 5, 2, 64, 24, 1030, 64, 2),
}


def sam_layout(size: SamSize) -> Shapes:
    """`sam_vit_*.pth`."""
    w, p, grid = size.width, size.prompt, size.image // 16
    out: Shapes = {"image_encoder.pos_embed": (1, grid, grid, w)}
    affine(out, "image_encoder.patch_embed.proj", w, 3, 16, 16)
    for i in range(size.depth):
        block, reach = f"image_encoder.blocks.{i}", 2 * (grid if i in size.whole else size.window) - 1
        for axis in "hw":
            out[f"{block}.attn.rel_pos_{axis}"] = (reach, w // size.heads)
        vit_block(out, block, w, mlp=("lin1", "lin2"))
    out["image_encoder.neck.0.weight"] = (p, w, 1, 1)
    out["image_encoder.neck.2.weight"] = (p, p, 3, 3)
    norms(out, "image_encoder.neck", p, "1", "3")

    out["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = (2, p // 2)
    for name in ("no_mask_embed", "not_a_point_embed", *(f"point_embeddings.{i}" for i in range(4))):
        out[f"prompt_encoder.{name}.weight"] = (1, p)
    masks = "prompt_encoder.mask_downscaling"
    for i, shape in ((0, (4, 1, 2, 2)), (3, (16, 4, 2, 2)), (6, (p, 16, 1, 1))):
        affine(out, f"{masks}.{i}", *shape)
    norms(out, masks, 4, "1")
    norms(out, masks, 16, "4")

    out["mask_decoder.iou_token.weight"] = (1, p)
    out["mask_decoder.mask_tokens.weight"] = (4, p)
    two_way = "mask_decoder.transformer"
    for i in range(2):
        layer = f"{two_way}.layers.{i}"
        _attention(out, f"{layer}.self_attn", p, p)
        _attention(out, f"{layer}.cross_attn_token_to_image", p, p // 2)
        _attention(out, f"{layer}.cross_attn_image_to_token", p, p // 2)
        affine(out, f"{layer}.mlp.lin1", size.decoder_mlp, p)
        affine(out, f"{layer}.mlp.lin2", p, size.decoder_mlp)
        norms(out, layer, p, "norm1", "norm2", "norm3", "norm4")
    _attention(out, f"{two_way}.final_attn_token_to_image", p, p // 2)
    norms(out, two_way, p, "norm_final_attn")
    for i, shape in ((0, (p, p // 4, 2, 2)), (3, (p // 4, p // 8, 2, 2))):
        out[f"mask_decoder.output_upscaling.{i}.weight"] = shape
        out[f"mask_decoder.output_upscaling.{i}.bias"] = shape[1:2]
    norms(out, "mask_decoder.output_upscaling", p // 4, "1")
    for i in range(4):
        _mlp(out, f"mask_decoder.output_hypernetworks_mlps.{i}", p, p, p, p // 8)
    _mlp(out, "mask_decoder.iou_prediction_head", p, 256, 256, 4)
    return out


def dino_layout(size: DinoSize) -> Shapes:
    """`groundingdino_swin*.pth`."""
    w, t = size.width, size.text
    out: Shapes = {}
    affine(out, "backbone.0.patch_embed.proj", size.swin, 3, 4, 4)
    norms(out, "backbone.0.patch_embed", size.swin, "norm")
    channels = [size.swin * 2**i for i in range(len(size.depths))]
    for stage, (c, depth, heads) in enumerate(zip(channels, size.depths, size.heads, strict=True)):
        for i in range(depth):
            block = f"backbone.0.layers.{stage}.blocks.{i}"
            out[f"{block}.attn.relative_position_bias_table"] = ((2 * size.window - 1) ** 2, heads)
            out[f"{block}.attn.relative_position_index"] = (size.window**2, size.window**2)
            vit_block(out, block, c)
        if stage + 1 < len(channels):
            out[f"backbone.0.layers.{stage}.downsample.reduction.weight"] = (2 * c, 4 * c)
            norms(out, f"backbone.0.layers.{stage}.downsample", 4 * c, "norm")
        if stage > 0:
            norms(out, "backbone.0", c, f"norm{stage}")
            affine(out, f"input_proj.{stage - 1}.0", w, c, 1, 1)
            norms(out, f"input_proj.{stage - 1}", w, "1")
    affine(out, "input_proj.3.0", w, channels[-1], 3, 3)
    norms(out, "input_proj.3", w, "1")

    for name, rows in (("word", size.words), ("position", 512), ("token_type", 2)):
        out[f"bert.embeddings.{name}_embeddings.weight"] = (rows, t)
    out["bert.embeddings.position_ids"] = (1, 512)
    norms(out, "bert.embeddings", t, "LayerNorm")
    for i in range(size.text_layers):
        layer = f"bert.encoder.layer.{i}"
        bert_attention(out, f"{layer}.attention", t, t)
        bert_feed_forward(out, layer, t, 4 * t)
    affine(out, "bert.pooler.dense", t, t)
    affine(out, "feat_map", w, t)

    out["label_enc.weight"] = (2001, w)
    out["transformer.level_embed"] = (size.levels, w)
    out["transformer.tgt_embed.weight"] = (size.queries, w)
    affine(out, "transformer.enc_output", w, w)
    norms(out, "transformer", w, "enc_output_norm", "decoder.norm")
    _mlp(out, "transformer.enc_out_bbox_embed", w, w, w, 4)
    _mlp(out, "transformer.decoder.ref_point_head", 2 * w, w, w)
    for i in range(size.layers):
        encoder, text = f"transformer.encoder.layers.{i}", f"transformer.encoder.text_layers.{i}"
        fusion, decoder = f"transformer.encoder.fusion_layers.{i}", f"transformer.decoder.layers.{i}"
        _deformable(out, f"{encoder}.self_attn", w, size.levels)
        _feed_forward(out, encoder, w, size.mlp, "norm1", "norm2")
        _fused_attention(out, f"{text}.self_attn", w)
        _feed_forward(out, text, w, size.mlp // 2, "norm1", "norm2")
        out[f"{fusion}.gamma_v"] = out[f"{fusion}.gamma_l"] = (w,)
        norms(out, fusion, w, "layer_norm_v", "layer_norm_l")
        for name in ("v_proj", "l_proj", "values_v_proj", "values_l_proj"):
            affine(out, f"{fusion}.attn.{name}", size.mlp // 2, w)
        for name in ("out_v_proj", "out_l_proj"):
            affine(out, f"{fusion}.attn.{name}", w, size.mlp // 2)
        _deformable(out, f"{decoder}.cross_attn", w, size.levels)
        _fused_attention(out, f"{decoder}.ca_text", w)
        _fused_attention(out, f"{decoder}.self_attn", w)
        _feed_forward(out, decoder, w, size.mlp, "norm1", "norm2", "norm3", "catext_norm")
        for boxes in (f"bbox_embed.{i}", f"transformer.decoder.bbox_embed.{i}"):
            _mlp(out, boxes, w, w, w, 4)
    return out


def sam_weights(size: SamSize) -> dict[str, torch.Tensor]:
    return seeded(sam_layout(size), gain=2.0)


def dino_weights(size: DinoSize) -> dict[str, torch.Tensor]:
    """Weights that give some image-filling and some line-like boxes. All layers share one box head, stored for each."""
    tensors = seeded(dino_layout(size), gain=1.0)
    for name in tensors:
        if name.endswith("position_ids"):
            tensors[name] = torch.arange(512)[None]
        elif name.endswith("relative_position_index"):
            tensors[name] = _relative_positions(size.window)
    tensors["bbox_embed.0.layers.2.weight"][2:] *= 40
    for name in tensors:
        if "bbox_embed." in name and "enc_out" not in name:
            tensors[name] = tensors["bbox_embed.0." + name.split("bbox_embed.")[1].split(".", 1)[1]]
    return tensors


def seeded(layout: Shapes, gain: float) -> dict[str, torch.Tensor]:
    """Weights that are the same on every machine: norms near 0.5, matrices with rows of length `gain`."""
    draw = np.random.RandomState(0)
    tensors = {}
    for name in sorted(layout):
        shape = layout[name]
        noise = torch.from_numpy(draw.standard_normal(shape).astype(np.float32))
        if len(shape) == 1:
            centre = 0.5 if name.endswith(".weight") or ".gamma_" in name else 0.0
            tensors[name] = centre + 0.1 * noise
        else:
            tensors[name] = gain * noise / math.sqrt(math.prod(shape[1:]))
    return tensors


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Coloured squares of 8 × 8 pixels with noise. [height, width, 3], uint8"""
    draw = np.random.RandomState(seed)
    squares = draw.randint(0, 200, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    return (squares + draw.randint(0, 56, (height, width, 3))).astype(np.uint8)


def _relative_positions(window: int) -> torch.Tensor:
    """The row of Swin's bias table for each pair of a window's pixels. [window², window²]"""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    down, right = y[:, None] - y[None, :] + window - 1, x[:, None] - x[None, :] + window - 1
    return down * (2 * window - 1) + right


def affine(out: Shapes, name: str, *shape: int) -> None:
    out[f"{name}.weight"], out[f"{name}.bias"] = shape, shape[:1]


def norms(out: Shapes, parent: str, width: int, *names: str) -> None:
    for name in names:
        affine(out, f"{parent}.{name}", width)


def vit_block(out: Shapes, block: str, width: int, mlp: tuple[str, str] = ("fc1", "fc2")) -> None:
    """A block of a ViT or Swin, without its position biases."""
    affine(out, f"{block}.attn.qkv", 3 * width, width)
    affine(out, f"{block}.attn.proj", width, width)
    affine(out, f"{block}.mlp.{mlp[0]}", 4 * width, width)
    affine(out, f"{block}.mlp.{mlp[1]}", width, 4 * width)
    norms(out, block, width, "norm1", "norm2")


def bert_attention(out: Shapes, name: str, width: int, key_width: int) -> None:
    affine(out, f"{name}.self.query", width, width)
    affine(out, f"{name}.self.key", width, key_width)
    affine(out, f"{name}.self.value", width, key_width)
    affine(out, f"{name}.output.dense", width, width)
    norms(out, f"{name}.output", width, "LayerNorm")


def bert_feed_forward(out: Shapes, layer: str, width: int, inner: int) -> None:
    affine(out, f"{layer}.intermediate.dense", inner, width)
    affine(out, f"{layer}.output.dense", width, inner)
    norms(out, f"{layer}.output", width, "LayerNorm")


def _mlp(out: Shapes, name: str, *widths: int) -> None:
    for i, (before, after) in enumerate(pairwise(widths)):
        affine(out, f"{name}.layers.{i}", after, before)


def _attention(out: Shapes, name: str, width: int, inner: int) -> None:
    for part in "qkv":
        affine(out, f"{name}.{part}_proj", inner, width)
    affine(out, f"{name}.out_proj", width, inner)


def _fused_attention(out: Shapes, name: str, width: int) -> None:
    out[f"{name}.in_proj_weight"], out[f"{name}.in_proj_bias"] = (3 * width, width), (3 * width,)
    affine(out, f"{name}.out_proj", width, width)


def _deformable(out: Shapes, name: str, width: int, levels: int) -> None:
    points = 8 * levels * 4
    for part, rows in (("sampling_offsets", 2 * points), ("attention_weights", points)):
        affine(out, f"{name}.{part}", rows, width)
    for part in ("value_proj", "output_proj"):
        affine(out, f"{name}.{part}", width, width)


def _feed_forward(out: Shapes, name: str, width: int, inner: int, *names: str) -> None:
    affine(out, f"{name}.linear1", inner, width)
    affine(out, f"{name}.linear2", width, inner)
    norms(out, name, width, *names)
