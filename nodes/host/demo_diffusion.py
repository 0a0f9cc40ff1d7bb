"""The demo Stable Diffusion as a MODEL, CLIP and VAE of ComfyUI.

ComfyUI recognizes Stable Diffusion 1.5 by its sizes and refuses smaller models, so its classes are built here with the
demo's sizes. The weights are those of the diffusers folders that the headless loop reads.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import comfy.diffusers_convert
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.supported_models_base import ClipTarget
from safetensors.torch import load_file
from torch import Tensor, nn

from ...core.errors import RealignError


def load_model(folder: Path) -> ModelPatcher:
    """The UNet in `folder` (diffusers layout, two levels or more) as a MODEL, float32."""
    config = _config(folder)
    widths, depth = config["block_out_channels"], config["layers_per_block"]
    levels = len(widths)
    unet_config = {
        "image_size": 32,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [depth] * levels,
        "transformer_depth": [1] * depth * levels,
        "transformer_depth_output": [1] * (depth + 1) * levels,
        "transformer_depth_middle": 1,
        "context_dim": config["cross_attention_dim"],
        "num_heads": config["attention_head_dim"],  # diffusers calls the number of heads so
        "num_head_channels": -1,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "legacy": False,
    }
    architecture = comfy.supported_models.SD15(unet_config)
    architecture.unet_config.update(unet_config)  # SD15 sets eight heads
    architecture.set_inference_dtype(torch.float32, None)
    model = architecture.get_model({}, "")
    names = comfy.utils.unet_to_diffusers(unet_config)
    weights = _weights(folder / "diffusion_pytorch_model.safetensors")
    _fill(model.diffusion_model, {names[name]: tensor for name, tensor in weights.items()}, folder)
    _regroup(model.diffusion_model, config["norm_num_groups"])
    return ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def load_clip(folder: Path, tokenizer: Path) -> comfy.sd.CLIP:
    """The text encoder in `folder` and the tokenizer in `tokenizer` as a CLIP, float32."""
    config = _config(folder)
    start, end = config["bos_token_id"], config["eos_token_id"]

    class TextEncoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict | None = None) -> None:
            super().__init__(
                device=device,
                dtype=dtype,
                model_options=model_options or {},
                textmodel_json_config=config,
                return_projected_pooled=False,
                special_tokens={"start": start, "end": end, "pad": end},
            )
            words = self.operations.Embedding(config["vocab_size"], config["hidden_size"], dtype=dtype, device=device)
            self.transformer.set_input_embeddings(words)

    encoder = partial(comfy.sd1_clip.SD1ClipModel, clip_model=TextEncoder)
    words = partial(comfy.sd1_clip.SDTokenizer, tokenizer_path=str(tokenizer), embedding_size=config["hidden_size"])
    tokenizers = partial(comfy.sd1_clip.SD1Tokenizer, tokenizer=words)
    clip = comfy.sd.CLIP(
        ClipTarget(tokenizers, encoder), model_options={"dtype": torch.float32, "initial_device": torch.device("cpu")}
    )
    transformer = clip.cond_stage_model.clip_l.transformer
    weights = _weights(folder / "model.safetensors")
    weights["text_projection.weight"] = torch.eye(config["hidden_size"])  # Stable Diffusion 1 has no projection
    _fill(transformer, weights, folder)
    return clip


def load_vae(folder: Path) -> comfy.sd.VAE:
    """The autoencoder in `folder` as a VAE, float32. Its latents are 4 times smaller than the image, not 8."""
    config = _config(folder)
    widths = config["block_out_channels"]
    factor = 2 ** (len(widths) - 1)
    shape = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": config["sample_size"],
        "in_channels": 3,
        "out_ch": 3,
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    weights = comfy.diffusers_convert.convert_vae_state_dict(_weights(folder / "diffusion_pytorch_model.safetensors"))
    # ComfyUI numbers the decoder's levels as if there were four.
    weights = {
        re.sub(r"(?<=decoder\.up\.)\d", lambda level: str(int(level[0]) - 4 + len(widths)), name): tensor
        for name, tensor in weights.items()
    }
    vae = comfy.sd.VAE(
        sd=weights, config={"params": {"ddconfig": shape, "embed_dim": config["latent_channels"]}}, dtype=torch.float32
    )
    _regroup(vae.first_stage_model, config["norm_num_groups"])
    vae.downscale_ratio = vae.upscale_ratio = factor
    return vae


def _config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RealignError(
            f"The demo models in '{folder}' cannot be read ({error}): install the pack again, with its demo folder."
        ) from error


def _weights(file: Path) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in load_file(file).items()}


def _fill(module: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Load the weights. None may be missing: ComfyUI's layers are not initialized."""
    missing, unused = module.load_state_dict(weights, strict=False)
    if missing or unused:
        raise RealignError(
            f"This ComfyUI builds another network than the demo weights in '{folder}' are for "
            f"({(missing + unused)[0]}): please report your ComfyUI version."
        )


def _regroup(network: nn.Module, groups: int) -> None:
    """Set the groups of all group norms: Stable Diffusion's 32 would be one channel each in the narrow demo network."""
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = groups
