"""RAM and RAM++ → `Ram`: published files (`ram_swin_large_14m.pth`, `ram_plus_swin_large_14m.pth`) and our folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..core.errors import RealignError, first_line
from .files import read_tensors, weights_file
from .filling import empty_weights, fill
from .folder_checks import check_folder
from .folders import existing_folder
from .kinds import looks_like, wrong_file
from .names import MAX_LAYERS, MAX_WINDOW, check_most, count, window_of
from .networks.ram import Ram, RamConfig, RamPlus
from .networks.swin import PATCH
from .values import plain_tensors

ROOTS = (
    "visual_encoder.", "tagging_head.", "vision_multi.", "tag_encoder.", "text_decoder.", "label_embed", "image_proj.",
    "wordvec_proj.", "fc.", "reweight_scale",
)  # fmt: skip
"""What the names of its tensors begin with."""
UNUSED = (
    r"tag_encoder\.|text_decoder\.",  # RAM's caption decoder
    r".*\.(relative_position_index|attn_mask)$",  # constants; `Swin` makes its own
    r"tagging_head\.(embeddings\.|encoder\.layer\.\d+\.attention\.)",  # parts of BERT that the head does not use
)
"""Published tensors that tagging does not need, as regular expressions."""
DESCRIPTIONS = 51  # texts per tag in a published RAM++
_KINDS = ("a RAM tagger", "a RAM++ tagger")
_HEADS = 4
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"  # our own layout: `RamConfig`'s fields, `Ram`'s tensors
_TABLE_NAME = "visual_encoder.layers.{}.blocks.{}.attn.relative_position_bias_table"
_TABLE = re.compile(_TABLE_NAME.replace(".", r"\.").format(r"(\d+)", r"\d+"))


def load_ram(path: str | Path, dtype: torch.dtype = torch.float32) -> Ram:
    """A RAM or RAM++ on the CPU: a published file, its folder, or our `config.json` and `model.safetensors`."""
    file = weights_file(path)
    folder = existing_folder(path) if file is None else file.parent
    ours = all((folder / name).is_file() for name in (_CONFIG, _WEIGHTS))
    if ours and (file is None or file.name == _WEIGHTS):
        return _load_ours(folder, dtype)
    if file is None:
        raise RealignError(f"The folder '{folder}' holds no file of weights: put a RAM's or RAM++'s there.")
    return _load_published(file, dtype)


def _load_ours(folder: Path, dtype: torch.dtype) -> Ram:
    try:
        config = RamConfig(**check_folder(folder))
        check_most(config.window_size, MAX_WINDOW, "tokens per side of a window")
        with empty_weights():
            model = Ram(config)
        tensors = load_file(folder / _WEIGHTS)
    except RealignError:
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        raise RealignError(
            f"The files in '{folder}' are damaged or not a RAM ({first_line(error)}): copy or download them again."
        ) from error
    file = folder / _WEIGHTS
    fill(model, plain_tensors(tensors, file), file, "a RAM tagger", dtype)
    return model


def _load_published(file: Path, dtype: torch.dtype) -> Ram:
    tensors = convert(read_tensors(file, ROOTS))
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


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors that tagging uses, under `Ram`'s names."""
    older = {name.replace("vision_multi.", "tagging_head."): tensor for name, tensor in tensors.items()}
    used = {name: tensor for name, tensor in older.items() if not any(re.match(unused, name) for unused in UNUSED)}
    return {name.replace("tagging_head.encoder.layer.", "tagging_head."): tensor for name, tensor in used.items()}


def config_of(tensors: Mapping[str, Tensor]) -> RamConfig:
    """The model's sizes, read from the shapes of its tensors under `Ram`'s names."""
    depths = Counter(int(found[1]) for name in tensors if (found := _TABLE.fullmatch(name)))
    check_most(max(len(depths), *depths.values(), 1), MAX_LAYERS, "layers 'visual_encoder.layers.…'")
    tables = [tensors[_TABLE_NAME.format(stage, 0)] for stage in range(max(1, len(depths)))]  # [(2 window - 1)², heads]
    window = window_of(len(tables[0]))
    return RamConfig(  # a published Swin's last map is one window wide: 384 pixels for a window of 12, 224 for 7
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
