"""Perception models in ComfyUI's care: on the device while they work, off it when memory is short, stopped at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from .sockets import chosen

T = TypeVar("T")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_of(precision: str, *, halves: bool) -> torch.dtype:
    """The dtype a PRECISIONS value means here. `auto`: half where the device is faster so and the model bears it."""
    if chosen("precision", precision, PRECISIONS) != "auto":
        return _DTYPES[precision]
    half = halves and comfy.model_management.should_use_fp16(comfy.model_management.get_torch_device())
    return torch.float16 if half else torch.float32


class _Holder(nn.Module):
    """ComfyUI writes `device` on what it moves; transformers' models do not let it."""

    device = None

    def __init__(self, networks: tuple[nn.Module, ...]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)


class Hosted(Generic[T]):
    """A perception model and the `ModelPatcher` by which ComfyUI loads and unloads its networks."""

    def __init__(self, eyes: T, *networks: nn.Module) -> None:
        self._eyes = eyes
        self._patcher = ModelPatcher(
            _Holder(networks),
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )

    @contextmanager
    def at_work(self) -> Iterator[T]:
        """The model, on the device; an interrupt stops it between two of its layers."""
        comfy.model_management.load_models_gpu([self._patcher], force_full_load=True)
        hooks = [m.register_forward_pre_hook(_stop_if_asked) for m in self._patcher.model.modules()]
        try:
            yield self._eyes
        finally:
            for hook in hooks:
                hook.remove()
            comfy.model_management.soft_empty_cache()


def _stop_if_asked(*_: Any) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def each(count: int, work: Callable[[int], T]) -> list[T]:
    """`work(0)`, `work(1)`… with a progress bar on the node, interrupted between any two."""
    bar = comfy.utils.ProgressBar(count)
    done = []
    for i in range(count):
        _stop_if_asked()
        done.append(work(i))
        bar.update_absolute(i + 1, count)
    return done


def waiting(work: Callable[[], T]) -> T:
    """The result of `work`, which waits for something outside, such as a server; an interrupt does not wait for it.

    It runs in a thread of its own, so it must not touch ComfyUI's models. ComfyUI ends without waiting for it too.
    """
    done: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
    Thread(target=lambda: done.put(_outcome(work)), daemon=True).start()
    while True:
        _stop_if_asked()
        try:
            result, error = done.get(timeout=0.05)
        except Empty:
            continue
        if error is not None:
            raise error
        return result


def _outcome(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return work(), None
    except BaseException as error:
        return None, error
