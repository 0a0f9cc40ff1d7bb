"""CLIPs in the layout of OpenAI and open_clip (`negclip.pth`, `open_clip_pytorch_model.bin`) as `CLIPModel`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from ..core.errors import RealignError
from .files import read_tensors
from .filling import from_tensors
from .folder_checks import read_json
from .kinds import looks_like, wrong_file
from .names import count, rename, split_qkv

KIND = "a CLIP of open_clip"
UNUSED = ("attn_mask", "input_resolution", "context_length", "vocab_size")  # constants in some files
ROOTS = (
    "visual.", "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection",
    "logit_scale", *UNUSED,
)  # fmt: skip
"""What the names of its tensors begin with."""
HEAD = 64  # channels per attention head of every published text tower; they cannot be read from shapes
_VISION_HEADS = {1280: 80, 1408: 88, 1664: 104}  # {width: channels per head} of ViT-H, g and bigG; else `HEAD`

_LAYER = r"transformer.resblocks.(\d+)"
_PARTS = (
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn", "self_attn"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)
_NAMES = (
    ("visual.conv1", "vision_model.embeddings.patch_embedding"),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.ln_pre", "vision_model.pre_layrnorm"),  # sic
    ("visual.ln_post", "vision_model.post_layernorm"),
    ("visual.proj", "visual_projection.weight"),
    *((rf"visual.{_LAYER}.{old}", rf"vision_model.encoder.layers.\1.{new}") for old, new in _PARTS),
    ("token_embedding", "text_model.embeddings.token_embedding"),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final", "text_model.final_layer_norm"),
    ("text_projection", "text_projection.weight"),
    *((rf"{_LAYER}.{old}", rf"text_model.encoder.layers.\1.{new}") for old, new in _PARTS),
)
_TRANSPOSED = ("visual.proj", "text_projection")  # matrices [in, out]


def load_open_clip(file: str | Path, dtype: torch.dtype = torch.float32) -> CLIPModel:
    """A CLIP on the CPU, with exact GELU unless the `open_clip_config.json` beside it says QuickGELU."""
    tensors = {name: tensor for name, tensor in read_tensors(file, ROOTS).items() if name not in UNUSED}
    if looks_like(tensors) != KIND:
        raise wrong_file(file, tensors, f"{KIND} with a ViT, such as negclip.pth,")
    beside = Path(file).with_name("open_clip_config.json")
    model_cfg = read_json(beside).get("model_cfg", {})
    if not isinstance(model_cfg, dict):
        raise RealignError(f"The model_cfg in '{beside}' is no JSON object: download it again.")
    config = partial(config_of, activation="quick_gelu" if model_cfg.get("quick_gelu") else "gelu")
    return from_tensors(CLIPModel, config, convert, tensors, file, KIND, dtype)


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of transformers' published folders; queries, keys and values are split."""
    upright = {name: x.T.contiguous() if name in _TRANSPOSED else x for name, x in tensors.items()}
    renamed = {rename(name, _NAMES): tensor for name, tensor in upright.items()}
    return split_qkv(renamed, ("q_proj", "k_proj", "v_proj"))


def config_of(tensors: Mapping[str, Tensor], activation: str = "gelu") -> CLIPConfig:
    """The model's sizes, read from the tensors' shapes. The end token is the vocabulary's last, as in CLIP's BPE."""
    shape = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    width, _, patch, _ = shape["visual.conv1.weight"]
    places, _ = shape["visual.positional_embedding"]
    words, text_width = shape["token_embedding.weight"]
    return CLIPConfig(
        projection_dim=shape["text_projection"][1],
        vision_config={
            "hidden_size": width,
            "intermediate_size": shape["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
            "num_hidden_layers": count(tensors, "visual.transformer.resblocks."),
            "num_attention_heads": width // _VISION_HEADS.get(width, HEAD),
            "image_size": round((places - 1) ** 0.5) * patch,
            "patch_size": patch,
            "hidden_act": activation,
            "projection_dim": shape["visual.proj"][1],
        },
        text_config={
            "vocab_size": words,
            "hidden_size": text_width,
            "intermediate_size": shape["transformer.resblocks.0.mlp.c_fc.weight"][0],
            "num_hidden_layers": count(tensors, "transformer.resblocks."),
            "num_attention_heads": text_width // HEAD,
            "max_position_embeddings": shape["positional_embedding"][0],
            "hidden_act": activation,
            "projection_dim": shape["text_projection"][1],
            "bos_token_id": words - 2,
            "eos_token_id": words - 1,
        },
    )
