"""Models that rest in the computer's memory and come to the GPU for their turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def moved_to(device: torch.device, modules: Sequence[nn.Module]) -> Iterator[None]:
    """The frozen modules on `device` for a while; where they are there already, nothing happens.

    Afterwards they have the very memory that they had before: nothing is copied back, as nothing changed. A backward
    pass through them must end inside.
    """
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    resting = [tensor.data for tensor in tensors]
    try:
        for tensor, data in zip(tensors, resting, strict=True):
            tensor.data = data.to(device)
        yield
    finally:
        for tensor, data in zip(tensors, resting, strict=True):
            tensor.data = data
