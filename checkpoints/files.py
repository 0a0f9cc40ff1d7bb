"""One file of weights, read safely: safetensors, or a pickle from which only tensors and plain values are taken."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ..core.errors import RealignError, first_line
from ..core.files import is_weight_file
from ..core.text import printable
from .unpickling import Inert, read_pickle
from .unwrapping import unwrap
from .values import check_count, plain_tensors

logger = logging.getLogger(__name__)
MAX_HEADER = 2**25  # bytes of a safetensors header; large models' have some hundred thousand


def weights_file(path: str | Path) -> Path | None:
    """The file of weights at a path: the path itself, or the only one in a folder; None for a Hugging Face folder."""
    path = Path(path)
    if not path.is_dir():
        return path if path.is_file() or is_weight_file(path) else None
    files = sorted(file for file in path.iterdir() if is_weight_file(file) and file.is_file())
    if (path / "config.json").exists() or not files:
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise RealignError(f"'{path}' holds several files of weights ({names}): choose one of them.")
    return files[0]


def read_tensors(file: str | Path, roots: Sequence[str] = ()) -> dict[str, Tensor]:
    """A file's tensors by name, on the CPU, without what training scripts wrap around them.

    The format is recognised by the content, not by the file's name. No code in a pickle ever runs. Large files are
    mapped into memory, not copied. What is skipped, e.g. an epoch or an optimizer, is logged.

    roots: what the names of the wanted model's tensors begin with, to tell its names from prefixes (see `unwrap`).
    """
    file = Path(file)
    try:
        with file.open("rb") as stream:
            start = stream.read(512)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RealignError(f"The weights '{file}' cannot be read ({reason}): check the path.") from error
    if (content := _other_content(start)) is not None:
        raise RealignError(f"'{file}' holds no weights but {content}: download the file itself again.")
    is_safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32
    found = _safetensors(file) if is_safetensors else read_pickle(file)
    weights = unwrap(found, roots)
    if not weights.tensors:
        raise _no_tensors(file, found)
    if report := weights.report():
        logger.warning(printable(f"'{file}': {report}"))
    if weights.prefixes:
        logger.info(printable(f"'{file}': {', '.join(weights.prefixes)} was taken off the names of its tensors."))
    return plain_tensors(weights.tensors, file)


def check_header(file: Path) -> None:
    """Check the size of a safetensors header and the number of tensors in it; broken JSON is left to safetensors."""
    with file.open("rb") as stream:
        length, size = int.from_bytes(stream.read(8), "little"), file.stat().st_size
        if length > min(MAX_HEADER, size):
            what = "damaged or cut off" if length > size else f"no file of weights (its header has {length:,} bytes)"
            raise RealignError(f"'{file}' is {what}: copy or download it again.")
        tensors = 0
        with suppress(ValueError, RecursionError):
            tensors = len(json.loads(stream.read(length)))
    check_count(tensors, file)


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        check_header(file)
        return load_file(file)
    except (RealignError, MemoryError):
        raise
    except Exception as error:  # a SafetensorError, or a dtype that this torch lacks
        raise RealignError(
            f"'{file}' is damaged, cut off or no file of weights ({first_line(error)}): copy or download it again."
        ) from error


def _no_tensors(file: Path, found: Any) -> RealignError:
    values = [found, *found.values()] if isinstance(found, Mapping) else [found]
    for kind in (type(value) for value in values if isinstance(value, Inert)):
        return RealignError(
            f"'{file}' holds no tensors by name, but an object ({kind.__module__}.{kind.__qualname__}), which is not "
            "read: get its state_dict, or safetensors."
        )
    return RealignError(f"'{file}' holds no tensors by name: choose a file of weights.")


def _other_content(start: bytes) -> str | None:
    """What the file is if its first bytes show that it holds no weights."""
    text = start.lstrip().lower()
    if not text:
        return "nothing (it is empty)"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, which a browser saved in place of the download"
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of git LFS"
    return None
