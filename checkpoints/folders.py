"""Reading models from local folders, with one sentence when something is wrong. Never touches the network."""

from __future__ import annotations

import json
import logging
import os
import tempfile
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
from .folder_checks import check_folder, check_weights, obeyed, without_obeyed
from .unpickling import reason
from .values import check_finite

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

    Nothing that the folder names is fetched or run, whatever its files say (see `folder_checks`).

    Raises:
        RealignError: the folder or a file is missing, a weight file is cut off or holds code, weights are not of this
            model or not finite, or the config describes a model that they are not of.
    """
    folder = existing_folder(folder)
    name = kind.__name__
    config = check_folder(folder)
    if name.startswith("Auto"):
        options["trust_remote_code"] = False  # else transformers asks in the terminal what to do with a folder's code
    if dtype is not None:
        check_weights(folder)
        told = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # to be told of them, not stopped
        options = {**told, "torch_dtype": dtype, **options}
    try:
        with reading():
            if dtype is not None and kind.__module__.startswith("transformers.") and obeyed(config):
                options = {"config": _read_config(kind, without_obeyed(config)), **options}
            loaded = kind.from_pretrained(str(folder), local_files_only=True, **options)
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except ImportError as error:  # as for weights in a form that needs a package of its own
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
    missing, _, other = differences(model, info)
    if wrong := missing + other:
        raise RealignError(
            f"The weights in '{folder}' are not those of {name}: {len(wrong)} tensors are missing or of another size, "
            f"'{wrong[0]}' first; choose the folder of a {name}."
        )
    check_finite(model.named_parameters(), folder, f" as {str(dtype).removeprefix('torch.')}")
    return model


def _read_config(kind: type, config: Mapping[str, Any]) -> Any:
    """A configuration of transformers from what a `config.json` says."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if kind.__name__.startswith("Auto"):
            return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return kind.config_class.from_pretrained(folder)


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


def _damage(error: BaseException | None) -> SafetensorError | None:
    """What safetensors found wrong; diffusers wraps it into an error of its own."""
    while error is not None and not isinstance(error, SafetensorError):
        error = error.__cause__ or error.__context__
    return error
