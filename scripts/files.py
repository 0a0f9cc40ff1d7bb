"""What a script writes, and where: whole, and with one sentence when it cannot."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from ..core.errors import RealignError


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file so that it is never there in part; text is UTF-8.

    Raises:
        RealignError: it cannot be written.
    """
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")  # several processes may write the same
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(partial, file)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise RealignError(f"'{file}' cannot be written ({reason(error)}): check what is in its place.") from error


def make_folder(folder: Path) -> None:
    """Make sure that there is a folder, and that files can be put into it.

    Raises:
        RealignError: they cannot, or something else has its name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RealignError(f"'{folder}' is no folder to write to ({reason(error)}): give another --out.") from error


def reason(error: OSError) -> str:
    """What the system says, without the path."""
    return error.strerror or type(error).__name__
