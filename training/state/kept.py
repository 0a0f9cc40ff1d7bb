"""Tensors that a run keeps beside itself so that its next start need not make them again.

A file says what it was made of, and proves that it is whole: what is damaged, or made of something else, is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...core.files import write_whole

logger = logging.getLogger(__name__)


class Kept(NamedTuple):
    """What a file holds."""

    tensors: dict[str, Tensor]
    about: Any
    """What was kept with them, JSON-ready."""


def keep(file: Path, tensors: Mapping[str, Tensor], made_of: Mapping[str, Any], about: Any = None) -> None:
    """Write tensors, whole or not at all; the folder is made.

    made_of: the settings and fingerprints that they follow from, JSON-ready. about: what belongs to them, JSON-ready.

    Raises:
        RealignError: they cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(about)
    header = {"made_of": json.dumps(dict(made_of)), "about": text, "sha256": _digest(tensors, text)}
    write_whole(file, save(tensors, header))


def kept(file: Path, made_of: Mapping[str, Any]) -> Kept | None:
    """What `keep` wrote, if the file is whole and was made of this.

    made_of: what must be as it was; the file may say more.
    """
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            header = opened.metadata() or {}
            if "sha256" not in header:  # of an older version, which did not prove what it was made of
                return None
            was = json.loads(header["made_of"])
            wanted = json.loads(json.dumps(dict(made_of)))
            changed = [name for name, value in wanted.items() if was.get(name) != value]
            if changed:
                logger.warning("'%s' was made with other settings (%s) and is made again.", file, ", ".join(changed))
                return None
            found = Kept({name: opened.get_tensor(name) for name in opened.keys()}, json.loads(header["about"]))  # noqa: SIM118
        if _digest(found.tensors, header["about"]) == header["sha256"]:
            return found
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    logger.warning("'%s' is damaged and is made again.", file)
    return None


def _digest(tensors: Mapping[str, Tensor], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
