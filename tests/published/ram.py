"""RAM's and RAM++'s published files, small or at full size: names, shapes, and weights from seeds."""

from __future__ import annotations

import zlib
from typing import Any

import torch

from .layouts import Shapes, affine, bert_attention, bert_feed_forward, norms, vit_block

DESCRIPTIONS = 51
HEAD = {"tags": 4585, "width": 768, "inner": 3072}
SMALL = {
    "window 4": {
        "embed": 32, "depths": (2, 2, 2), "heads": (1, 2, 4), "window": 4, "tags": 5, "width": 64, "inner": 128
    },
    "window 7": {"embed": 32, "depths": (2, 2), "heads": (2, 4), "window": 7, "tags": 5, "width": 64, "inner": 96},
}  # fmt: skip
TRUE = {
    "Swin-L 384": {"embed": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48), "window": 12, **HEAD},
    "Swin-B 224": {"embed": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32), "window": 7, **HEAD},
}
PICTURES = ((48, 80, 2), (90, 70, 1))
"""(height, width, number) of the images behind `golden/originals.json`."""
EVERY = {5: 1, 4585: 1000}
"""{number of tags: every how-manieth tag's logits are in `golden/originals.json`}"""


def tensors(sizes: dict[str, Any], plus: bool) -> dict[str, torch.Tensor]:
    """Every tensor of a published file, each drawn from a seed that follows from its name."""
    return {name: draw(name, shape) for name, shape in shapes(plus=plus, **sizes).items()}


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Normalisations near 1, small biases, matrices that keep their input's scale, unit label vectors."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name == "reweight_scale":
        return torch.tensor(4.0)  # exp(4) makes the descriptions' weights peaked
    if name == "label_embed":
        return torch.nn.functional.normalize(noise, dim=-1)
    if name.endswith(("relative_position_index", "attn_mask")):
        return torch.zeros(shape)  # the authors' loader computes them
    if name.endswith("relative_position_bias_table"):
        return noise
    if name.endswith("bias"):
        return 0.2 * noise
    if "norm" in name.lower():
        return 1 + 0.2 * noise
    if name.startswith("wordvec_proj"):
        return noise  # its input is a unit vector
    return 1.5 * noise * noise[0].numel() ** -0.5


def shapes(
    embed: int,
    depths: tuple[int, ...],
    heads: tuple[int, ...],
    window: int,
    tags: int,
    width: int,
    inner: int,
    plus: bool,
) -> Shapes:
    """The names and shapes of all tensors; one tensor stands for each part of RAM's caption decoder."""
    last = embed * 2 ** (len(depths) - 1)
    out: Shapes = {"label_embed": (tags * DESCRIPTIONS if plus else tags, 512)}
    affine(out, "wordvec_proj", width, 512)
    affine(out, "fc", 1, width)
    affine(out, "image_proj", 512, last)
    affine(out, "visual_encoder.patch_embed.proj", embed, 3, 4, 4)
    norms(out, "visual_encoder", embed, "patch_embed.norm")
    norms(out, "visual_encoder", last, "norm")
    for i, depth in enumerate(depths):
        channels, maps = embed * 2**i, 2 ** (len(depths) - 1 - i)  # windows along a side
        for j in range(depth):
            block = f"visual_encoder.layers.{i}.blocks.{j}"
            vit_block(out, block, channels)
            out[f"{block}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads[i])
            out[f"{block}.attn.relative_position_index"] = (window**2, window**2)
            if j % 2 and maps > 1:
                out[f"{block}.attn_mask"] = (maps**2, window**2, window**2)
        if maps > 1:
            norms(out, f"visual_encoder.layers.{i}.downsample", 4 * channels, "norm")
            out[f"visual_encoder.layers.{i}.downsample.reduction.weight"] = (2 * channels, 4 * channels)
    for i in range(2):
        layer = f"tagging_head.encoder.layer.{i}"
        bert_attention(out, f"{layer}.crossattention", width, 512)
        bert_feed_forward(out, layer, width, inner)
    if plus:
        return out | {"reweight_scale": ()}
    return out | {"tag_encoder.embeddings.word_embeddings.weight": (9, 4), "text_decoder.cls.predictions.bias": (9,)}


def images(height: int, width: int, count: int) -> torch.Tensor:
    """[count, height, width, 3] in [0, 1], rounded to 8 bits: smooth colours with noise."""
    noise = torch.Generator().manual_seed(height)
    coarse = torch.rand(count, 3, 4, 4, generator=noise)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").permute(0, 2, 3, 1)
    return ((smooth + 0.2 * torch.rand(smooth.shape, generator=noise)) / 1.2 * 255).round() / 255
