"""Models whose memory ComfyUI manages: on the device while in use, moved off it when memory is short."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary, finalize

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ...core.precision import checked_dtype, computes_in
from .inputs import check_choice
from .interrupts import check_interrupt, run_interruptibly
from .model_folders import contents

T = TypeVar("T")
U = TypeVar("U")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
_TRIM_DELAYS = (1.0, 4.0)
"""Seconds after which the heap is trimmed: a network's tensors are freed some time after the network."""


def dtype_of(precision: str, *, auto_half: bool) -> torch.dtype:
    """The dtype for one of PRECISIONS; a RealignError if PyTorch does not compute in it on this device.

    auto_half: whether `auto` means fp16 where the device is faster with it; otherwise it means fp32.
    """
    device = comfy.model_management.get_torch_device()
    if check_choice("precision", precision, PRECISIONS) != "auto":
        return checked_dtype(precision, device)
    half = auto_half and comfy.model_management.should_use_fp16(device) and computes_in(torch.float16, device.type)
    return torch.float16 if half else torch.float32


class ManagedModel(Generic[T]):
    """A model and the `ModelPatcher`s through which ComfyUI loads and unloads its networks.

    A network has one patcher, even if several models contain it. A quantized network has none: it stays on its device.
    """

    def __init__(self, model: T, *networks: nn.Module) -> None:
        self._model, self._networks = model, networks
        self._patchers = [_patcher_of(network) for network in networks if not getattr(network, "is_quantized", False)]

    @contextmanager
    def loaded(self) -> Iterator[T]:
        """The model, on the device; an interrupt stops it between two layers."""
        comfy.model_management.load_models_gpu(self._patchers, force_full_load=True)
        modules = [module for network in self._networks for module in network.modules()]
        hooks = [module.register_forward_pre_hook(check_interrupt) for module in modules]
        try:
            yield self._model
        finally:
            for hook in hooks:
                hook.remove()
            comfy.model_management.soft_empty_cache()

    def map(self, make: Callable[[T], U]) -> ManagedModel[U]:
        """`make(model)`, with the same networks."""
        return ManagedModel(make(self._model), *self._networks)


class _Holder(nn.Module):
    """ComfyUI sets `device` on what it moves, which transformers' models do not allow."""

    device = None

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


_patchers: WeakValueDictionary[int, ModelPatcher] = WeakValueDictionary()
"""By the network's id, which is free again only after the patcher, which holds the network, is gone."""
_shared: WeakValueDictionary[Any, Any] = WeakValueDictionary()


def _patcher_of(network: nn.Module) -> ModelPatcher:
    patcher = _patchers.get(id(network))
    if patcher is None:
        finalize(network, _trim_heap).atexit = False
        patcher = _patchers[id(network)] = ModelPatcher(
            _Holder(network),
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
    return patcher


def _trim_heap() -> None:
    """Return freed memory to the system shortly from now: glibc would keep all blocks below 32 MB."""

    def trim() -> None:
        if (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
            malloc_trim(0)

    if os.name == "posix":
        for seconds in _TRIM_DELAYS:
            timer = Timer(seconds, trim)
            timer.daemon = True
            timer.start()


def load_shared(kind: type, path: Path, **options: Any) -> Any:
    """`kind.load(path, **options)`. All loaders of the same files with the same options share one copy in memory.

    An interrupt does not wait for a file that is being read.
    """
    values = [contents(value) if isinstance(value, Path) else str(value) for _, value in sorted(options.items())]
    key = (kind.__name__, contents(path), *sorted(options), *values)
    inference = torch.is_inference_mode_enabled()  # per thread

    def load() -> Any:
        with torch.inference_mode(inference):
            return kind.load(path, **options)

    model = _shared.get(key)
    if model is None:
        model = _shared[key] = run_interruptibly(load)
    return model
