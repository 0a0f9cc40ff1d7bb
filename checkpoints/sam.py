"""SAM's original files (`sam_vit_{b,l,h}*.pth` of segment-anything) as transformers' `SamModel`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import SamConfig, SamModel

from .files import read_tensors
from .filling import from_tensors
from .kinds import looks_like, wrong_file
from .names import count, rename

KIND = "a SAM segmenter"

UNUSED = ("pixel_mean", "pixel_std")  # constants in some files; the image processor has them
ROOTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.", *UNUSED)  # what the names of its tensors begin with
_NAMES = (  # only those that differ
    ("image_encoder.patch_embed.proj", "vision_encoder.patch_embed.projection"),
    ("image_encoder.pos_embed", "vision_encoder.pos_embed"),
    ("image_encoder.neck.0", "vision_encoder.neck.conv1"),
    ("image_encoder.neck.1", "vision_encoder.neck.layer_norm1"),
    ("image_encoder.neck.2", "vision_encoder.neck.conv2"),
    ("image_encoder.neck.3", "vision_encoder.neck.layer_norm2"),
    (r"image_encoder.blocks.(\d+).norm(\d)", r"vision_encoder.layers.\1.layer_norm\2"),
    (r"image_encoder.blocks.(\d+).(attn|mlp)", r"vision_encoder.layers.\1.\2"),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
    (r"prompt_encoder.point_embeddings.(\d)", r"prompt_encoder.point_embed.\1"),
    ("prompt_encoder.mask_downscaling.0", "prompt_encoder.mask_embed.conv1"),
    ("prompt_encoder.mask_downscaling.1", "prompt_encoder.mask_embed.layer_norm1"),
    ("prompt_encoder.mask_downscaling.3", "prompt_encoder.mask_embed.conv2"),
    ("prompt_encoder.mask_downscaling.4", "prompt_encoder.mask_embed.layer_norm2"),
    ("prompt_encoder.mask_downscaling.6", "prompt_encoder.mask_embed.conv3"),
    (r"mask_decoder.transformer.layers.(\d).norm(\d)", r"mask_decoder.transformer.layers.\1.layer_norm\2"),
    ("mask_decoder.transformer.norm_final_attn", "mask_decoder.transformer.layer_norm_final_attn"),
    ("mask_decoder.output_upscaling.0", "mask_decoder.upscale_conv1"),
    ("mask_decoder.output_upscaling.1", "mask_decoder.upscale_layer_norm"),
    ("mask_decoder.output_upscaling.3", "mask_decoder.upscale_conv2"),
    (r"mask_decoder.(output_hypernetworks_mlps.\d|iou_prediction_head).layers.0", r"mask_decoder.\1.proj_in"),
    (r"mask_decoder.(output_hypernetworks_mlps.\d|iou_prediction_head).layers.1", r"mask_decoder.\1.layers.0"),
    (r"mask_decoder.(output_hypernetworks_mlps.\d|iou_prediction_head).layers.2", r"mask_decoder.\1.proj_out"),
)


def load_sam(file: str | Path, dtype: torch.dtype = torch.float32) -> SamModel:
    """A SAM on the CPU; whether it is B, L or H follows from the tensors' shapes."""
    tensors = read_tensors(file, ROOTS)
    if looks_like(tensors) != KIND:
        raise wrong_file(file, tensors, f"{KIND} of segment-anything (sam_vit_b, sam_vit_l or sam_vit_h)")
    return from_tensors(SamModel, config_of, convert, tensors, file, KIND, dtype)


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of transformers' published folders."""
    return {rename(name, _NAMES): tensor for name, tensor in tensors.items() if name not in UNUSED}


def config_of(tensors: Mapping[str, Tensor]) -> SamConfig:
    """The model's sizes, read from the tensors' shapes."""
    shape = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _, grid, _, width = shape["image_encoder.pos_embed"]
    patch = shape["image_encoder.patch_embed.proj.weight"][-1]
    layers = count(tensors, "image_encoder.blocks.")
    reach, head_width = zip(*(shape[f"image_encoder.blocks.{i}.attn.rel_pos_h"] for i in range(layers)), strict=True)
    whole = [i for i in range(layers) if reach[i] == 2 * grid - 1]  # layers with global attention
    window = next(((reach[i] + 1) // 2 for i in range(layers) if i not in whole), 0)
    prompt = shape["prompt_encoder.no_mask_embed.weight"][1]
    head = "mask_decoder.iou_prediction_head.layers."
    inner = shape["mask_decoder.transformer.final_attn_token_to_image.q_proj.weight"][0]
    return SamConfig(
        vision_config={
            "hidden_size": width,
            "output_channels": shape["image_encoder.neck.0.weight"][0],
            "num_hidden_layers": layers,
            "num_attention_heads": width // head_width[0],
            "image_size": grid * patch,
            "patch_size": patch,
            "mlp_dim": shape["image_encoder.blocks.0.mlp.lin1.weight"][0],
            "num_pos_feats": prompt // 2,
            "window_size": window,
            "global_attn_indexes": whole,
        },
        prompt_encoder_config={
            "hidden_size": prompt,
            "image_size": grid * patch,
            "patch_size": patch,
            "mask_input_channels": shape["prompt_encoder.mask_downscaling.3.weight"][0],
        },
        mask_decoder_config={
            "hidden_size": prompt,
            "mlp_dim": shape["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
            "num_hidden_layers": count(tensors, "mask_decoder.transformer.layers."),
            "attention_downsample_rate": prompt // inner,
            "num_multimask_outputs": shape["mask_decoder.mask_tokens.weight"][0] - 1,
            "iou_head_depth": count(tensors, head),
            "iou_head_hidden_dim": shape[f"{head}0.weight"][0],
            "layer_norm_eps": 1e-5,  # transformers' default is 1e-6; the original keeps torch's
        },
    )
