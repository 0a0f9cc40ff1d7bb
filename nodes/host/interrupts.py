"""Long work with a progress bar on the node, which the user can interrupt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import comfy.model_management
import comfy.utils

T = TypeVar("T")
BATCH = 8
"""Images per call of a model that is faster on several."""
_STEPS_PER_IMAGE = 100  # of the progress bar


def check_interrupt(*_: Any) -> None:
    """Raise ComfyUI's exception if the user has interrupted the prompt. Arguments are ignored, so it can be a hook."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def interruptible(items: Iterable[T]) -> Iterator[T]:
    """The items; an interrupt stops between two."""
    for item in items:
        check_interrupt()
        yield item


def map_with_progress(count: int, work: Callable[[int], T]) -> list[T]:
    """`[work(0), work(1), …]` with a progress bar; an interrupt stops between two."""
    bar = comfy.utils.ProgressBar(count)
    results = []
    for i in interruptible(range(count)):
        results.append(work(i))
        bar.update_absolute(i + 1, count)
    return results


def in_batches(
    count: int, work: Callable[[slice, Callable[[float], None]], list[T]], *, turn: int = 0, turns: int = 1
) -> list[T]:
    """The results of `work` for `count` images, at most BATCH per call, with a progress bar; fewer per call when the
    device runs out of memory.

    work: takes a slice of the images and a function to report which fraction of it is done; returns a result per image.
    turn, turns: the number of this pass, counted from 0, and of all passes that share the progress bar.
    """
    total = turns * count * _STEPS_PER_IMAGE
    bar = comfy.utils.ProgressBar(total)
    results: list[T] = []
    size = BATCH

    def report(fraction: float) -> None:
        finished = turn * count + len(results) + fraction * min(size, count - len(results))
        bar.update_absolute(int(finished * _STEPS_PER_IMAGE), total)

    while len(results) < count:
        check_interrupt()
        try:
            results += work(slice(len(results), min(len(results) + size, count)), report)
        except comfy.model_management.OOM_EXCEPTION:
            if size == 1:
                raise
            size //= 2
            comfy.model_management.soft_empty_cache()
        report(0.0)
    return results


def run_interruptibly(work: Callable[[], T]) -> T:
    """The result of `work`, which waits for something such as a server or a file. An interrupt does not wait for it.

    It runs in a daemon thread, so it must not touch ComfyUI's models; ComfyUI can exit while it still runs.
    """
    outcome: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            outcome.put((work(), None))
        except BaseException as error:
            outcome.put((None, error))

    Thread(target=copy_context().run, args=(run,), daemon=True).start()  # ComfyUI keeps the running prompt in it
    while True:
        check_interrupt()
        try:
            result, error = outcome.get(timeout=0.05)
        except Empty:
            continue
        if error is not None:
            raise error
        return result
