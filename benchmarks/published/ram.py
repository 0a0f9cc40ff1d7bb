"""RAM and RAM++ in their published layout, small, with weights that seeds make."""

from __future__ import annotations

import zlib
from typing import Any

import torch

DESCRIPTIONS = 51
HEAD = {"tags": 4585, "width": 768, "inner": 3072}
SMALL = {
    "window 4": {
        "embed": 32,
        "depths": (2, 2, 2),
        "heads": (1, 2, 4),
        "window": 4,
        "tags": 5,
        "width": 64,
        "inner": 128,
    },
    "window 7": {"embed": 32, "depths": (2, 2), "heads": (2, 4), "window": 7, "tags": 5, "width": 64, "inner": 96},
}
TRUE = {
    "Swin-L 384": {"embed": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48), "window": 12, **HEAD},
    "Swin-B 224": {"embed": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32), "window": 7, **HEAD},
}
PICTURES = ((48, 80, 2), (90, 70, 1))
"""Height, width and number of the images that the numbers in `golden/originals.json` are about."""
EVERY = {5: 1, 4585: 1000}
"""Of so many tags each so-manieth is in there."""


def tensors(sizes: dict[str, Any], plus: bool) -> dict[str, torch.Tensor]:
    """Every tensor of a published file; each is drawn from a seed that its name makes."""
    return {name: drawn(name, shape) for name, shape in shapes(plus=plus, **sizes).items()}


def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Normalisations near 1, biases small, layers that keep the size of what goes through them, unit label vectors."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name == "reweight_scale":
        return torch.tensor(4.0)  # its exponential sharpens the choice of descriptions
    if name == "label_embed":
        return torch.nn.functional.normalize(noise, dim=-1)
    if name.endswith(("relative_position_index", "attn_mask")):
        return torch.zeros(shape)  # the authors' loader computes them, too
    if name.endswith("relative_position_bias_table"):
        return noise
    if name.endswith("bias"):
        return 0.2 * noise
    if "norm" in name.lower():
        return 1 + 0.2 * noise
    if name.startswith("wordvec_proj"):
        return noise  # of a unit vector
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
) -> dict[str, tuple[int, ...]]:
    """The names and shapes of all tensors; of the captioning half of RAM one tensor each stands for many."""
    out: dict[str, tuple[int, ...]] = {
        "label_embed": (tags * DESCRIPTIONS if plus else tags, 512),
        **_linear("wordvec_proj", 512, width),
        **_linear("fc", width, 1),
        **_linear("image_proj", embed * 2 ** (len(depths) - 1), 512),
        "visual_encoder.patch_embed.proj.weight": (embed, 3, 4, 4),
        "visual_encoder.patch_embed.proj.bias": (embed,),
        **_norm("visual_encoder.patch_embed.norm", embed),
        **_norm("visual_encoder.norm", embed * 2 ** (len(depths) - 1)),
    }
    for i, depth in enumerate(depths):
        channels, maps = embed * 2**i, 2 ** (len(depths) - 1 - i)  # windows along a side
        for j in range(depth):
            block = f"visual_encoder.layers.{i}.blocks.{j}"
            out |= _norm(f"{block}.norm1", channels) | _norm(f"{block}.norm2", channels)
            out |= _linear(f"{block}.attn.qkv", channels, 3 * channels) | _linear(
                f"{block}.attn.proj", channels, channels
            )
            out |= _linear(f"{block}.mlp.fc1", channels, 4 * channels) | _linear(
                f"{block}.mlp.fc2", 4 * channels, channels
            )
            out[f"{block}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads[i])
            out[f"{block}.attn.relative_position_index"] = (window**2, window**2)
            if j % 2 and maps > 1:
                out[f"{block}.attn_mask"] = (maps**2, window**2, window**2)
        if maps > 1:
            out |= _norm(f"visual_encoder.layers.{i}.downsample.norm", 4 * channels)
            out[f"visual_encoder.layers.{i}.downsample.reduction.weight"] = (2 * channels, 4 * channels)
    for i in range(2):
        layer = f"tagging_head.encoder.layer.{i}"
        out |= _linear(f"{layer}.crossattention.self.query", width, width)
        out |= _linear(f"{layer}.crossattention.self.key", 512, width)
        out |= _linear(f"{layer}.crossattention.self.value", 512, width)
        out |= _linear(f"{layer}.crossattention.output.dense", width, width)
        out |= _linear(f"{layer}.intermediate.dense", width, inner) | _linear(f"{layer}.output.dense", inner, width)
        out |= _norm(f"{layer}.crossattention.output.LayerNorm", width) | _norm(f"{layer}.output.LayerNorm", width)
    if plus:
        return out | {"reweight_scale": ()}
    return out | {"tag_encoder.embeddings.word_embeddings.weight": (9, 4), "text_decoder.cls.predictions.bias": (9,)}


def _linear(name: str, width_in: int, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width, width_in), f"{name}.bias": (width,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def images(height: int, width: int, count: int) -> torch.Tensor:
    """[count, height, width, 3] in [0, 1], of 8 bits: smooth colours with noise on them."""
    noise = torch.Generator().manual_seed(height)
    coarse = torch.rand(count, 3, 4, 4, generator=noise)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").permute(0, 2, 3, 1)
    return ((smooth + 0.2 * torch.rand(smooth.shape, generator=noise)) / 1.2 * 255).round() / 255
