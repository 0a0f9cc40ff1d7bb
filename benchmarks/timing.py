"""Measures how long work takes on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Work = Callable[[], object]


def medians(runs: Mapping[str, Work], device: torch.device, repeats: int = 3, seconds: float = 1.0) -> dict[str, float]:
    """Milliseconds per call, the median of each run over calls in turn, so that a slow moment affects all of them.

    runs: called once before anything is timed, which compiles kernels and fills caches. repeats: the least number of
        calls. seconds: how long the turns go on at least, as short work needs more calls.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {way: [] for way in runs}
    turns, end = 0, now(device) + seconds
    while turns < repeats or now(device) < end:
        pending = {way: start(run, device) for way, run in runs.items()}  # a GPU's queue stays filled through a turn
        for way, finish in pending.items():
            times[way].append(finish())
        turns += 1
    return {way: statistics.median(values) for way, values in times.items()}


def start(run: Work, device: torch.device) -> Callable[[], float]:
    """Start the work; the returned function waits for it and returns its milliseconds.

    On CUDA it is the time between two events of the current stream: the host's counts only where the GPU waits for it.
    """
    if device.type == "cuda":
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        run()
        last.record()

        def elapsed() -> float:
            last.synchronize()
            return first.elapsed_time(last)

        return elapsed
    began = time.perf_counter()
    run()
    milliseconds = (time.perf_counter() - began) * 1e3
    return lambda: milliseconds


def now(device: torch.device) -> float:
    """The time in seconds, once the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
