"""Perception models in ComfyUI's care: on the device while they work, off it when memory is short, stopped at once."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from queue import Empty, SimpleQueue
from threading import Thread, Timer
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary, finalize

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ...core.precision import checked_dtype, computes_in
from .sockets import chosen

T = TypeVar("T")
U = TypeVar("U")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
BATCH = 8
"""Images at once for models that gain by it."""
_FINE = 100
"""Steps of a progress bar for an image."""
_GONE_SECONDS = (1.0, 4.0)


def dtype_of(precision: str, *, halves: bool) -> torch.dtype:
    """The dtype a PRECISIONS value means here. `auto`: half where the device is faster so and the model bears it.

    Raises:
        RealignError: there is no such precision, or PyTorch does not compute in it on this device.
    """
    device = comfy.model_management.get_torch_device()
    if chosen("precision", precision, PRECISIONS) != "auto":
        return checked_dtype(precision, device)
    half = halves and comfy.model_management.should_use_fp16(device) and computes_in(torch.float16, device.type)
    return torch.float16 if half else torch.float32


class _Holder(nn.Module):
    """ComfyUI writes `device` on what it moves; transformers' models do not let it."""

    device = None

    def __init__(self, networks: tuple[nn.Module, ...]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)


class Hosted(Generic[T]):
    """A perception model and the `ModelPatcher`s by which ComfyUI loads and unloads its networks.

    A network has one patcher, however many models it is a part of. One in 8 bits has none: it stays on its device.
    """

    def __init__(self, eyes: T, *networks: nn.Module) -> None:
        self._eyes, self._networks = eyes, networks
        self._patchers = [_patcher_of(network) for network in networks if not getattr(network, "is_quantized", False)]

    @contextmanager
    def at_work(self) -> Iterator[T]:
        """The model, on the device; an interrupt stops it between two of its layers."""
        comfy.model_management.load_models_gpu(self._patchers, force_full_load=True)
        modules = [module for network in self._networks for module in network.modules()]
        hooks = [module.register_forward_pre_hook(_stop_if_asked) for module in modules]
        try:
            yield self._eyes
        finally:
            for hook in hooks:
                hook.remove()
            comfy.model_management.soft_empty_cache()

    def turned_into(self, make: Callable[[T], U]) -> Hosted[U]:
        """What `make` makes of the model, with the same networks."""
        return Hosted(make(self._eyes), *self._networks)


_patchers: WeakValueDictionary[int, ModelPatcher] = WeakValueDictionary()
_shared: WeakValueDictionary[Any, Any] = WeakValueDictionary()


def _patcher_of(network: nn.Module) -> ModelPatcher:
    """The network's patcher; it holds the network, so no other can get its id while the patcher lives."""
    patcher = _patchers.get(id(network))
    if patcher is None:
        finalize(network, _give_back).atexit = False
        patcher = _patchers[id(network)] = ModelPatcher(
            _Holder((network,)),
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
    return patcher


def _give_back() -> None:
    """Return the memory of a network that is going to the system, once its tensors are gone too: glibc would keep all
    that came in pieces of less than 32 MB. Other systems' allocators do so by themselves."""

    def trim() -> None:
        if (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
            malloc_trim(0)

    if os.name == "posix":
        for seconds in _GONE_SECONDS:
            timer = Timer(seconds, trim)
            timer.daemon = True
            timer.start()


def shared(key: Any, load: Callable[[], T]) -> T:
    """What `load` gave for this key, as long as anyone holds it: two loaders of one file share one copy of it."""
    found = _shared.get(key)
    if found is None:
        found = _shared[key] = load()
    return found


def _stop_if_asked(*_: Any) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def stopping(items: Iterable[T]) -> Iterator[T]:
    """The items, interrupted between any two."""
    for item in items:
        _stop_if_asked()
        yield item


def each(count: int, work: Callable[[int], T]) -> list[T]:
    """`work(0)`, `work(1)`… with a progress bar on the node, interrupted between any two."""
    bar = comfy.utils.ProgressBar(count)
    done = []
    for i in range(count):
        _stop_if_asked()
        done.append(work(i))
        bar.update_absolute(i + 1, count)
    return done


def in_batches(
    count: int, work: Callable[[slice, Callable[[float], None]], list[T]], *, turn: int = 0, turns: int = 1
) -> list[T]:
    """`work` on runs of up to BATCH of `count` images, with a progress bar on the node; each run is halved as long as
    the device has no memory for it.

    work: takes a run and a function to call with the fraction of it that is done; returns one result an image.
    turn, turns: for a node that goes through its images several times, which time this is, from 0, and of how many.
    """
    total = turns * count * _FINE
    bar = comfy.utils.ProgressBar(total)
    done: list[T] = []
    size = BATCH

    def tell(fraction: float) -> None:
        now = turn * count + len(done) + fraction * min(size, count - len(done))
        bar.update_absolute(int(now * _FINE), total)

    while len(done) < count:
        _stop_if_asked()
        try:
            done += work(slice(len(done), min(len(done) + size, count)), tell)
        except comfy.model_management.OOM_EXCEPTION:
            if size == 1:
                raise
            size //= 2
            comfy.model_management.soft_empty_cache()
        tell(0.0)
    return done


def waiting(work: Callable[[], T]) -> T:
    """The result of `work`, which waits for something outside, such as a server; an interrupt does not wait for it.

    It runs in a thread of its own, so it must not touch ComfyUI's models. ComfyUI ends without waiting for it too.
    """
    done: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
    context = copy_context()  # whose prompt runs
    Thread(target=lambda: done.put(context.run(_outcome, work)), daemon=True).start()
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
