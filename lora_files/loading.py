"""A LoRA or UNet file into a UNet: what ComfyUI's loaders do, for evaluation without ComfyUI."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..checkpoints.files import read_tensors
from ..checkpoints.values import check_finite
from ..core.errors import RealignError
from ..core.text import printable
from .ldm_keys import ldm_names
from .state_dicts import add_lora

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

logger = logging.getLogger(__name__)
ROOTS = (
    "lora_unet_", "lora_te", "unet.", "text_encoder", "base_model.model.", "diffusion_model.",
    "input_blocks.", "middle_block.", "output_blocks.", "out.", "time_embed.", "label_emb.",
    "down_blocks.", "mid_block.", "up_blocks.", "conv_in.", "conv_norm_out.", "conv_out.", "time_embedding.",
    "add_embedding.", "class_embedding.",
)  # fmt: skip
"""What the names in LoRA and UNet files begin with."""
_UNET = re.compile(r"(?:(?:model\.)?diffusion_model\.|base_model\.model\.|unet\.)+")
_TEXT = re.compile(r"lora_te\d?_|text_encoder(?:_\d)?\.")
_PART = re.compile(
    r"(?P<layer>.+?)\.(?:lora_(?P<kohya>down|up)|lora_(?P<peft>[AB])(?:\.default)?)\.weight"
    r"|(?P<older>.+?)[._]lora(?:_linear_layer)?\.(?P<old>down|up)\.weight"
)
_PARTS = {"A": "down", "B": "up"}
_OTHER_KINDS = re.compile(r"hada_|lokr_|oft_|lora_mid|dora_scale|lora_magnitude|\.diff(_b)?$|glora|\.lora_[AB]\.bias$")
"""Tensors of what is called a LoRA but has another formula."""


def load_into_unet(unet: UNet2DConditionModel, file: str | Path) -> None:
    """Add a file's LoRA (at strength 1) to the weights of `unet`, or replace them by a file's UNet; precision stays.

    A LoRA may have the names of kohya, peft or diffusers; a missing alpha is the rank. Layers of a text encoder are
    skipped, which is logged. A UNet may have the names of LDM or diffusers, alone or in a whole checkpoint.
    """
    tensors = read_tensors(file, ROOTS)
    check_finite(tensors.items(), file)
    if any(_PART.fullmatch(name) or _OTHER_KINDS.search(name) for name in tensors):
        _merge_lora(unet, tensors, file)
    else:
        _replace_weights(unet, tensors, file)


def _merge_lora(unet: UNet2DConditionModel, tensors: Mapping[str, Tensor], file: str | Path) -> None:
    """Add the matrices of each layer in the file, after all of them have been checked."""
    layers = _layers(unet)
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    skipped = []
    for name, tensor in tensors.items():
        if _TEXT.match(name):
            skipped.append(name)
        elif _OTHER_KINDS.search(name):
            raise RealignError(f"'{file}' is no plain LoRA ('{name}'): give one of two matrices for each layer.")
        elif match := _PART.fullmatch(name):
            part = match["kohya"] or match["old"] or _PARTS[match["peft"]]
            parts[_UNET.sub("", match["layer"] or match["older"], count=1)][part] = tensor
        elif name.endswith(".alpha"):
            parts[_UNET.sub("", name.removesuffix(".alpha"), count=1)]["alpha"] = tensor
        else:
            raise RealignError(
                f"'{file}' holds '{name}' beside a LoRA, which is not read: give a LoRA that a run wrote."
            )
    if skipped:
        text = f"'{file}': its {len(skipped)} tensors for a text encoder were skipped; only the UNet's are read."
        logger.warning(printable(text))
    changes = [_matrices(layers, layer, of_layer, file) for layer, of_layer in parts.items()]
    if not changes:
        raise RealignError(f"'{file}' is a LoRA for a text encoder only: give one for a UNet.")
    for change in changes:
        add_lora(*change)


def _layers(unet: UNet2DConditionModel) -> dict[str, nn.Module]:
    """The UNet's modules under all names that LoRA files have for them."""
    layers = {}
    try:
        ldm = ldm_names(unet.config, unet.state_dict())
    except RealignError:  # LDM has no names for this UNet
        ldm = {}
    ldm_paths = {path.rpartition(".")[0]: name.rpartition(".")[0] for path, name in ldm.items()}
    for path, module in unet.named_modules():
        for name in filter(None, (path, ldm_paths.get(path))):
            layers[name] = layers[f"lora_unet_{name.replace('.', '_')}"] = module
            layers[name.replace(".to_", ".processor.to_").removesuffix(".0")] = module  # diffusers before 0.22
    return layers


def _matrices(
    layers: Mapping[str, nn.Module], layer: str, parts: Mapping[str, Tensor], file: str | Path
) -> tuple[nn.Parameter, Tensor, Tensor, float]:
    """The arguments of `add_lora` for a layer: its weight, the matrices down and up, and alpha; or a RealignError."""
    weight = getattr(layers.get(layer), "weight", None)
    if weight is None:
        raise RealignError(f"'{file}' is a LoRA of another model: nothing here fits its layer {layer}.")
    if missing := [part for part in ("down", "up") if part not in parts]:
        raise RealignError(f"'{file}' is not whole: the layer {layer} has no {missing[0]} matrix; download it again.")
    down, up = (parts[part].float().flatten(1) for part in ("down", "up"))
    if up.shape[1] != len(down) or weight.numel() != len(up) * down.shape[1]:
        raise RealignError(f"'{file}' is a LoRA of another model: nothing here fits its layer {layer}.")
    alpha = parts.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise RealignError(f"'{file}' is no LoRA: the alpha of its layer {layer} is not one number; give another file.")
    return weight, down, up, float(len(down) if alpha is None else alpha)


def _replace_weights(unet: UNet2DConditionModel, tensors: Mapping[str, Tensor], file: str | Path) -> None:
    state = unet.state_dict()
    inside = {_UNET.sub("", name, count=1): tensor for name, tensor in tensors.items() if _UNET.match(name)}
    tensors = inside or tensors
    names = {name: name for name in state} if set(state) == set(tensors) else ldm_names(unet.config, state)
    if set(names.values()) != set(tensors) or any(state[k].shape != tensors[name].shape for k, name in names.items()):
        raise RealignError(f"'{file}' holds no UNet of this model's layout: give a file that a run on it wrote.")
    unet.load_state_dict({key: tensors[name] for key, name in names.items()})
