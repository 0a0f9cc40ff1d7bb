"""How files are written: whole or not at all, with one sentence when they cannot be."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .errors import RealignError
from .text import printable

PARTIAL = ".partial"
"""How the name of a file ends while it is written."""
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
"""How the names of files of weights end, in small letters or not."""


def is_weight_file(path: Path) -> bool:
    """Whether its name ends as that of a file of weights."""
    return path.suffix.lower() in WEIGHT_FILES


def write_whole(file: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file so that it is never there in part; its folder is made.

    content: text, written as UTF-8 (what UTF-8 cannot hold is replaced, see `printable`); bytes; or a function that
        writes the file whose path it is given.

    Raises:
        RealignError: it cannot be written.
    """
    partial = file.with_name(f"{file.name}.{os.getpid()}{PARTIAL}")  # several processes may write the same
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(partial)
        else:
            partial.write_bytes(printable(content).encode("utf-8") if isinstance(content, str) else content)
        os.replace(partial, file)
    except OSError as error:
        raise RealignError(f"'{file}' cannot be written ({reason(error)}): check what is in its place.") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def make_folder(folder: Path, option: str = "--out") -> None:
    """Make sure that there is a folder, and that files can be put into it.

    option: what the sentence asks for instead.

    Raises:
        RealignError: they cannot, or something else has its name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RealignError(f"'{folder}' is no folder to write to ({reason(error)}): give another {option}.") from error


def reason(error: OSError) -> str:
    """What the system says, without the path."""
    return error.strerror or type(error).__name__
