"""Reading models from local folders, with one sentence when something is wrong. Never touches the network."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from ..core.errors import RealignError

T = TypeVar("T")
_CONSTANTS = ("relative_position_index",)
"""What transformers 4 counts among the weights, and transformers 5 no longer writes; every model makes it itself."""


def existing_folder(folder: str | Path) -> Path:
    """The folder as a path.

    Raises:
        RealignError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RealignError(f"There is no model folder '{folder}': check the path, or put the model's files there.")
    return folder


def from_folder(kind: type[T], folder: str | Path, *, dtype: torch.dtype | None = None) -> T:
    """`kind.from_pretrained(folder)` for a tokenizer, processor, scheduler or model of transformers or diffusers.

    dtype: for models: what the weights become.

    Raises:
        RealignError: the folder or a file is missing, a weight file is cut off, or weights are not of this model.
    """
    folder = existing_folder(folder)
    name = kind.__name__
    options: dict[str, Any] = {} if dtype is None else {"output_loading_info": True}
    try:
        with _quiet():
            loaded = kind.from_pretrained(str(folder), local_files_only=True, **options)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        if broken := _damage(error):
            raise RealignError(
                f"A weight file in '{folder}' is damaged or cut off ({broken}): copy or download it again."
            ) from error
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RealignError(
            f"The folder '{folder}' could not be read as {name} ({reason[0][:200]}): check that all of the model's "
            "files are there."
        ) from error
    if dtype is None:
        return loaded
    model, info = loaded
    missing = (key for key in info["missing_keys"] if not key.endswith(_CONSTANTS))
    wrong = [*missing, *(str(key[0]) for key in info["mismatched_keys"])]
    if wrong:
        raise RealignError(
            f"The weights in '{folder}' are not those of {name}: {len(wrong)} tensors are missing or of another size, "
            f"'{sorted(wrong)[0]}' first; choose the folder of a {name}."
        )
    with _quiet():
        return model.to(dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no reports of unused weights: what matters is checked, and told, by `from_folder`."""
    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers")]
    levels, bars = [logger.level for logger in loggers], transformers_logging.is_progress_bar_enabled()
    try:
        transformers_logging.disable_progress_bar()
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _damage(error: BaseException | None) -> SafetensorError | None:
    """What safetensors found wrong; diffusers wraps it into an error of its own."""
    while error is not None and not isinstance(error, SafetensorError):
        error = error.__cause__ or error.__context__
    return error
