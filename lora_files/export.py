"""Write a trained UNet to a file that ComfyUI reads: its LoRA for LoraLoader, or all of it for UNETLoader.

about = run_metadata("shapes", steps=50, learning_rate=1e-5, config=settings, prompts=prompts)
save_lora(unet, models / "loras" / "shapes.safetensors", about)
save_unet(merge_lora(unet), models / "diffusion_models" / "shapes.safetensors", about, dtype=torch.float16)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..core.errors import RealignError
from ..core.files import remove_partial_files, write_whole
from .metadata import base_model
from .state_dicts import lora_state_dict, unet_ldm_state_dict

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

_HASH, _NO_HASH = "modelspec.hash_sha256", "0x" + "0" * 64


def save_lora(
    unet: UNet2DConditionModel,
    file: str | Path,
    metadata: Mapping[str, str] | None = None,
    *,
    adapter: str = "default",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the UNet's adapter as a LoRA file; an existing file is replaced once the new one is complete.

    metadata: from `run_metadata`; its keys override those written here. dtype: of the matrices; alphas are float32.
    """
    tensors = lora_state_dict(unet, adapter)
    version, architecture = base_model(unet.config)
    header = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": _common_value(len(tensor) for name, tensor in tensors.items() if ".lora_down." in name),
        "ss_network_alpha": _common_value(tensor.item() for name, tensor in tensors.items() if name.endswith(".alpha")),
        "ss_base_model_version": version,
        "ss_v2": str(version.startswith("sd_v2")),
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
    }
    _write(_cast(tensors, dtype), Path(file), {**header, **(metadata or {})})


def save_unet(
    unet: UNet2DConditionModel,
    file: str | Path,
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the whole UNet, without adapters, under LDM's names; an existing file is replaced as in `save_lora`.

    ComfyUI recognises a model by its sizes: it takes Stable Diffusion 1, 2 and XL, at any depth, with their numbers of
    heads. metadata: as in `save_lora`.
    """
    version, architecture = base_model(unet.config)
    header = {
        "ss_base_model_version": version,
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
    }
    _write(_cast(unet_ldm_state_dict(unet), dtype), Path(file), {**header, **(metadata or {})})


def rewrite(source: str | Path, file: str | Path, metadata: Mapping[str, str], *, dtype: torch.dtype) -> None:
    """Write a copy of an exported file, with the weights as `dtype` and the header updated with `metadata`."""
    try:
        with safe_open(str(source), "pt") as opened:
            header = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name).clone() for name in list(opened.keys())}  # `file` may be `source`
    except (OSError, SafetensorError) as error:
        raise RealignError(f"'{source}' cannot be read as safetensors: {error}") from error
    _write(_cast(tensors, dtype), Path(file), {**header, **metadata})


def _common_value(values: Iterable[float]) -> str:
    """The value if all are equal, else "Dynamic", which kohya's tools write if layers differ."""
    values = set(values)
    return f"{values.pop():g}" if len(values) == 1 else "Dynamic"


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights as `dtype` on the CPU; scalars keep their precision."""
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
    """Write the whole file or nothing, with its hash; remove half-written files that killed processes left."""

    def write(partial: Path) -> None:
        save_file(dict(tensors), partial, {"format": "pt", **metadata, _HASH: _NO_HASH})
        _fill_in_hash(partial)

    remove_partial_files(file.parent, file.name)
    write_whole(file, write)


def _fill_in_hash(file: Path) -> None:
    """Replace the zeros in the header by the SHA-256 of the data after it, and flush the file to the disk."""
    with file.open("r+b") as opened:
        header = opened.read(int.from_bytes(opened.read(8), "little"))
        digest = hashlib.sha256()
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
        opened.seek(8)
        opened.write(header.replace(_NO_HASH.encode(), f"0x{digest.hexdigest()}".encode(), 1))
        opened.flush()
        os.fsync(opened.fileno())
