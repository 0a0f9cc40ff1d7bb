"""A pickle of weights, read by torch's restricted reader: only tensors and plain values result, no code runs."""

from __future__ import annotations

import pickle
import re
import tarfile
import threading
import zipfile
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from ..core.errors import RealignError, first_line
from .pickle_scan import Imports, is_data, scan

SAFE_TORCH = (2, 6)  # before this version a pickle can run code even if it is read with `weights_only` (CVE-2025-32434)
SAFE_PROTOCOL = 2  # the highest protocol that torch's restricted reader supports; torch.save writes it
MAX_CLASSES = 1000  # classes of training scripts in one file
_registered = threading.Lock()
_ADVICE = re.compile(r"weights_only|add_safe_globals|safe_globals")


class Inert:
    """Stands for an object that is neither tensor nor plain value, and drops what the pickle gives it."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return object.__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


def read_pickle(file: Path) -> Any:
    """A pickle's content, on the CPU; large files are mapped into memory, not copied.

    Nothing in it is imported or run. A file that holds functions is refused. Objects that are neither tensors nor
    plain values become `Inert`, or a dict or a list if the pickle fills them like one.
    """
    check_torch(file)
    found = Imports()
    try:
        found = scan(file)
        _refuse_programs(file, found)
        return _load(file, found)
    except (RealignError, MemoryError):
        raise
    except Exception as error:  # damaged pickles raise errors of all kinds
        raise _refusal(file, found, error) from error


def _refusal(file: Path, found: Imports, error: Exception) -> RealignError:
    """The error for a pickle that torch refused; torch's own message advises to run the file's code."""
    if found.protocol > SAFE_PROTOCOL:
        return RealignError(
            f"'{file}' is a pickle of protocol {found.protocol}, and torch reads only {SAFE_PROTOCOL} safely: save it "
            "as safetensors, or with torch.save as it is by default."
        )
    if found.names and isinstance(error, pickle.UnpicklingError):
        return RealignError(
            f"'{file}' was not read, and nothing in it ran: its tensors are parts of other objects "
            f"({next(iter(found.names))}). Get its state_dict, or safetensors."
        )
    return RealignError(
        f"'{file}' is damaged, cut off or no file of weights ({reason(error)}): copy or download it again."
    )


def check_torch(file: Path | str) -> None:
    """Raise a RealignError if this torch cannot read pickles safely."""
    if version_of_torch() < SAFE_TORCH:
        least = ".".join(map(str, SAFE_TORCH))
        raise RealignError(
            f"'{file}' is a pickle, from which torch {torch.__version__} may run code (CVE-2025-32434): update torch "
            f"to {least} or newer, or get the weights as safetensors."
        )


def version_of_torch() -> tuple[int, ...]:
    """The version of torch as (major, minor)."""
    return tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])


def check_only_tensors(file: Path) -> None:
    """Check that a pickle which a library is going to read holds only tensors and plain values."""
    check_torch(file)
    try:
        found = scan(file)
    except (OSError, zipfile.BadZipFile) as error:
        raise _refusal(file, Imports(), error) from error
    _refuse_programs(file, found)
    if found.names:
        raise RealignError(
            f"'{file}' holds more than tensors ({next(iter(found.names))}), which is not read from a folder: save its "
            "state_dict as safetensors."
        )


def reason(error: BaseException) -> str:
    """The first line of a library's error, replaced if it advises to run a file's code."""
    return "no pickle that can be read safely" if _ADVICE.search(str(error)) else first_line(error)


def _refuse_programs(file: Path, found: Imports) -> None:
    if code := next((name for name in found.names if not is_data(name)), None):
        raise RealignError(
            f"'{file}' was not read, and nothing in it ran: beside weights it holds code ({code}). Get it as "
            "safetensors, or from the model's own authors."
        )
    if len(found.names) > MAX_CLASSES:
        raise RealignError(
            f"'{file}' was not read: it holds objects of {len(found.names)} classes beside weights. Get it as "
            "safetensors, or from the model's own authors."
        )
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise RealignError(f"'{file}' is a TorchScript program, not only weights: get them as safetensors.")
    elif tarfile.is_tarfile(file):
        raise RealignError(f"'{file}' is a tar archive: unpack it, and choose the file of weights inside.")


def _load(file: Path, found: Imports) -> Any:
    classes: list[Any] = [_stand_in(name, found) for name in found.names]
    with _registered, torch.serialization.safe_globals(classes) if classes else nullcontext():
        try:
            return torch.load(str(file), map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(file, map_location="cpu", weights_only=True)  # the layout before torch 1.6


def _stand_in(name: str, found: Imports) -> type:
    """A class of this name whose objects can be filled in the way that the pickle does."""
    module, _, last = name.rpartition(".")
    names = {"__module__": module, "__qualname__": last}
    if name in found.mappings:
        return type(last, (), {**names, "__new__": lambda cls, *_, **__: OrderedDict()})
    if name in found.lists:
        return type(last, (), {**names, "__new__": lambda cls, *_, **__: []})
    return type(last, (Inert,), names)
