"""GroundingDINO's original files (`groundingdino_swint_ogc.pth`, `groundingdino_swinb_cogcoor.pth`) as transformers'
`GroundingDinoForObjectDetection`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

from .files import read_tensors
from .filling import from_tensors
from .kinds import looks_like, wrong_file
from .names import count, rename, split_qkv, window_of

KIND = "a GroundingDINO detector"
HEADS = 8  # attention heads of every published GroundingDINO; they cannot be read from shapes
BERT_HEAD = 64  # channels per attention head of every BERT; likewise

ROOTS = (
    "backbone.", "transformer.", "bert.", "input_proj.", "feat_map.", "bbox_embed.", "class_embed.", "label_enc.",
)  # fmt: skip
"""What the names of its tensors begin with."""
UNUSED = (
    r"label_enc\.",  # labels of noised boxes, for training only
    r"bert\.pooler\.",  # one vector per text
    r"bert\.embeddings\.position_ids$",  # 0, 1, 2, …
    r"transformer\.decoder\.bbox_embed\.",  # a copy of `bbox_embed`
)
"""Tensors that detection does not need, as regular expressions."""

_LAYER = r".(\d+)."
_MODULES = (  # (path, path in transformers, ((name in it, name in transformers), …))
    ("backbone.0.", "model.backbone.conv_encoder.model.", (
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("patch_embed.norm", "embeddings.norm"),
        (rf"layers{_LAYER}blocks{_LAYER}norm1", r"encoder.layers.\1.blocks.\2.layernorm_before"),
        (rf"layers{_LAYER}blocks{_LAYER}norm2", r"encoder.layers.\1.blocks.\2.layernorm_after"),
        (rf"layers{_LAYER}blocks{_LAYER}attn.proj", r"encoder.layers.\1.blocks.\2.attention.output.dense"),
        (rf"layers{_LAYER}blocks{_LAYER}attn", r"encoder.layers.\1.blocks.\2.attention.self"),
        (rf"layers{_LAYER}blocks{_LAYER}mlp.fc1", r"encoder.layers.\1.blocks.\2.intermediate.dense"),
        (rf"layers{_LAYER}blocks{_LAYER}mlp.fc2", r"encoder.layers.\1.blocks.\2.output.dense"),
        (rf"layers{_LAYER}downsample", r"encoder.layers.\1.downsample"),
        ("norm1", "hidden_states_norms.stage2"),
        ("norm2", "hidden_states_norms.stage3"),
        ("norm3", "hidden_states_norms.stage4"),
    )),
    (rf"transformer.encoder.layers{_LAYER}", r"model.encoder.layers.\1.deformable_layer.", (
        ("self_attn", "self_attn"),
        ("norm1", "self_attn_layer_norm"),
        ("norm2", "final_layer_norm"),
        (r"linear(\d)", r"fc\2"),
    )),
    (rf"transformer.encoder.text_layers{_LAYER}", r"model.encoder.layers.\1.text_enhancer_layer.", (
        ("self_attn", "self_attn"),
        ("norm1", "layer_norm_before"),
        ("norm2", "layer_norm_after"),
        (r"linear(\d)", r"fc\2"),
    )),
    (rf"transformer.encoder.fusion_layers{_LAYER}", r"model.encoder.layers.\1.fusion_layer.", (
        ("gamma_v", "vision_param"),
        ("gamma_l", "text_param"),
        ("layer_norm_v", "layer_norm_vision"),
        ("layer_norm_l", "layer_norm_text"),
        (r"attn.(out_|values_)?v_proj", r"attn.\2vision_proj"),
        (r"attn.(out_|values_)?l_proj", r"attn.\2text_proj"),
    )),
    (rf"transformer.decoder.layers{_LAYER}", r"model.decoder.layers.\1.", (
        ("self_attn", "self_attn"),
        ("ca_text", "encoder_attn_text"),
        ("cross_attn", "encoder_attn"),
        ("norm1", "encoder_attn_layer_norm"),
        ("norm2", "self_attn_layer_norm"),
        ("norm3", "final_layer_norm"),
        ("catext_norm", "encoder_attn_text_layer_norm"),
        (r"linear(\d)", r"fc\2"),
    )),
    ("transformer.", "model.", (
        ("tgt_embed", "query_position_embeddings"),
        ("(level_embed|enc_output|enc_output_norm)", r"\1"),
        ("enc_out_bbox_embed", "encoder_output_bbox_embed"),
        ("decoder.norm", "decoder.layer_norm"),
        ("decoder.ref_point_head", "decoder.reference_points_head"),
    )),
    ("", "model.", (("input_proj", "input_proj_vision"), ("bert", "text_backbone"), ("feat_map", "text_projection"))),
)  # fmt: skip
_NAMES = [(old + part, new + other) for old, new, parts in _MODULES for part, other in parts]


def load_grounding_dino(file: str | Path, dtype: torch.dtype = torch.float32) -> GroundingDinoForObjectDetection:
    """A GroundingDINO on the CPU; which Swin is its backbone follows from the tensors' shapes."""
    tensors = read_tensors(file, ROOTS)
    if looks_like(tensors) != KIND:
        wanted = f"{KIND} of its authors (groundingdino_swint_ogc or groundingdino_swinb_cogcoor)"
        raise wrong_file(file, tensors, wanted)
    return from_tensors(GroundingDinoForObjectDetection, config_of, convert, tensors, file, KIND, dtype)


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of transformers' published folders; queries, keys and values are split."""
    used = {name: tensor for name, tensor in tensors.items() if not any(re.match(unused, name) for unused in UNUSED)}
    return split_qkv({rename(name, _NAMES): tensor for name, tensor in used.items()}, ("query", "key", "value"))


def config_of(tensors: Mapping[str, Tensor]) -> GroundingDinoConfig:
    """The model's sizes, read from the tensors' shapes."""
    shape = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    stages = [f"backbone.0.layers.{i}.blocks." for i in range(count(tensors, "backbone.0.layers."))]
    tables = [shape[f"{stage}0.attn.relative_position_bias_table"] for stage in stages]
    words, text_width = shape["bert.embeddings.word_embeddings.weight"]
    levels, width = shape["transformer.level_embed"]
    encoder, decoder = "transformer.encoder.layers.", "transformer.decoder.layers."
    return GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=shape["backbone.0.patch_embed.proj.weight"][0],
            depths=[count(tensors, stage) for stage in stages],
            num_heads=[heads for _, heads in tables],
            window_size=window_of(tables[0][0]),
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(
            vocab_size=words,
            hidden_size=text_width,
            num_hidden_layers=count(tensors, "bert.encoder.layer."),
            num_attention_heads=text_width // BERT_HEAD,
            intermediate_size=shape["bert.encoder.layer.0.intermediate.dense.weight"][0],
            max_position_embeddings=shape["bert.embeddings.position_embeddings.weight"][0],
        ),
        d_model=width,
        num_feature_levels=levels,
        num_queries=shape["transformer.tgt_embed.weight"][0],
        encoder_layers=count(tensors, encoder),
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=shape[f"{encoder}0.linear1.weight"][0],
        encoder_n_points=shape[f"{encoder}0.self_attn.attention_weights.weight"][0] // (HEADS * levels),
        decoder_layers=count(tensors, decoder),
        decoder_attention_heads=HEADS,
        decoder_ffn_dim=shape[f"{decoder}0.linear1.weight"][0],
        decoder_n_points=shape[f"{decoder}0.cross_attn.attention_weights.weight"][0] // (HEADS * levels),
    )
