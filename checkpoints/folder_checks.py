"""What a Hugging Face folder asks for, looked at before a model is built: its size, what it names and holds.

A `config.json` may describe a model of a million layers, name code on a hub, or ask for a backbone that is fetched.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import RealignError, first_line
from ..core.files import is_weight_file
from .files import check_header
from .unpickling import check_only_tensors, check_torch

MAX_CONFIG = 2**24
"""Bytes of a config.json; the longest have the names of 21,000 classes."""
MAX_TEXT = 2**28
"""Bytes of any other text file, such as a tokenizer's; the largest known have 33 MB."""
MAX_LAYERS = 1000
"""Layers, blocks or stages in one list of them."""
MAX_SIDE = 8192
"""Pixels or latents on a side of the images that a model is made for."""
ALWAYS = 2_000_000_000
"""Weights that a config may describe whatever the files hold: parts that are not in them are made, and left out."""
TIMES = 8
"""By how much a config's weights, counted roughly, may exceed those that the files have room for."""

_LAYERS = re.compile(r"layer|depth|block|stage")
_SIZES = re.compile(r"size|dim|width|channels|d_model|d_ff|d_kv|n_embd|n_inner|inner|features|queries|feed_forward|ffn")
_SIDES = re.compile(r"(^|_)(image|sample|input)_size$")
_NOT_SIZES = re.compile(r"token|_id$|index|norm|freq|position|n_ctx|seq|block_size|chunk|window|kernel|stride")
_OBEYED = re.compile(r"_?(attn|experts)_implementation\w*|use_pretrained_backbone|use_kernels|kernel_config")
"""What transformers would obey although it may name code on a hub, or weights to fetch."""
_PICKLES = ("pytorch_model*.bin", "diffusion_pytorch_model*.bin", "adapter_model.bin")


def check_folder(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`, empty where it has none.

    Raises:
        RealignError: it is not JSON, asks for a model that the weights in the folder cannot fill, or names a backbone
            to fetch; or a text file in the folder is larger than any that is known.
    """
    for file in folder.iterdir():
        most = MAX_CONFIG if file.name == "config.json" else MAX_TEXT
        if (
            file.suffix.lower() in (".json", ".txt", ".model", ".jinja")
            and file.is_file()
            and file.stat().st_size > most
        ):
            raise RealignError(
                f"'{file}' has {file.stat().st_size / 2**20:.0f} MiB, and no such file needs more than "
                f"{most // 2**20}: download it again."
            )
    config = _config(folder / "config.json")
    _check_sizes(config, folder)
    return config


def obeyed(config: Mapping[str, Any]) -> list[str]:
    """The keys of a config, and of those inside it, that transformers must not obey."""
    return sorted({key for inner in _dicts(config) for key in inner if _OBEYED.fullmatch(key)})


def without_obeyed(config: Any) -> Any:
    """The config without them."""
    if isinstance(config, dict):
        return {key: without_obeyed(value) for key, value in config.items() if not _OBEYED.fullmatch(key)}
    return [without_obeyed(value) for value in config] if isinstance(config, list) else config


def check_weights(folder: Path) -> None:
    """Whether the weights of a folder are safetensors, or pickles that torch can read without running code.

    Raises:
        RealignError: a file has more tensors than weights have, or they are pickles that hold more than tensors, or
            torch is too old to read them safely.
    """
    for file in folder.glob("*.safetensors"):
        check_header(file)
    for index in folder.glob("*.safetensors.index.json"):
        named = _config(index).get("weight_map")
        for file in sorted({str(name) for name in named.values()} if isinstance(named, dict) else ()):
            if not file.lower().endswith(".safetensors"):
                check_torch(folder / file)
                check_only_tensors(folder / file)
    if not any(folder.glob("*.safetensors")):
        for file in sorted(file for pattern in _PICKLES for file in folder.glob(pattern)):
            check_torch(file)
            check_only_tensors(file)


def _config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RealignError(f"'{file}' cannot be read as JSON ({first_line(error)}): download it again.") from error
    if not isinstance(config, dict):
        raise RealignError(f"'{file}' is no JSON object: download it again.")
    return config


def _dicts(config: Any) -> Iterator[dict[str, Any]]:
    """The config and all that are inside it."""
    queue = [config]
    for value in queue:
        if isinstance(value, dict):
            yield value
        if isinstance(value, dict | list):
            queue += value.values() if isinstance(value, dict) else value


def _check_sizes(config: dict[str, Any], folder: Path) -> None:
    files = [file for file in folder.iterdir() if is_weight_file(file) and file.is_file()]
    room = max(ALWAYS, TIMES * 2 * sum(file.stat().st_size for file in files))  # 2: four bits a weight
    for inner in _dicts(config):
        layers, sizes, vocabulary = [1], [(1, ""), (1, "")], [(1, "")]
        for key, value in inner.items():
            numbers = list(_numbers(value))
            if _LAYERS.search(key) and not _SIZES.search(key) and not _NOT_SIZES.search(key):
                _check_most(folder, key, max([len(numbers), *numbers]), MAX_LAYERS)
                layers += numbers
            elif _SIDES.search(key):
                _check_most(folder, key, max([0, *numbers]), MAX_SIDE)
            elif _SIZES.search(key) and not _NOT_SIZES.search(key):
                _check_most(folder, f"the length of {key}", len(numbers), MAX_LAYERS)
                (vocabulary if "vocab" in key else sizes).extend((number, key) for number in numbers)
        sizes = sorted(sizes)[-2:]
        described = max(sizes[0][0] * sizes[1][0] * max(layers), max(vocabulary)[0] * sizes[1][0])
        if described > room:
            key, number = (max(vocabulary) if max(vocabulary) > sizes[1] else sizes[1])[::-1]
            raise RealignError(
                f"The config.json in '{folder}' describes a far larger model than its weights are of ({key} is "
                f"{number:,}): download the folder again, or choose another."
            )
        _check_backbone(inner, folder)


def _numbers(value: Any) -> Iterator[int]:
    """A whole number, or those in a list and in the lists in it."""
    queue = [value]
    for item in queue:
        if isinstance(item, list):
            queue += item
        elif isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item):
            yield int(item)


def _check_most(folder: Path, key: str, number: int, most: int) -> None:
    if number > most:
        raise RealignError(
            f"In the config.json in '{folder}' {key} is {number:,}, and no model has more than {most:,}: download the "
            "folder again, or choose another."
        )


def _check_backbone(config: Mapping[str, Any], folder: Path) -> None:
    """One of timm, by its plain name, is made here; all others would be fetched by their names."""
    name = config.get("backbone")
    of_timm = config.get("use_timm_backbone") or str(config.get("model_type", "")).startswith("timm")
    if isinstance(name, str) and name and (not of_timm or re.search(r"[/:]", name)):
        raise RealignError(
            f"The config.json in '{folder}' names a backbone to fetch ('{name}'), and nothing is fetched: choose a "
            "folder with a backbone_config."
        )
