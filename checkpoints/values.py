"""What the tensors of a file are: plain numbers that the file really holds, none of them infinite or undefined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import RealignError

MAX_TENSORS = 20_000
"""In a single file; the largest models that are read so have some two thousand."""
_SCALES = ("scale_weight", "weight_scale")
"""Beside `x.weight` in 8 bits, `x.scale_weight` is what to multiply it with; ComfyUI and others call it so."""
_FOUR_BITS = {getattr(torch, name) for name in ("float4_e2m1fn_x2",) if hasattr(torch, name)}
"""Two values in a byte, which torch holds but does not turn into others."""
_NO_WEIGHTS = ("scaled_fp8", "scale_input", "input_scale", "comfy_quant")
"""What else stands beside weights in 8 bits."""


def plain(tensors: Mapping[str, Tensor], file: str | Path) -> dict[str, Tensor]:
    """The tensors; those in float8 as float32, multiplied with their scales, which are left out.

    Raises:
        RealignError: there are more than `MAX_TENSORS`, or one is sparse, quantised, has no data, or is larger than
            what the file holds of it.
    """
    check_number(len(tensors), file)
    for name, tensor in tensors.items():
        if (kind := _unusual(tensor)) is not None:
            raise RealignError(f"'{name}' in '{file}' is {kind}: get the weights in fp32, fp16 or bf16.")
    if not any(is_float8(tensor) for tensor in tensors.values()):
        return dict(tensors)
    return _from_float8(tensors, file)


def check_number(tensors: int, file: str | Path) -> None:
    """Whether a file may hold so many tensors.

    Raises:
        RealignError: it is above `MAX_TENSORS`.
    """
    if tensors > MAX_TENSORS:
        raise RealignError(
            f"'{file}' holds {tensors:,} tensors, and no model that is read from one file has more than "
            f"{MAX_TENSORS:,}: choose a file of weights."
        )


def is_float8(tensor: Tensor) -> bool:
    """Whether its values have 8 bits, as floating point numbers."""
    return tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1


def _unusual(tensor: Tensor) -> str | None:
    """How a tensor is not just numbers in a row; None where it is."""
    if tensor.is_quantized or tensor.dtype in _FOUR_BITS:
        return "quantised"
    if tensor.is_nested or tensor.layout != torch.strided:
        return "sparse or nested"
    if tensor.is_meta:
        return "without data"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "larger than what the file holds of it"
    return None


def _from_float8(tensors: Mapping[str, Tensor], file: str | Path) -> dict[str, Tensor]:
    out = {}
    for name, tensor in tensors.items():
        start, _, last = name.rpartition(".")
        if last in _NO_WEIGHTS or (last in _SCALES and f"{start}.weight" in tensors):
            continue
        if is_float8(tensor):
            tensor = tensor.float()
            scales = [tensors[f"{start}.{scale}"] for scale in _SCALES if f"{start}.{scale}" in tensors]
            if last == "weight" and scales:
                tensor = _scaled(tensor, scales[0], name, file)
        out[name] = tensor
    return out


def _scaled(tensor: Tensor, scale: Tensor, name: str, file: str | Path) -> Tensor:
    """The tensor times its scale: one number, or one for each row."""
    scale = scale.float()
    if scale.numel() == 1:
        return tensor * scale.reshape(())
    if scale.numel() == len(tensor):
        return tensor * scale.reshape(-1, *[1] * (tensor.ndim - 1))
    raise RealignError(
        f"'{name}' in '{file}' is in 8 bits with {scale.numel()} scales for its {len(tensor)} rows, which is not "
        "known: get the weights in fp32, fp16 or bf16."
    )


def check_finite(tensors: Iterable[tuple[str, Tensor]], place: str | Path, among: str = "") -> None:
    """Whether all floating point numbers are finite. One pass over them, without a copy.

    place: the file or folder, for the sentence. among: more for the sentence, e.g. ` as float16`.

    Raises:
        RealignError: one is not; the first tensor of this kind is named.
    """
    if (name := not_finite(tensors)) is not None:
        raise RealignError(
            f"'{place}' holds values that are not finite (NaN or infinite{among}), first in '{name}': download the "
            "weights again, or choose others."
        )


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with a value that is not finite."""
    for name, tensor in tensors:
        if tensor.is_meta or not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        values = values.detach().float() if is_float8(values) else values.detach()
        if not _are_finite(values):
            return name
    return None


def _are_finite(values: Tensor) -> bool:
    try:
        return bool(torch.stack(values.aminmax()).isfinite().all())
    except RuntimeError:  # older torch has no such minimum of half precision on a CPU
        return bool(values.isfinite().all())
