"""Workers that may crash or hang: each case gets its time, and a part goes on with the next one in a new process."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .results import ERROR, SKIPPED, Result

MARK = "@gpu "
STARTING = 90.0
"""Seconds in which a worker must have imported what it needs."""
Take = Callable[[Result], None]


class Ended(NamedTuple):
    """How one worker ended."""

    cases: list[str]
    """All that it knew of."""
    begun: list[str]
    running: str
    """The case that it was at, or empty."""
    why: str
    """Why it did not end by itself with status 0, or empty."""
    tail: str
    """The last lines that it printed."""


def supervise(command: Sequence[str], end: float, case_seconds: float, take: Take) -> None:
    """Run a worker's cases until `end`, by `time.monotonic`, and give each result to `take`.

    command: the worker's; ` --seconds S --done CASE …` is added. case_seconds: longer than that no case may take.
    """
    done: list[str] = []
    while True:
        ended = watch(
            [*command, "--seconds", f"{end - time.monotonic():.0f}", "--done", *done], end, case_seconds, take
        )
        done += ended.begun
        if not ended.why:
            return
        out_of_time = time.monotonic() >= end
        status, why = (SKIPPED, "no time was left: cut off") if out_of_time else (ERROR, ended.why)
        if ended.running or not ended.begun:
            take(
                Result(
                    case=ended.running or "everything", status=status, detail=f"{why}{ended.tail and ': '}{ended.tail}"
                )
            )
        if out_of_time:
            for case in [case for case in ended.cases if case not in done]:
                take(Result(case=case, status=SKIPPED, detail="no time was left"))
        if out_of_time or not ended.begun:  # a worker that began nothing would not do so if it were started again
            return


def watch(command: Sequence[str], end: float, case_seconds: float, take: Take) -> Ended:
    """One worker, killed at `end` or when a case takes too long."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    cases: list[str] = []
    begun: list[str] = []
    running, tail, why = "", deque(maxlen=3), ""
    limit = min(end, time.monotonic() + max(case_seconds, STARTING))
    try:
        while (line := lines.get(timeout=max(0.0, limit - time.monotonic()))) is not None:
            if not line.startswith(MARK):
                tail.append(line.strip())
                continue
            message: dict[str, Any] = json.loads(line.removeprefix(MARK))
            if "cases" in message:
                cases = message["cases"]
            elif "result" in message:
                take(Result(**message["result"]))
            elif "begin" in message:
                running = message["begin"]
                begun.append(running)
                limit = min(end, time.monotonic() + case_seconds)
            else:
                running = ""
    except queue.Empty:
        why = (
            f"it did not end within {case_seconds if running else STARTING:.0f} s"
            if time.monotonic() < end
            else "no time"
        )
    finally:
        if why:
            process.kill()
        status = _wait(process)
    if not why and status:
        why = f"its process ended with status {status}"
    return Ended(cases, begun, running, why, " / ".join(filter(None, tail)) if running or not begun else "")


def _read(process: subprocess.Popen, lines: queue.Queue[str | None]) -> None:
    for line in process.stdout or ():
        lines.put(line)
    lines.put(None)


def _wait(process: subprocess.Popen) -> int:
    """The exit status; of a process that even a signal does not end, as in a driver's call that hangs, 1."""
    try:
        return process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        return 1
