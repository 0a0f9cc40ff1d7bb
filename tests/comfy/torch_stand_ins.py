"""Lets ComfyUI start where torchvision and torchaudio are missing or were built for another torch.

`python torch_stand_ins.py main.py --cpu` starts ComfyUI with the stand-ins. The nodes of this pack use neither package;
ComfyUI imports both at its start.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_declared: list[object] = []
"""Operators stay declared for as long as their library object lives."""
AUDIO = ("torchaudio", "torchaudio.functional", "torchaudio.transforms")


def add_stand_ins() -> None:
    """Declare the operators without which torchvision cannot be imported, and replace torchaudio by empty modules.

    A package that can be imported stays as it is.
    """
    if not _can_import("torchvision"):
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
    if not _can_import("torchaudio"):
        for name in AUDIO:
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            sys.modules[name] = module
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)


def _can_import(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # ImportError, OSError or RuntimeError, by what does not fit
        return False
    return True


if __name__ == "__main__":
    add_stand_ins()
    del sys.argv[0]
    sys.path[0] = str(Path.cwd())
    runpy.run_path(sys.argv[0], run_name="__main__")
