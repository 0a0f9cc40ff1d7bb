"""Models that stay in the computer's memory and move to the GPU while they are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def on_device(device: torch.device, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Hold frozen modules on `device` for the duration of a `with` block.

    Afterwards they have their previous memory again: nothing is copied back, as nothing changed. A backward pass
    through them must end inside the block.
    """
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    originals = [tensor.data for tensor in tensors]
    try:
        for tensor, data in zip(tensors, originals, strict=True):
            tensor.data = data.to(device)
        yield
    finally:
        for tensor, data in zip(tensors, originals, strict=True):
            tensor.data = data
