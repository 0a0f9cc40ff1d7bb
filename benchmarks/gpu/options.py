"""On what the parts of `make gpu` run, and at which size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from .results import Result

Case = Callable[[], Iterable[Result]]
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


class Options(NamedTuple):
    """What a part is told."""

    device: torch.device
    quick: bool = False
    """Miniature shapes, a few seconds on a CPU: shows that a part runs, and measures nothing worth telling."""
