"""The number formats that a user may choose for a model, and whether PyTorch can compute in them on a device."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn import functional

from .errors import RealignError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_LACKING = ("not implemented", "not supported", "unsupported")
"""The words in PyTorch's errors when it has no kernel for a number format on a device."""


def checked_dtype(precision: str, device: torch.device, setting: str = "precision") -> torch.dtype:
    """The dtype of a name in `DTYPES`.

    A RealignError names the `setting` that chose it where this PyTorch has no kernels for it on `device`, e.g. an old
    one for fp16 on a CPU.
    """
    dtype = DTYPES[precision]
    if not computes_in(dtype, device.type):
        raise RealignError(
            f"PyTorch {torch.__version__} cannot compute in {precision} on {device}: set {setting} to fp32."
        )
    return dtype


@lru_cache
def computes_in(dtype: torch.dtype, device: str) -> bool:
    """Whether PyTorch runs the layers of an image model in `dtype` on devices of a type (`cpu`, `cuda` …)."""
    if dtype == torch.float32:
        return True
    try:
        with torch.inference_mode():
            pixels = torch.ones(1, 4, 4, 4, dtype=dtype, device=device)
            pixels = functional.conv2d(pixels, pixels.new_ones(4, 4, 1, 1))
            pixels = functional.interpolate(functional.group_norm(pixels, 2), scale_factor=2.0, mode="bilinear")
            tokens = functional.layer_norm(pixels.flatten(2), (64,))[None]
            tokens = functional.scaled_dot_product_attention(tokens, tokens, tokens)
            functional.linear(functional.gelu(tokens), tokens.new_ones(8, 64), tokens.new_ones(8)).softmax(-1)
    except (RuntimeError, TypeError) as error:
        # any other error has another cause, e.g. a full device, and will come again where it can be reported
        return not any(word in str(error).lower() for word in _LACKING)
    return True
