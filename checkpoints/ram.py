"""RAM and RAM++ as their authors published them (`ram_swin_large_14m.pth`, `ram_plus_swin_large_14m.pth`) → `Ram`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import RealignError
from .files import read_tensors
from .filling import empty_weights, fill, wrong_file
from .kinds import looks_like
from .names import check_layers, count, window_of
from .networks.ram import Ram, RamConfig, RamPlus
from .networks.swin import PATCH

ROOTS = (
    "visual_encoder.", "tagging_head.", "vision_multi.", "tag_encoder.", "text_decoder.", "label_embed", "image_proj.",
    "wordvec_proj.", "fc.", "reweight_scale",
)  # fmt: skip
"""How the names of its tensors begin."""
UNUSED = (
    r"tag_encoder\.|text_decoder\.",  # the half of RAM that writes captions
    r".*\.(relative_position_index|attn_mask)$",  # constants, which `Swin` makes itself
    r"tagging_head\.(embeddings\.|encoder\.layer\.\d+\.attention\.)",  # parts of BERT that the head does without
)
"""The names of published tensors that tagging has no use for, as patterns."""
DESCRIPTIONS = 51
"""Texts a tag in a published RAM++."""
_KINDS = ("a RAM tagger", "a RAM++ tagger")
_HEADS = 4
_TABLE_NAME = "visual_encoder.layers.{}.blocks.{}.attn.relative_position_bias_table"
_TABLE = re.compile(_TABLE_NAME.replace(".", r"\.").format(r"(\d+)", r"\d+"))


def load_ram(file: str | Path, dtype: torch.dtype = torch.float32) -> Ram:
    """The tagger that a published file holds; its sizes are read from the tensors' shapes.

    Raises:
        RealignError: the file is damaged, no RAM, or of a RAM that is built otherwise.
    """
    tensors = own_names(read_tensors(file, ROOTS))
    if (kind := looks_like(tensors)) not in _KINDS:
        raise wrong_file(file, tensors, "a RAM or RAM++ tagger")
    plus = kind == _KINDS[1]
    try:
        config = config_of(tensors)
    except (LookupError, ArithmeticError, TypeError, ValueError) as error:
        raise RealignError(
            f"'{file}' looks like {kind}, but not like one with a Swin, or not whole: choose another file, or download "
            "it again."
        ) from error
    with empty_weights():
        model = RamPlus(config, DESCRIPTIONS) if plus else Ram(config)
    if plus and len(tensors["label_embed"]) == DESCRIPTIONS * config.num_tags:
        tensors["label_embed"] = tensors["label_embed"].unflatten(0, (-1, DESCRIPTIONS))  # [K, N, W]
    fill(model, tensors, file, kind, dtype)
    return model


def own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors that are used, by the names that `Ram` has for them."""
    older = {name.replace("vision_multi.", "tagging_head."): tensor for name, tensor in tensors.items()}
    used = {name: tensor for name, tensor in older.items() if not any(re.match(unused, name) for unused in UNUSED)}
    return {name.replace("tagging_head.encoder.layer.", "tagging_head."): tensor for name, tensor in used.items()}


def config_of(tensors: Mapping[str, Tensor]) -> RamConfig:
    """The sizes of a RAM, from its tensors in our names. The last map of a published Swin is one window wide, which
    makes the image 384 pixels for a window of 12, and 224 for one of 7.

    Raises:
        LookupError, ArithmeticError, TypeError, ValueError: a tensor that tells a size is missing or has an odd shape.
    """
    depths = Counter(int(found[1]) for name in tensors if (found := _TABLE.fullmatch(name)))
    check_layers(max(len(depths), *depths.values(), 1), "visual_encoder.layers.")
    tables = [tensors[_TABLE_NAME.format(stage, 0)] for stage in range(max(1, len(depths)))]  # [(2 window - 1)², heads]
    window = window_of(len(tables[0]))
    return RamConfig(
        image_size=PATCH * 2 ** (len(tables) - 1) * window,
        num_tags=len(tensors["label_embed"]) // (DESCRIPTIONS if "reweight_scale" in tensors else 1),
        embed_dim=len(tensors["visual_encoder.patch_embed.proj.weight"]),
        depths=tuple(depths[stage] for stage in range(len(tables))),
        num_heads=tuple(table.shape[1] for table in tables),
        window_size=window,
        image_width=len(tensors["image_proj.weight"]),
        label_width=tensors["wordvec_proj.weight"].shape[1],
        head={
            "hidden_size": len(tensors["wordvec_proj.weight"]),
            "num_hidden_layers": count(tensors, "tagging_head."),
            "num_attention_heads": _HEADS,
            "intermediate_size": len(tensors["tagging_head.0.intermediate.dense.weight"]),
        },
    )
