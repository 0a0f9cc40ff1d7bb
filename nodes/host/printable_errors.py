"""Errors that any console can print: a character that its encoding lacks would end ComfyUI's queue for good."""

from __future__ import annotations

import sys
import traceback
from functools import wraps
from typing import Any

from comfy_api.latest import io

from ...core.errors import RealignError
from ...core.text import encodable


def with_printable_errors(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, changed so that all its errors can be printed, with their causes."""
    execute = node.execute.__func__

    @wraps(execute)
    def guarded(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> Any:
        try:
            return execute(cls, *args, **inputs)
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            if encodable(text) == text:
                raise
            printable = error if isinstance(error, RealignError) else RealignError(f"{type(error).__name__}: {error}")
        printable.__cause__ = printable.__context__ = None
        printable.__notes__ = []  # notes are printed too
        raise printable

    node.execute = classmethod(guarded)
    return node


def escape_unprintable_output() -> None:
    """Let the console escape characters that its encoding lacks, such as Chinese ones on some Windows systems."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
