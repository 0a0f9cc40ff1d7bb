"""How files are written: whole or not at all, with one sentence when they cannot be."""

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
"""What writing raises."""
with suppress(ModuleNotFoundError):  # `make gpu` runs this without any package, to say which it lacks
    from safetensors import SafetensorError

    _UNWRITTEN += (SafetensorError,)
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_LEFT_OVER = re.compile(r".+\.(?P<pid>\d+)\.partial|.+\.safetensors\.(?P<older>\d+)\.part")
PARTIAL = ".partial"
"""How the name of a file ends while it is written."""
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
"""How the names of files of weights end, in small letters or not."""


def is_weight_file(path: Path) -> bool:
    """Whether its name ends as that of a file of weights."""
    return path.suffix.lower() in WEIGHT_FILES


def write_whole(file: Path, content: str | bytes | Callable[[Path], object], *, durable: bool = False) -> None:
    """Write a file so that it is never there in part; its folder is made.

    content: text, written as UTF-8 (what UTF-8 cannot hold is replaced, see `printable`); bytes; or a function that
        writes the file whose path it is given.
    durable: wait until the disk has it, so that not even a power cut leaves an empty file under the name.

    Raises:
        RealignError: it cannot be written.
    """
    partial = partial_of(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode
        if callable(content):
            content(partial)
            partial.chmod(mode)  # what safetensors writes only its owner can read
        else:
            partial.write_bytes(printable(content).encode("utf-8") if isinstance(content, str) else content)
        if durable:
            _bring_to_disk(partial)
        os.replace(partial, file)
    except _UNWRITTEN as error:
        raise RealignError(f"'{file}' cannot be written ({reason(error)}): {mend(error)}.") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def partial_of(file: Path) -> Path:
    """Where this process writes `file` before it is complete; several processes may write the same."""
    return file.with_name(f"{file.name}.{os.getpid()}{PARTIAL}")


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left half-written in `folder` (`NAME.PID.partial`).

    A living process's file stays, but not this one's own: it is to be called before anything is written there.
    name: of the one file whose left-overs are meant; by default those of all.
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


def reason(error: Exception) -> str:
    """What the system says, without the path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def mend(error: Exception) -> str:
    """What to do about a file that cannot be written."""
    full = getattr(error, "errno", None) in _FULL or "No space left" in str(error)
    return "make room there" if full else "check what is in its place"


def _bring_to_disk(file: Path) -> None:
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def _is_another_process(pid: int) -> bool:
    """Whether another living process has this number. Windows does not let go of an open file, so nothing is asked
    there, where `os.kill` would end it."""
    if pid == os.getpid() or os.name == "nt":
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is somebody else's
        return True
    return True
