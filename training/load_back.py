"""A file that a training run wrote, put back into a UNet: what ComfyUI's loaders do, for evaluation without ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..core.errors import RealignError
from .export import add_lora
from .ldm_keys import ldm_names

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def load_back(unet: UNet2DConditionModel, file: str | Path) -> None:
    """Put a LoRA (kohya's keys, at strength 1) or a whole UNet (LDM's names) into `unet`, in its precision.

    Raises:
        RealignError: the file cannot be read, or is of another model.
    """
    try:
        tensors = load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise RealignError(
            f"'{file}' cannot be read as safetensors ({error}): give a file that a run wrote."
        ) from error
    if any(name.endswith(".lora_down.weight") for name in tensors):
        _merge_lora(unet, tensors, file)
    else:
        _replace_weights(unet, tensors, file)


def _merge_lora(unet: UNet2DConditionModel, tensors: dict[str, Tensor], file: str | Path) -> None:
    """Add the matrices of each layer that the file names."""
    layers = {f"lora_unet_{path.replace('.', '_')}": layer for path, layer in unet.named_modules()}
    for name in (key.removesuffix(".lora_down.weight") for key in tensors if key.endswith(".lora_down.weight")):
        down, up = (tensors[f"{name}.lora_{part}.weight"].float().flatten(1) for part in ("down", "up"))
        weight = getattr(layers.get(name), "weight", None)
        if weight is None or weight.numel() != len(up) * down.shape[1]:
            raise RealignError(f"'{file}' is a LoRA of another model: nothing here fits its layer {name}.")
        add_lora(weight, down, up, tensors[f"{name}.alpha"].item())


def _replace_weights(unet: UNet2DConditionModel, tensors: dict[str, Tensor], file: str | Path) -> None:
    own = unet.state_dict()
    names = ldm_names(unet.config, own)
    if set(names.values()) != set(tensors) or any(own[k].shape != tensors[name].shape for k, name in names.items()):
        raise RealignError(f"'{file}' holds no UNet of this model's layout: give a file that a run on it wrote.")
    unet.load_state_dict({key: tensors[name] for key, name in names.items()})
