"""What a model is, by the contents of its files: the same wherever they lie."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path


def fingerprint_of_files(path: Path) -> str:
    """SHA-256 of a file's content, or of the names and contents of all files in a folder, but hidden ones.

    Raises:
        OSError: there is nothing at this path, or a file cannot be read.
    """
    if not path.is_dir():
        return _content(path, *_state(path))
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()}\0{_content(file, *_state(file))}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=4096)
def _content(file: Path, size: int, changed: int) -> str:
    """SHA-256 of one file; read once per process while its size and time stay as they are."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
