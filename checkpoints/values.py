"""Checks of a file's tensors: plain numbers that the file really holds, none of them infinite or undefined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import RealignError

MAX_TENSORS = 20_000  # tensors in a single file; the largest supported models have some two thousand
_SCALES = ("scale_weight", "weight_scale")  # beside an 8-bit `x.weight`, the names after `x.` of its scale factor
_NO_WEIGHTS = ("scaled_fp8", "scale_input", "input_scale", "comfy_quant")  # other entries beside 8-bit weights, dropped


def plain_tensors(tensors: Mapping[str, Tensor], file: str | Path) -> dict[str, Tensor]:
    """The tensors, with float8 ones as float32 times their scales; the scales are dropped."""
    check_count(len(tensors), file)
    for name, tensor in tensors.items():
        if (kind := _unusual(tensor)) is not None:
            raise RealignError(f"'{name}' in '{file}' is {kind}: get the weights in fp32, fp16 or bf16.")
    return _from_float8(tensors, file) if any(map(_is_float8, tensors.values())) else dict(tensors)


def check_count(number: int, file: str | Path) -> None:
    """Raise a RealignError if a file holds more than `MAX_TENSORS` tensors."""
    if number > MAX_TENSORS:
        raise RealignError(
            f"'{file}' holds {number:,} tensors, and no model that is read from one file has more than "
            f"{MAX_TENSORS:,}: choose a file of weights."
        )


def check_dtypes(tensors: Mapping[str, Tensor], file: str | Path) -> None:
    """Raise a RealignError unless all weights are floating point; indices, known by their names, need not be."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and not name.endswith(("_index", "_ids")):
            raise RealignError(
                f"'{name}' in '{file}' holds {str(tensor.dtype).removeprefix('torch.')} where floating point numbers "
                "are wanted: get the weights in fp32, fp16 or bf16."
            )


def _is_float8(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1


def _unusual(tensor: Tensor) -> str | None:
    """In what way a tensor is more than an array of numbers; None for a plain one."""
    if tensor.is_quantized or tensor.dtype == getattr(torch, "float4_e2m1fn_x2", None):
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
        if _is_float8(tensor):
            tensor = tensor.float()
            scales = [tensors[f"{start}.{scale}"] for scale in _SCALES if f"{start}.{scale}" in tensors]
            if last == "weight" and scales:
                tensor = _scale(tensor, scales[0], name, file)
        out[name] = tensor
    return out


def _scale(tensor: Tensor, scale: Tensor, name: str, file: str | Path) -> Tensor:
    """The tensor times its scale: one number, or one per row."""
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
    """Raise a RealignError if a tensor in the file or folder `place` is NaN or infinite. among: for the message."""
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
        values = values.detach().float() if _is_float8(values) else values.detach()
        with suppress(RuntimeError):  # older torch has no aminmax in half precision on a CPU
            values = torch.stack(values.aminmax())
        if not values.isfinite().all():
            return name
    return None
