"""A trained UNet as files that ComfyUI reads: its LoRA for LoraLoader, all of it for UNETLoader.

    about = run_metadata("shapes", steps=50, learning_rate=1e-5, config=settings, prompts=prompts)
    save_lora(unet, models / "loras" / "shapes.safetensors", about)
    save_unet(merged(unet), models / "diffusion_models" / "shapes.safetensors", about, dtype=torch.float16)

diffusers' own `save_lora_adapter` and `convert_state_dict_to_kohya` are no way there: ComfyUI loads nothing of the
first, and the second writes each alpha as if it were the rank.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..core.errors import RealignError
from ..core.files import sweep, write_whole
from ..core.fingerprint import fingerprint_of_texts
from .ldm_keys import ldm_names

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from PIL import Image

THUMBNAIL_SIDE = 256
"""The largest side of a thumbnail in pixels, as the Model Spec recommends."""
THUMBNAIL_BYTES = 32 * 1024
"""The longest thumbnail, as written: a header is read whenever a program lists its models."""
_HASH, _NO_HASH = "modelspec.hash_sha256", "0x" + "0" * 64


def save_lora(
    unet: UNet2DConditionModel,
    file: str | Path,
    metadata: Mapping[str, str] | None = None,
    *,
    adapter: str = "default",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the UNet's adapter as a LoRA file; a file of that name is replaced when the new one is complete.

    metadata: of `run_metadata`; it goes before what is written of the UNet itself. dtype: of the matrices; an alpha is
    always float32.

    Raises:
        RealignError: there is no such adapter, a kohya file cannot hold it, its values do not fit `dtype`, or the file
            cannot be written.
    """
    tensors = lora_state_dict(unet, adapter)
    version, architecture = base_model(unet.config)
    own = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": _same(len(tensor) for name, tensor in tensors.items() if ".lora_down." in name),
        "ss_network_alpha": _same(tensor.item() for name, tensor in tensors.items() if name.endswith(".alpha")),
        "ss_base_model_version": version,
        "ss_v2": str(version.startswith("sd_v2")),
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
    }
    _write(_cast(tensors, dtype), Path(file), {**own, **(metadata or {})})


def save_unet(
    unet: UNet2DConditionModel,
    file: str | Path,
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the whole UNet, without adapters, under LDM's names; a file of that name is replaced when it is complete.

    ComfyUI knows a model by its sizes: it takes those of Stable Diffusion 1, 2 and XL, at any depth, and the number of
    heads that these have. metadata: as for `save_lora`.

    Raises:
        RealignError: as `unet_ldm_state_dict`; the values do not fit `dtype`, or the file cannot be written.
    """
    version, architecture = base_model(unet.config)
    own = {
        "ss_base_model_version": version,
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
    }
    _write(_cast(unet_ldm_state_dict(unet), dtype), Path(file), {**own, **(metadata or {})})


def rewrite(source: str | Path, file: str | Path, metadata: Mapping[str, str], *, dtype: torch.dtype) -> None:
    """What was written here, once more: the weights as `dtype`, the header with what `metadata` says otherwise.

    Raises:
        RealignError: the values do not fit `dtype`, or a file cannot be read or written.
    """
    try:
        with safe_open(str(source), "pt") as opened:
            told = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name).clone() for name in list(opened.keys())}  # `file` may be `source`
    except (OSError, SafetensorError) as error:
        raise RealignError(f"'{source}' cannot be read as safetensors: {error}") from error
    _write(_cast(tensors, dtype), Path(file), {**told, **metadata})


def lora_state_dict(unet: UNet2DConditionModel, adapter: str = "default") -> dict[str, Tensor]:
    """The adapter in kohya's layout, as trained: at strength 1, whatever `set_adapters` says.

    For a layer [out, in] it is `lora_unet_{path, _ for .}.lora_down.weight` [r, in], `.lora_up.weight` [out, r] and
    `.alpha` []; for a convolution [out, in, h, w] it is [r, in, h, w] and [out, r, 1, 1]. The layer's weight becomes
    W + alpha / r · up · down. ComfyUI takes any alphas; diffusers, reading the file back, mixes them up when the layers
    of attention have several (rsLoRA with a rank_pattern, or an alpha_pattern for them).

    Raises:
        RealignError: there is no such adapter, or it is more than this formula.
    """
    unet = _bare(unet)
    _refuse_what_is_not_plain(unet, adapter)
    tensors = {}
    for path, layer in _lora_layers(unet, adapter):
        name = f"lora_unet_{path.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = layer.lora_A[adapter].weight.detach()
        tensors[f"{name}.lora_up.weight"] = layer.lora_B[adapter].weight.detach()
        tensors[f"{name}.alpha"] = torch.tensor(_alpha(unet, layer, adapter), dtype=torch.float32)
    return tensors


def unet_ldm_state_dict(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The UNet's weights under LDM's names, without a prefix (`input_blocks.0.0.weight` …).

    Raises:
        RealignError: the UNet carries an adapter, or is built of other blocks than Stable Diffusion's.
    """
    unet = _bare(unet)
    if getattr(unet, "peft_config", None):
        raise RealignError(
            "This UNet carries an adapter, which a file of the whole UNet cannot hold: use merged(unet)."
        )
    weights = unet.state_dict()
    names = ldm_names(unet.config, weights)
    return {names[name]: tensor for name, tensor in weights.items()}


def merged(unet: UNet2DConditionModel, adapter: str = "default") -> UNet2DConditionModel:
    """A copy of the UNet with the adapter added to its weights, at strength 1, and without any adapters.

    Raises:
        RealignError: as `lora_state_dict`; or the adapter is fused into the UNet already.
    """
    _refuse_what_is_not_plain(unet, adapter)
    unet = copy.deepcopy(_bare(unet))
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


def run_metadata(
    title: str,
    *,
    steps: int,
    learning_rate: float,
    config: Mapping[str, Any],
    prompts: Sequence[str],
    description: str = "",
    reward_before: float | None = None,
    reward_after: float | None = None,
    resolution: int | None = None,
    prediction_type: str | None = None,
    thumbnail: Image.Image | None = None,
    date: datetime | None = None,
) -> dict[str, str]:
    """What a file's header tells of the run that made it, for people and programs that show models.

    title: also the file's name in kohya's terms. config: all settings, written as JSON; texts as they are, of a Path
    only the last part (`training/publish.py` takes paths out). prompts: of the training; only their SHA-256 is written.
    resolution: of the images, in pixels. prediction_type: of the noise schedule, as diffusers calls it.
    thumbnail: any size; made small. date: by default now.
    """
    told = {
        "ss_output_name": title,
        "ss_steps": steps,
        "ss_learning_rate": learning_rate,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.description": description or None,
        "modelspec.date": (date or datetime.now(timezone.utc)).isoformat(timespec="seconds"),
        "modelspec.resolution": resolution and f"{resolution}x{resolution}",
        "modelspec.prediction_type": {"v_prediction": "v"}.get(prediction_type, prediction_type),
        "modelspec.thumbnail": thumbnail and _thumbnail(thumbnail),
        "realigndiff.config": json.dumps(dict(config), default=_plain, sort_keys=True),
        "realigndiff.prompts_sha256": fingerprint_of_texts(prompts),
        "realigndiff.reward_before": reward_before,
        "realigndiff.reward_after": reward_after,
    }
    return {key: str(value) for key, value in told.items() if value is not None}


def base_model(config: Mapping[str, Any]) -> tuple[str, str]:
    """What the UNet with this config descends from, as kohya's trainer and as the Model Spec call it.

    It is guessed from the kind of layers, so shrunken models have the name of what they are like.
    """
    if config.get("addition_embed_type") == "text_time":
        return "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"
    if config.get("use_linear_projection"):
        large = config.get("sample_size") == 96
        return ("sd_v2_v", "stable-diffusion-v2-768-v") if large else ("sd_v2", "stable-diffusion-v2-512")
    return "sd_v1", "stable-diffusion-v1"


def _bare(unet: nn.Module) -> nn.Module:
    """The UNet itself, of one wrapped by `torch.compile`, where each path has one part more."""
    return getattr(unet, "_orig_mod", unet)


def _lora_layers(unet: nn.Module, adapter: str) -> Iterator[tuple[str, nn.Module]]:
    for path, module in unet.named_modules():
        if adapter in getattr(module, "lora_A", ()):
            yield path, module


def _alpha(unet: UNet2DConditionModel, layer: nn.Module, adapter: str) -> float:
    """The layer's alpha, where its scale is alpha / r; rank-stabilised LoRA's scale is alpha / √r."""
    stabilised = unet.peft_config[adapter].use_rslora
    return float(layer.lora_alpha[adapter]) * (math.sqrt(layer.r[adapter]) if stabilised else 1.0)


def _refuse_what_is_not_plain(unet: UNet2DConditionModel, adapter: str) -> None:
    """Raise for an adapter of which a LoRA file would hold only a part."""
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


def _same(values: Iterator[float]) -> str:
    """The one value that all have, or "Dynamic", as kohya's tools write for layers of several ranks."""
    values = set(values)
    return f"{values.pop():g}" if len(values) == 1 else "Dynamic"


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights as `dtype` on the CPU; numbers stay as they are."""
    cast = {}
    for name, tensor in tensors.items():
        cast[name] = tensor.to("cpu", dtype).contiguous() if tensor.dim() else tensor
        if not cast[name].isfinite().all():
            raise RealignError(
                f"'{name}' is not finite as {str(dtype).removeprefix('torch.')}: write float32; if it is not finite "
                "there either, train with a lower learning rate."
            )
    return cast


def _write(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    """Write the whole file or nothing, with its hash; what a killed process left half-written beside it goes."""

    def write(partial: Path) -> None:
        save_file(dict(tensors), partial, {"format": "pt", **metadata, _HASH: _NO_HASH})
        _fill_in_hash(partial)

    sweep(file.parent, file.name)
    write_whole(file, write)


def _fill_in_hash(file: Path) -> None:
    """Put the SHA-256 of what follows the header into the header, in place of zeros, and bring all to the disk."""
    with file.open("r+b") as opened:
        header = opened.read(int.from_bytes(opened.read(8), "little"))
        digest = hashlib.sha256()
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
        opened.seek(8)
        opened.write(header.replace(_NO_HASH.encode(), f"0x{digest.hexdigest()}".encode(), 1))
        opened.flush()
        os.fsync(opened.fileno())


def _thumbnail(image: Image.Image) -> str:
    """The image as a `data:` address of at most THUMBNAIL_BYTES."""
    small = image.convert("RGB")
    side = THUMBNAIL_SIDE
    while True:
        small.thumbnail((side, side))
        jpeg = io.BytesIO()
        small.save(jpeg, "JPEG", quality=85)
        address = f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"
        if len(address) <= THUMBNAIL_BYTES:
            return address
        side = side * 3 // 4


def _plain(value: Any) -> Any:
    """What JSON does not know, as something that it does."""
    return value.name if isinstance(value, PurePath) else str(value)
