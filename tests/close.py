"""Tensors compared as rounding allows: by the scale of the whole, not element by element.

Another processor, another number of threads or another library of kernels sums in another order. An element near zero
then differs by as much as a large one, so an error is measured against the largest value; and what goes through many
layers or steps of sampling carries a larger one than a single call.
"""

import numpy as np
import torch
from torch import Tensor

CALL = 1e-4
"""Through one layer in fp32."""
NETWORK = 1e-3
"""Through a network."""
SAMPLING = 5e-3
"""Through a whole sampling, whose steps and guidance multiply the error of each."""


def apart(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """The largest difference of two tensors of one shape, relative to the largest value of `b`; infinite with a NaN."""
    a, b = (torch.as_tensor(x).detach().double() for x in (a, b))
    assert a.shape == b.shape, f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
    if not a.numel() or torch.equal(a, b):
        return 0.0
    scale = b.abs().max()
    return torch.nan_to_num((a - b).abs().max() / scale, nan=torch.inf).item()


def assert_close(a: Tensor | np.ndarray, b: Tensor | np.ndarray, within: float = CALL) -> None:
    """Fails where `a` is further from `b` than `within` of the largest value of `b`."""
    distance = apart(a, b)
    assert distance <= within, f"{distance:.2e} of the largest value apart, and {within:.0e} are allowed"
