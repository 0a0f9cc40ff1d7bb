"""Models from local Hugging Face folders, with one sentence when something is wrong. Never uses the network."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as transformers_logging

from ..core.errors import RealignError
from .folder_checks import check_folder, check_weights, without_refused_keys
from .unpickling import reason
from .values import check_finite


class Published(Protocol):
    """A class of transformers or diffusers that reads folders."""

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any: ...


T = TypeVar("T", bound=Published)


def existing_folder(folder: str | Path) -> Path:
    """The folder as a path, if it exists."""
    folder = Path(folder)
    if not folder.is_dir():
        raise RealignError(f"There is no model folder '{folder}': check the path, or put the model's files there.")
    return folder


def from_folder(kind: type[T], folder: str | Path, *, dtype: torch.dtype | None = None, **options: Any) -> T:
    """`kind.from_pretrained(folder)` for a tokenizer, processor, scheduler or model of transformers or diffusers.

    Nothing that the folder's files name is downloaded or run (see `folder_checks`).

    dtype: for models only: the precision of the weights, except parts that the library keeps in fp32 because half
        precision breaks them. options: passed to `from_pretrained`.
    """
    folder = existing_folder(folder)
    name = kind.__name__
    config = check_folder(folder)
    if name.startswith("Auto"):
        options["trust_remote_code"] = False  # else transformers asks in the terminal
    if dtype is not None:
        check_weights(folder)
        report = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # reports them, does not raise
        options = {**report, "torch_dtype": dtype, **options}
    try:
        with quiet_loading():
            safe_config = without_refused_keys(config)
            if dtype is not None and kind.__module__.startswith("transformers.") and safe_config != config:
                options = {"config": _config_object(kind, safe_config), **options}
            loaded = kind.from_pretrained(str(folder), local_files_only=True, **options)
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except ImportError as error:  # e.g. for a weight format that needs a package
        raise RealignError(
            f"Reading '{folder}' needs a package that is not here ({reason(error)}): install it, or choose "
            "another model."
        ) from error
    except Exception as error:  # the libraries raise errors of many kinds
        if broken := _damage(error):
            raise RealignError(
                f"A weight file in '{folder}' is damaged or cut off ({broken}): copy or download it again."
            ) from error
        raise RealignError(
            f"The folder '{folder}' could not be read as {name} ({reason(error)}): check that all of the model's "
            "files are there."
        ) from error
    if dtype is None:
        return loaded
    model, info = loaded
    missing, _, reshaped = differences(model, info)
    if wrong := missing + reshaped:
        raise RealignError(
            f"The weights in '{folder}' are not those of {name}: {len(wrong)} tensors are missing or of another size, "
            f"'{wrong[0]}' first; choose the folder of a {name}."
        )
    check_finite(model.named_parameters(), folder, f" as {str(dtype).removeprefix('torch.')}")
    return model


def _config_object(kind: type, config: Mapping[str, Any]) -> Any:
    """A transformers configuration with the content of a `config.json`."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if kind.__name__.startswith("Auto"):
            return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return kind.config_class.from_pretrained(folder)


def differences(model: nn.Module, info: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """The names of weights that are missing, unknown, or of another shape, from transformers' loading report."""
    # index buffers follow from the sizes, and not all versions of transformers save them
    indices = {name for name, buffer in model.named_buffers() if not buffer.is_floating_point()}
    missing = sorted(set(info["missing_keys"]) - indices)
    reshaped = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    return missing, sorted(info["unexpected_keys"]), sorted(reshaped)


def pillow_processor(name: str) -> type:
    """The transformers image processor that resizes with Pillow, as in training, even if torchvision is installed:
    newer transformers would then resize with it, which gives some pixels other values."""
    pillow = f"{name}Pil"
    return getattr(transformers, pillow if hasattr(transformers, pillow) else name)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Inside, transformers and diffusers load in one thread, without progress bars or warnings of unused weights.

    The callers check and report what matters. transformers 5 reads weights in several threads, and glibc keeps up to
    64 MB of each thread's heap after the model is gone; one thread takes longer and gives all memory back.
    """
    variable = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(variable)
    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers")]
    levels, bars = [logger.level for logger in loggers], transformers_logging.is_progress_bar_enabled()
    try:
        os.environ[variable] = "1"
        transformers_logging.disable_progress_bar()
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before


def _damage(error: BaseException | None) -> SafetensorError | None:
    """The safetensors error behind an error; diffusers wraps it."""
    while error is not None and not isinstance(error, SafetensorError):
        error = error.__cause__ or error.__context__
    return error
