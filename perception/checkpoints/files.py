"""One file of weights, read safely: safetensors, or a pickle from which nothing but tensors and plain values come."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...core.errors import RealignError
from .pickles import foreign_code

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
"""How the names of files that `read_tensors` may read end."""
_WRAPPERS = ("model", "state_dict", "model_state_dict")
_GLOBAL = re.compile(r"(?:GLOBAL|Unsupported class) (\S+)")


def weights_file(path: str | Path) -> Path | None:
    """The file of weights that a path names, itself or as the only one in a folder; None for a Hugging Face folder.

    Raises:
        RealignError: a folder that is no Hugging Face folder holds several such files.
    """
    path = Path(path)
    if not path.is_dir():
        return path if path.is_file() or path.suffix in WEIGHT_FILES else None
    files = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_FILES and file.is_file())
    if (path / "config.json").exists() or not files:
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise RealignError(f"'{path}' holds several files of weights ({names}): choose one of them.")
    return files[0]


def read_tensors(file: str | Path) -> dict[str, Tensor]:
    """The named tensors of a file, on the CPU, without the wrappers that training scripts leave around them.

    What the file is, is read from its content, not from its name. Pickles are read with `weights_only`, so no code in
    one ever runs; large files are mapped into memory, not copied.

    Raises:
        RealignError: there is no such file, it is cut off, holds code, or is no file of weights (and what it is).
    """
    file = Path(file)
    start = _start_of(file)
    if (other := _no_weights(start)) is not None:
        raise RealignError(f"'{file}' holds no weights but {other}: download the file itself again.")
    try:
        found = load_file(file) if _is_safetensors(start) else _unpickled(file)
    except RealignError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # of a damaged pickle come errors of all kinds
        raise RealignError(
            f"'{file}' is damaged, cut off or no file of weights ({_first_line(error)}): copy or download it again."
        ) from error
    tensors = _unwrapped(found)
    if not tensors:
        raise RealignError(f"'{file}' holds no tensors: choose a file of weights.")
    return tensors


def _start_of(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(512)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RealignError(f"The weights '{file}' cannot be read ({reason}): check the path.") from error


def _no_weights(start: bytes) -> str | None:
    """What a file that begins so is, where that is plain to see and no weights."""
    text = start.lstrip().lower()
    if not text:
        return "nothing (it is empty)"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, which a browser saved in place of the download"
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of git LFS"
    return None


def _is_safetensors(start: bytes) -> bool:
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32


def _unpickled(file: Path) -> Any:
    """A pickle's content; refuses by name what is not plain data."""
    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(file, map_location="cpu", weights_only=True)  # the layout before torch 1.6
    except pickle.UnpicklingError as error:
        raise refusal(file, error) from error


def refusal(file: Path, error: pickle.UnpicklingError) -> Exception:
    """Why torch does not unpickle a file safely: the code in it by name, or an error that tells that there is none."""
    named = _GLOBAL.search(str(error))
    code = foreign_code(file) or (named and named[1])
    if code:
        return RealignError(
            f"'{file}' was not read, and nothing in it ran: beside weights it holds code ({code}). Get it as "
            "safetensors, or from the model's own authors."
        )
    return RuntimeError("no pickle that can be read safely")


def _unwrapped(found: Any) -> dict[str, Tensor]:
    """The innermost mapping of names to tensors, without the `module.` of a model that was trained in parallel."""
    while isinstance(found, Mapping) and (inner := next((found[key] for key in _WRAPPERS if key in found), None)):
        if not isinstance(inner, Mapping):
            break
        found = inner
    if not isinstance(found, Mapping):
        return {}
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    parallel = bool(tensors) and all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module.") if parallel else name: value for name, value in tensors.items()}


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
