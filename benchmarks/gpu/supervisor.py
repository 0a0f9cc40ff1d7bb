"""Workers that may crash or hang: each case gets its time, and a part goes on with the next one in a new process."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from .results import ERROR, SKIPPED, Result

MARK = "@gpu "
STARTING = 90.0
"""Seconds in which a worker must have imported what it needs."""
Take = Callable[[Result], None]


def supervise(command: Sequence[str], end: float, case_seconds: float, take: Take) -> None:
    """Run a worker's cases until `end`, by `time.monotonic`, and give each result to `take`.

    command: the worker's; ` --seconds S --done CASE …` is added. case_seconds: longer than that no case may take.
    """
    done: list[str] = []
    while True:
        arguments = ["--seconds", f"{end - time.monotonic():.0f}", "--done", *done]
        cases, begun, running, why, tail = watch([*command, *arguments], end, case_seconds, take)
        done += begun
        if not why:
            return
        late = time.monotonic() >= end
        if running or not begun:
            detail = ": ".join(filter(None, ("no time was left: cut off" if late else why, tail)))
            take(Result(case=running or "everything", status=SKIPPED if late else ERROR, detail=detail))
        if late or not begun:  # a worker that began nothing would not do so the next time
            break
    for case in cases if late else []:
        if case not in done:
            take(Result(case=case, status=SKIPPED, detail="no time was left"))


def watch(
    command: Sequence[str], end: float, case_seconds: float, take: Take
) -> tuple[list[str], list[str], str, str, str]:
    """One worker, killed at `end` or when a case takes too long.

    Returns its cases, those begun, the one that it was at or "", why it did not end by itself with status 0 or "", and
    the last lines that it printed.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    cases: list[str] = []
    begun: list[str] = []
    running, tail, why = "", deque(maxlen=3), ""
    limit = min(end, time.monotonic() + max(case_seconds, STARTING))
    try:
        while (line := lines.get(timeout=max(0.0, limit - time.monotonic()))) is not None:
            message = json.loads(line.removeprefix(MARK)) if line.startswith(MARK) else {}
            if not message:
                tail.append(line.strip())
            elif "cases" in message:
                cases = message["cases"]
            elif "result" in message:
                take(Result(**message["result"]))
            else:  # the begin or the end of a case
                running = message.get("begin", "")
                if running:
                    begun.append(running)
                    limit = min(end, time.monotonic() + case_seconds)
    except queue.Empty:
        why = f"it did not end within {case_seconds if running else STARTING:.0f} s"
        process.kill()
    try:
        status = process.wait(timeout=10)
    except subprocess.TimeoutExpired:  # even a signal may not end it, as in a driver's call that hangs
        process.kill()
        status = 1
    if not why and status:
        why = f"its process ended with status {status}"
    return cases, begun, running, why, " / ".join(filter(None, tail))
