"""Tags of one's own choice: label embeddings that replace those which a RAM or RAM++ was trained with."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoints.files import read_tensors
from ..core.errors import RealignError

ROOTS = ("label_embed", "thresholds")  # what the names of its tensors begin with
MAX_LIST = 2**26  # bytes of a list of tags or thresholds
THRESHOLD = 0.5  # the published threshold for tags that RAM was not trained with


class Labels(NamedTuple):
    """K tags, each with N descriptions embedded by CLIP's text encoder (ViT-B/16)."""

    tags: list[str]
    embed: Tensor  # [K, N, W], of unit length
    thresholds: Tensor  # [K] in [0, 1]


def read_labels(file: str | Path) -> Labels:
    """Read `label_embed` ([K, W], [K · N, W] or [K, N, W]) and, if present, `thresholds` [K] from a file.

    The tags' names are in a .txt file of the same name beside it, one per line.
    """
    file = Path(file)
    tensors = read_tensors(file, ROOTS)
    tags = read_lines(file.with_suffix(".txt"), f"The names of the tags in '{file.name}'")
    embed = tensors.get("label_embed")
    if embed is None or embed.ndim not in (2, 3):
        raise RealignError(f"'{file}' holds no label_embed [tags, width]: make it with scripts/label_embeddings.py.")
    if not tags or not embed.numel() or len(embed) % len(tags) or (embed.ndim == 3 and len(embed) != len(tags)):
        raise RealignError(
            f"'{file}' holds {len(embed)} label embeddings, but '{file.stem}.txt' names {len(tags)} tags: give the "
            "list that they were made from."
        )
    embed = embed.float().reshape(len(tags), -1, embed.shape[-1])
    if not torch.isfinite(embed).all():
        raise RealignError(f"A label embedding in '{file}' holds values that are not numbers: make it again.")
    thresholds = tensors.get("thresholds", torch.full((len(tags),), THRESHOLD))
    if thresholds.shape != (len(tags),):
        raise RealignError(f"'{file}' holds {thresholds.numel()} thresholds for {len(tags)} tags: give one per tag.")
    return Labels(tags, F.normalize(embed, dim=-1), thresholds.float())


def save_labels(file: str | Path, tags: list[str], embed: Tensor) -> None:
    """Write the files that `read_labels` reads."""
    file = check_place(file, tags)
    try:
        save_file({"label_embed": embed.contiguous()}, file)
        file.with_suffix(".txt").write_text("\n".join(tags) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise RealignError(
            f"The label embeddings cannot be written to '{file}' ({error}): give another place."
        ) from error


def check_place(file: str | Path, tags: list[str]) -> Path:
    """The file's path, if label embeddings may be written to it and the tags to a .txt file beside it."""
    file = Path(file)
    if file.suffix.lower() != ".safetensors":
        raise RealignError(f"'{file}' does not end in .safetensors: give such a name; the tags go to a .txt beside it.")
    if not file.parent.is_dir():
        raise RealignError(f"There is no folder '{file.parent}' for '{file.name}': make it, or give another.")
    names = file.with_suffix(".txt")
    if names.exists():
        present = [line for line in read_lines(names, "What would be overwritten") if line]
        if list(dict.fromkeys(present)) != tags:
            raise RealignError(
                f"'{names}' holds something else than these tags, whose place it is: move it away, or choose another "
                f"name than '{file.name}'."
            )
    return file


def read_lines(file: Path, what: str) -> list[str]:
    """The lines of a text file, stripped. what: the content, for the message."""
    try:
        if file.stat().st_size > MAX_LIST:
            raise RealignError(f"{what} cannot be read from '{file}': it has more than {MAX_LIST // 2**20} MiB.")
        # StringIO splits at line feeds and carriage returns only; str.splitlines would at U+0085 and others, too
        return [line.strip() for line in io.StringIO(file.read_text(encoding="utf-8-sig").strip())]
    except (OSError, UnicodeDecodeError) as error:
        raise RealignError(
            f"{what} cannot be read from '{file}': put a text file in UTF-8 there, one per line."
        ) from error
