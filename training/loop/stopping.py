"""Signals that ask a run to stop: Ctrl-C, a scheduler's SIGTERM, a closed terminal."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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
