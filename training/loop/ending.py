"""How a run ends: the signals that ask it to stop, and the sentence about too little memory or a failing GPU."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...core.errors import first_line

_GPU_ERRORS = ("CUDA", "CUBLAS", "CUDNN", "NCCL", "HIP error")
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "ALLOC_FAILED")
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
ECHO = 0.5  # seconds within which further signals count as the same request: scheduler and launcher may each send one


@contextmanager
def handle_stop_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` at the first signal within a `with` block; a second signal has its previous effect.

    Nothing changes outside the main thread, where Python allows no handlers, and for ignored signals (`nohup`).
    """
    before: dict[int, Any] = {}
    first: list[float] = []

    def handle(number: int, frame: Any) -> None:
        now = time.monotonic()
        if not first:
            first.append(now)
            stop()
        elif now - first[0] > ECHO:
            _restore(before)
            signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        _restore(before)


def _restore(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the GPU or the computer ran out, which torch reports by several kinds of error."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


def is_device_failure(error: BaseException) -> bool:
    """Whether memory or the GPU failed, rather than the program."""
    return is_out_of_memory(error) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _GPU_ERRORS)
    )


def describe_failure(error: BaseException, activity: str) -> str | None:
    """What went wrong in `activity`, such as "step 3", and what to change; None if the error is not
    torch's, so that its traceback says more."""
    first = first_line(error).rstrip(".")
    if is_out_of_memory(error):
        return (
            f"The memory did not suffice for {activity} ({first}): halve batch_size and double "
            "gradient_accumulation, or set gradient_checkpointing or offload_captioner"
        )
    if isinstance(error, RuntimeError):
        gpu = " on the GPU" if is_device_failure(error) else ""
        return f"{activity[:1].upper()}{activity[1:]} failed{gpu} ({type(error).__name__}: {first}): start again"
    return None
