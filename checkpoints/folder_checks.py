"""Checks of a Hugging Face folder before a model is built from it.

A `config.json` may describe a model of a million layers, name code on a hub, or ask for a backbone to download.
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
from .unpickling import check_only_tensors

MAX_CONFIG = 2**24  # bytes of a config.json; the longest list the names of 21,000 classes
MAX_TEXT = 2**28  # bytes of any other text file, such as a tokenizer's; the largest known have 33 MB
MAX_LAYERS = 1000  # layers, blocks or stages in one list of them
MAX_SIDE = 8192  # pixels or latents per side of a model's images
ALWAYS = 2_000_000_000  # weights that a config may always describe, because it may have parts that the files leave out
TIMES = 8  # by what factor a config's weights, counted roughly, may exceed what the files have room for

_LAYERS = re.compile(r"layer|depth|block|stage")
_SIZES = re.compile(r"size|dim|width|channels|d_model|d_ff|d_kv|n_embd|n_inner|inner|features|queries|feed_forward|ffn")
_SIDES = re.compile(r"(^|_)(image|sample|input)_size$")
_NOT_SIZES = re.compile(r"token|_id$|index|norm|freq|position|n_ctx|seq|block_size|chunk|window|kernel|stride")
_REFUSED = re.compile(r"_?(attn|experts)_implementation\w*|use_pretrained_backbone|use_kernels|kernel_config")
"""Keys that transformers would obey although they may name code on a hub, or weights to download."""
_PICKLES = ("pytorch_model*.bin", "diffusion_pytorch_model*.bin", "adapter_model.bin")


def check_folder(folder: Path) -> dict[str, Any]:
    """Check the sizes of a folder's text files and what its `config.json` describes; return that, {} if none."""
    for file in folder.iterdir():
        most = MAX_CONFIG if file.name == "config.json" else MAX_TEXT
        size = file.stat().st_size if file.is_file() else 0
        if size > most and file.suffix.lower() in (".json", ".txt", ".model", ".jinja"):
            raise RealignError(
                f"'{file}' has {size / 2**20:.0f} MiB, and no such file needs more than {most // 2**20}: download it "
                "again."
            )
    config = read_json(folder / "config.json")
    _check_sizes(config, folder)
    return config


def without_refused_keys(config: Any) -> Any:
    """The config, and the configs nested in it, without the keys that transformers must not obey."""
    if isinstance(config, dict):
        return {key: without_refused_keys(value) for key, value in config.items() if not _REFUSED.fullmatch(key)}
    return [without_refused_keys(value) for value in config] if isinstance(config, list) else config


def check_weights(folder: Path) -> None:
    """Check that a folder's weights are safetensors, or pickles that torch can read without running code."""
    for file in folder.glob("*.safetensors"):
        check_header(file)
    for index in folder.glob("*.safetensors.index.json"):
        shards = read_json(index).get("weight_map")
        for file in sorted({str(name) for name in shards.values()} if isinstance(shards, dict) else ()):
            if not file.lower().endswith(".safetensors"):
                check_only_tensors(folder / file)
    if not any(folder.glob("*.safetensors")):
        for file in sorted(file for pattern in _PICKLES for file in folder.glob(pattern)):
            check_only_tensors(file)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file, {} if there is no file."""
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
    """The config and all dicts nested in it."""
    queue = [config]
    for value in queue:
        if isinstance(value, dict):
            yield value
        if isinstance(value, dict | list):
            queue += value.values() if isinstance(value, dict) else value


def _check_sizes(config: dict[str, Any], folder: Path) -> None:
    files = [file for file in folder.iterdir() if is_weight_file(file) and file.is_file()]
    room = max(ALWAYS, TIMES * 2 * sum(file.stat().st_size for file in files))  # 2: four bits per weight
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
    """The value if it is a number, or the numbers in a list and in lists nested in it; as integers."""
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
    """A timm backbone with a plain name is built from code; all others would be downloaded by their names."""
    name = config.get("backbone")
    from_timm = config.get("use_timm_backbone") or str(config.get("model_type", "")).startswith("timm")
    if isinstance(name, str) and name and (not from_timm or re.search(r"[/:]", name)):
        raise RealignError(
            f"The config.json in '{folder}' names a backbone to fetch ('{name}'), and nothing is fetched: choose a "
            "folder with a backbone_config."
        )
