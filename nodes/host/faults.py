"""What a node raises, made fit for ComfyUI's log: a character that cannot be printed would end its queue."""

from __future__ import annotations

import sys
import traceback
from functools import wraps
from typing import Any

from comfy_api.latest import io

from ...core.errors import RealignError
from ...core.text import encodable


def printable_faults(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node; what it raises can be printed, with all that it was raised from."""
    execute = node.execute.__func__

    @wraps(execute)
    def guarded(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> Any:
        try:
            return execute(cls, *args, **inputs)
        except Exception as error:
            told = "".join(traceback.format_exception(error))
            if encodable(told) == told:
                raise
            fit = error if isinstance(error, RealignError) else RealignError(f"{type(error).__name__}: {error}")
        fit.__cause__ = fit.__context__ = None
        fit.__notes__ = []  # which are printed too
        raise fit

    node.execute = classmethod(guarded)
    return node


def print_whatever_comes() -> None:
    """Let ComfyUI's console escape what its encoding lacks: not each has letters of all languages, as on Windows."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
