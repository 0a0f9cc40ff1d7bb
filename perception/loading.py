"""Reading models from local folders, with one sentence when something is wrong. Never touches the network."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as transformers_logging

from ..core.errors import RealignError
from .checkpoints.files import refusal
from .checkpoints.pickles import foreign_code

T = TypeVar("T")


def existing_folder(folder: str | Path) -> Path:
    """The folder as a path.

    Raises:
        RealignError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RealignError(f"There is no model folder '{folder}': check the path, or put the model's files there.")
    return folder


def from_folder(kind: type[T], folder: str | Path, *, dtype: torch.dtype | None = None, **options: Any) -> T:
    """`kind.from_pretrained(folder)` for a tokenizer, processor, scheduler or model of transformers or diffusers.

    dtype: for models: what the weights are read as, but for parts that the library keeps in fp32 because half
        precision breaks them. options: more of `from_pretrained`.

    Raises:
        RealignError: the folder or a file is missing, a weight file is cut off, or weights are not of this model.
    """
    folder = existing_folder(folder)
    name = kind.__name__
    if name.startswith("Auto"):
        options["trust_remote_code"] = False  # else transformers asks in the terminal what to do with a folder's code
    if dtype is not None:
        told = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # to be told of them, not stopped
        options = {**told, "torch_dtype": dtype, **options}
    try:
        with reading():
            loaded = kind.from_pretrained(str(folder), local_files_only=True, **options)
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except ImportError as error:  # as for weights in a form that needs a package of its own
        raise RealignError(
            f"Reading '{folder}' needs a package that is not here ({_first_line(error)}): install it, or choose "
            "another model."
        ) from error
    except Exception as error:  # the libraries raise errors of many kinds
        if unsafe := _pickled_code(folder, error):
            raise unsafe from error
        if broken := _damage(error):
            raise RealignError(
                f"A weight file in '{folder}' is damaged or cut off ({broken}): copy or download it again."
            ) from error
        raise RealignError(
            f"The folder '{folder}' could not be read as {name} ({_first_line(error)}): check that all of the model's "
            "files are there."
        ) from error
    if dtype is None:
        return loaded
    model, info = loaded
    missing, _, other = differences(model, info)
    if wrong := missing + other:
        raise RealignError(
            f"The weights in '{folder}' are not those of {name}: {len(wrong)} tensors are missing or of another size, "
            f"'{wrong[0]}' first; choose the folder of a {name}."
        )
    return model


def differences(model: nn.Module, info: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """What transformers reports after loading: the names of weights that are missing, unknown, or of another shape.

    Indices are not missed: they follow from the sizes, and only some versions of transformers save them.
    """
    indices = {name for name, buffer in model.named_buffers() if not buffer.is_floating_point()}
    missing = sorted(set(info["missing_keys"]) - indices)
    other = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    return missing, sorted(info["unexpected_keys"]), sorted(other)


def pillow_processor(name: str) -> type:
    """A class of image processors of transformers which scales with Pillow, as the weights were trained, whether or
    not torchvision is there: with it, newer transformers scale some pixels to other values."""
    own = f"{name}Pil"
    return getattr(transformers, own if hasattr(transformers, own) else name)


@contextmanager
def reading() -> Iterator[None]:
    """Around everything that transformers and diffusers read."""
    with _quiet(), _by_one_thread():
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no reports of unused weights: what matters is checked, and told, by who loads."""
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


@contextmanager
def _by_one_thread() -> Iterator[None]:
    """transformers 5 reads weights by several threads, and of each one's heap glibc keeps up to 64 MB when the model is
    gone. By one thread reading takes longer, and all memory comes back."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def _pickled_code(folder: Path, error: BaseException | None) -> RealignError | None:
    """The refusal of a folder's pickle that holds code, if that is what went wrong."""
    while error is not None and not isinstance(error, pickle.UnpicklingError):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    refusals = (refusal(file, error) for file in sorted(folder.glob("*.bin")) if foreign_code(file))
    return next((found for found in refusals if isinstance(found, RealignError)), None)


def _damage(error: BaseException | None) -> SafetensorError | None:
    """What safetensors found wrong; diffusers wraps it into an error of its own."""
    while error is not None and not isinstance(error, SafetensorError):
        error = error.__cause__ or error.__context__
    return error
