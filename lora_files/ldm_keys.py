"""Names of a diffusers UNet's weights → those of Stable Diffusion's own files (LDM), which ComfyUI's UNETLoader reads.

LDM numbers its blocks through all levels, diffusers from 0 in each level:

    input_blocks.0          conv_in
    input_blocks.1, 2 …     level by level: one per resnet, with its transformer if it has one; one per downsampler
    middle_block.0, 1, 2    resnet, transformer, resnet
    output_blocks.0, 1 …    likewise from the lowest level up; a level's last block has the upsampler
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..core.errors import RealignError

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding.linear_1": "label_emb.0.0",  # Stable Diffusion 2 unCLIP
    "class_embedding.linear_2": "label_emb.0.2",
    "add_embedding.linear_1": "label_emb.0.0",  # SDXL
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_IN_TRANSFORMER = re.compile(
    r"norm|proj_in|proj_out|transformer_blocks\.\d+\.(norm[123]|attn[12]\.to_([qkv]|out\.0)|ff\.net\.(0\.proj|2))"
)
"""Modules of a transformer, which have the same names in both."""


def ldm_names(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """{diffusers name: LDM name} for the given weights of a UNet with this config; a RealignError if LDM has none."""
    blocks = dict(_blocks(config))
    return {name: _rename(name, blocks) for name in names}


def _blocks(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(diffusers path, LDM path) of each resnet, transformer and sampler."""
    layers = config["layers_per_block"]
    layers = [layers] * len(config["down_block_types"]) if isinstance(layers, int) else list(layers)
    number = 1
    for level, (kind, count) in enumerate(zip(config["down_block_types"], layers, strict=True)):
        block = f"down_blocks.{level}"
        for layer in range(count):
            yield f"{block}.resnets.{layer}", f"input_blocks.{number}.0"
            if kind == "CrossAttnDownBlock2D":
                yield f"{block}.attentions.{layer}", f"input_blocks.{number}.1"
            number += 1
        yield f"{block}.downsamplers.0.conv", f"input_blocks.{number}.0.op"  # the lowest level has none
        number += 1
    for i, part in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"mid_block.{part}", f"middle_block.{i}"
    number = 0
    for level, (kind, count) in enumerate(zip(config["up_block_types"], layers[::-1], strict=True)):
        block, attends = f"up_blocks.{level}", kind == "CrossAttnUpBlock2D"
        for layer in range(count + 1):
            yield f"{block}.resnets.{layer}", f"output_blocks.{number}.0"
            if attends:
                yield f"{block}.attentions.{layer}", f"output_blocks.{number}.1"
            number += 1
        yield f"{block}.upsamplers.0.conv", f"output_blocks.{number - 1}.{2 if attends else 1}.conv"


def _rename(name: str, blocks: Mapping[str, str]) -> str:
    """The LDM name of a weight: `down_blocks.0.resnets.1.conv1.weight` → `input_blocks.2.0.in_layers.2.weight`."""
    module, _, kind = name.rpartition(".")
    if module in _ENDS:
        return f"{_ENDS[module]}.{kind}"
    if module in blocks:  # a sampler
        return f"{blocks[module]}.{kind}"
    block = re.match(r"(.*?)\.(?:resnets|attentions)\.\d+(?=\.)", name)
    inside = module[block.end() + 1 :] if block else ""
    if block and block[0] in blocks:
        if ".resnets." in block[0] and inside in _RESNET:
            return f"{blocks[block[0]]}.{_RESNET[inside]}.{kind}"
        if ".attentions." in block[0] and _IN_TRANSFORMER.fullmatch(inside):
            return f"{blocks[block[0]]}.{inside}.{kind}"
    raise RealignError(
        f"This UNet has a weight that Stable Diffusion 1, 2 and XL do not have ('{name}'): "
        "ComfyUI cannot read it from a single file. Save it with `save_pretrained`."
    )
