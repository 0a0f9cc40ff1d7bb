"""A run that is asked to stop (Ctrl-C, a scheduler's SIGTERM, a closed terminal) ends in order."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
ECHO = 0.5
"""Seconds in which more signals are the same request: a scheduler and a launcher each send one."""


@contextmanager
def asked_by_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` at the first signal; what a later one does is what it did before. Afterwards all is as before.

    Outside of the main thread, where Python allows no handlers, and for signals that are ignored (`nohup`) nothing
    changes.
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
