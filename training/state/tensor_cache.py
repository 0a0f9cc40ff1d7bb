"""Tensors stored beside a run so that its next start need not compute them again.

A file records what its tensors were computed from, and a checksum. If it is damaged, or was computed from something
else, they are computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...core.files import write_whole

logger = logging.getLogger(__name__)


def save_tensors(file: Path, tensors: Mapping[str, Tensor], made_of: Mapping[str, Any], about: Any = None) -> None:
    """Write tensors, whole or not at all; the folder is made.

    made_of: settings and fingerprints of what they follow from. about: further data. Both must be JSON-ready.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(about)
    header = {"made_of": json.dumps(dict(made_of)), "about": text, "sha256": _digest(tensors, text)}
    write_whole(file, save(tensors, header))


def load_tensors(file: Path, made_of: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any] | None:
    """What `save_tensors` wrote (tensors, about); None if there is no file, it is damaged, or made of something else.

    made_of: what must be equal; the file may record more.
    """
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            header = opened.metadata() or {}
            if "sha256" not in header:  # from an older version, which did not record what it was made of
                return None
            recorded = json.loads(header["made_of"])
            wanted = json.loads(json.dumps(dict(made_of)))
            changed = [name for name, value in wanted.items() if recorded.get(name) != value]
            if changed:
                logger.warning("'%s' was made with other settings (%s) and is made again.", file, ", ".join(changed))
                return None
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if _digest(tensors, header["about"]) == header["sha256"]:
            return tensors, json.loads(header["about"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    logger.warning("'%s' is damaged and is made again.", file)
    return None


def _digest(tensors: Mapping[str, Tensor], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
