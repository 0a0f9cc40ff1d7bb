"""A UNet's trained adapter, or all of its weights, as named tensors in the layouts that ComfyUI reads.

diffusers' own `save_lora_adapter` and `convert_state_dict_to_kohya` do not help: ComfyUI loads nothing of the first,
and the second writes each alpha as if it were the rank.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.errors import RealignError
from .ldm_keys import ldm_names

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def lora_state_dict(unet: UNet2DConditionModel, adapter: str = "default") -> dict[str, Tensor]:
    """The adapter in kohya's layout, at strength 1 whatever `set_adapters` says.

    For a layer [out, in]: `lora_unet_{path, _ for .}.lora_down.weight` [r, in], `.lora_up.weight` [out, r] and `.alpha`
    []; for a convolution [out, in, h, w]: [r, in, h, w] and [out, r, 1, 1]. The layer's weight becomes W + alpha / r ·
    up · down. ComfyUI takes any alphas; diffusers mixes them up when it reads a file whose attention layers have
    several (rsLoRA with a rank_pattern, or an alpha_pattern for them).
    """
    unet = _without_compile(unet)
    _check_plain_lora(unet, adapter)
    tensors = {}
    for path, layer in _lora_layers(unet, adapter):
        name = f"lora_unet_{path.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = layer.lora_A[adapter].weight.detach()
        tensors[f"{name}.lora_up.weight"] = layer.lora_B[adapter].weight.detach()
        tensors[f"{name}.alpha"] = torch.tensor(_alpha(unet, layer, adapter), dtype=torch.float32)
    return tensors


def unet_ldm_state_dict(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The UNet's weights under LDM's names, without a prefix (`input_blocks.0.0.weight` …)."""
    unet = _without_compile(unet)
    if getattr(unet, "peft_config", None):
        raise RealignError(
            "This UNet carries an adapter, which a file of the whole UNet cannot hold: use merge_lora(unet)."
        )
    weights = unet.state_dict()
    names = ldm_names(unet.config, weights)
    return {names[name]: tensor for name, tensor in weights.items()}


def merge_lora(unet: UNet2DConditionModel, adapter: str = "default") -> UNet2DConditionModel:
    """A copy of the UNet with the adapter added to its weights, at strength 1, and without any adapters."""
    _check_plain_lora(unet, adapter)
    unet = copy.deepcopy(_without_compile(unet))
    for path, layer in _lora_layers(unet, adapter):
        if layer.merged:
            raise RealignError(f"'{path}' has an adapter fused into it already: call `unet.unfuse_lora()` first.")
        weight = layer.get_base_layer().weight
        down, up = (matrix[adapter].weight.data.float().flatten(1) for matrix in (layer.lora_A, layer.lora_B))
        add_lora(weight, down, up, _alpha(unet, layer, adapter))
    unet.unload_lora()
    return unet


def add_lora(weight: nn.Parameter, down: Tensor, up: Tensor, alpha: float) -> None:
    """W + alpha / r · up · down, in place: down [r, in (· h · w)] and up [out, r] in float32, W of any precision."""
    change = alpha / len(down) * (up @ down)
    weight.data = (weight.data.float() + change.to(weight.device).reshape(weight.shape)).to(weight.dtype)


def _without_compile(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The UNet itself if `torch.compile` wraps it, which adds a part to each path."""
    return getattr(unet, "_orig_mod", unet)


def _lora_layers(unet: UNet2DConditionModel, adapter: str) -> list[tuple[str, Any]]:
    return [(path, layer) for path, layer in unet.named_modules() if adapter in getattr(layer, "lora_A", ())]


def _alpha(unet: UNet2DConditionModel, layer: Any, adapter: str) -> float:
    """The alpha for a scale of alpha / r; rank-stabilised LoRA scales by alpha / √r."""
    stabilised = unet.peft_config[adapter].use_rslora
    return float(layer.lora_alpha[adapter]) * (math.sqrt(layer.r[adapter]) if stabilised else 1.0)


def _check_plain_lora(unet: UNet2DConditionModel, adapter: str) -> None:
    """Raise a RealignError unless a LoRA file can hold all of the adapter."""
    configs = getattr(unet, "peft_config", None) or {}
    if adapter not in configs or configs[adapter].peft_type != "LORA":
        known = ", ".join(f"'{name}'" for name in configs) or "none"
        raise RealignError(f"This UNet has no LoRA '{adapter}' (its adapters: {known}): add one with `add_adapter`.")
    config = configs[adapter]
    more = [name for name in ("lora_bias", "modules_to_save") if getattr(config, name, None)]
    if config.bias != "none":
        more.append(f"bias='{config.bias}'")
    if config.init_lora_weights not in (True, False, "gaussian", "orthogonal", "eva"):  # others change W itself
        more.append(f"init_lora_weights='{config.init_lora_weights}'")
    layers = [layer for _, layer in _lora_layers(unet, adapter)]
    if config.use_dora or any(adapter in getattr(layer, "lora_variant", ()) for layer in layers):
        more.append("DoRA or another variant")
    if more:
        raise RealignError(f"A LoRA file cannot hold all of the adapter '{adapter}': train without {', '.join(more)}.")
