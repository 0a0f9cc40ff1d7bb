"""Write files whole or not at all, and say in one sentence why one cannot be written."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .errors import RealignError
from .text import printable

_UNWRITTEN: tuple[type[Exception], ...] = (OSError,)
"""The exceptions that writing may raise."""
with suppress(ModuleNotFoundError):  # `make gpu` runs without packages, to say which are missing
    from safetensors import SafetensorError

    _UNWRITTEN += (SafetensorError,)
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_LEFT_OVER = re.compile(r".+\.(?P<pid>\d+)\.partial|.+\.safetensors\.(?P<older>\d+)\.part")
PARTIAL = ".partial"
"""The end of a file's name while it is written."""
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
"""The suffixes of files of weights; upper and lower case are equal."""


def is_weight_file(path: Path) -> bool:
    """Whether a path has the suffix of a file of weights."""
    return path.suffix.lower() in WEIGHT_FILES


def write_whole(file: Path, content: str | bytes | Callable[[Path], object], *, durable: bool = False) -> None:
    """Write a file so that it never exists in part. Creates its folder.

    content: text, written as UTF-8 (see `printable`); bytes; or a function that writes to the path that it gets.
    durable: wait until the data is on disk, so that not even a power cut leaves an empty file.
    A RealignError says why it cannot be written.
    """
    partial = partial_path(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode
        if callable(content):
            content(partial)
            partial.chmod(mode)  # safetensors makes files that only their owner can read
        else:
            partial.write_bytes(printable(content).encode("utf-8") if isinstance(content, str) else content)
        if durable:
            with partial.open("rb+") as opened:
                os.fsync(opened.fileno())
        os.replace(partial, file)
    except _UNWRITTEN as error:
        raise RealignError(f"'{file}' cannot be written ({reason(error)}): {advice(error)}.") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def partial_path(file: Path) -> Path:
    """Where this process writes `file` until it is complete. Each process has its own."""
    return file.with_name(f"{file.name}.{os.getpid()}{PARTIAL}")


def remove_partial_files(folder: Path, name: str | None = None) -> None:
    """Remove half-written files of killed processes from `folder` (`NAME.PID.partial`).

    Files of other living processes stay, those of this process do not, so call it before you write there.
    name: only partial files of this name; by default all.
    """
    with suppress(OSError):
        for left in list(folder.iterdir()):
            found = _LEFT_OVER.fullmatch(left.name)
            if found is None or _is_another_process(int(found["pid"] or found["older"])):
                continue
            if name is not None and not left.name.startswith(f"{name}."):
                continue
            with suppress(OSError):
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()


def make_folder(folder: Path, option: str = "--out") -> None:
    """Make a folder if it is missing; a RealignError that names the `option` if it is none or cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RealignError(f"'{folder}' is no folder to write to ({reason(error)}): give another {option}.") from error


def reason(error: BaseException | None) -> str:
    """The system's message, without the path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def advice(error: BaseException | None) -> str:
    """What the user should do about a file that cannot be written."""
    full = getattr(error, "errno", None) in _FULL or "No space left" in str(error)
    return "make room there" if full else "check what is in its place"


def _is_another_process(pid: int) -> bool:
    """Whether another living process has this number. Not checked on Windows, where `os.kill` would end it."""
    if pid == os.getpid() or os.name == "nt":
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to another user
        return True
    return True
