"""Mixed precision, AdamW, fp16's loss scale, and the moving average of the weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from diffusers.training_utils import EMAModel
from torch import nn

from ...core.errors import RealignError
from ..settings.common import TrainingConfig

logger = logging.getLogger(__name__)
SLOW_BF16 = "AVX2"
"""PyTorch's name for CPUs on which a step in bf16 takes several times as long as in fp32 (`benchmarks/refl.py`)."""


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """accelerate's object for the run's devices and precision (autocast); in fp16 it also scales the loss."""
    precision = config.model.precision
    try:
        host = Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            log_with=None if config.watch.log_with == "csv" else config.watch.log_with,
            project_dir=Path(config.run.output) / "tensorboard",
            # the other processes wait while the main one draws images for L_pre or evaluates
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
        )
    except ValueError as error:
        raise RealignError(f"This device does not train in {precision} ({error}): set precision to fp32.") from error
    if precision == "fp16" and host.device.type == "cpu":  # accelerate would go on without autocast and scale
        raise RealignError("precision is fp16, which trains on a GPU only, and none was found: set it to fp32 or bf16.")
    slow = host.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == SLOW_BF16
    if precision == "bf16" and slow and host.is_main_process:
        logger.warning("This CPU has no arithmetic in bf16, and may be many times slower at it: set precision to fp32.")
    return host


def make_optimizer(weights: Sequence[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW without weight decay; with `optimizer_8bit` bitsandbytes' version with moments in 8 bits."""
    if not config.optimizer.optimizer_8bit:
        return torch.optim.AdamW(weights, lr=config.optimizer.learning_rate, weight_decay=0)
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another CUDA
        raise RealignError(
            f"optimizer_8bit needs the package bitsandbytes, which cannot be imported ({error}): pip install "
            "bitsandbytes, or set optimizer_8bit to false."
        ) from error
    return AdamW8bit(weights, lr=config.optimizer.learning_rate, weight_decay=0)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainingConfig, step: int) -> None:
    """The learning rate of a step (from 0): linear warm-up, constant, linear decay."""
    rise = min(1.0, (step + 1) / max(1, config.optimizer.warmup_steps))
    fall = min(1.0, (config.optimizer.steps - step) / max(1, config.optimizer.decay_steps))
    for group in optimizer.param_groups:
        group["lr"] = config.optimizer.learning_rate * min(rise, fall)


def lower_scale(accelerator: Accelerator) -> bool:
    """Halve fp16's loss scale, if there is one, after a gradient that was not finite and is left out.

    Returns whether that scale may have been the cause: not if it is below 1, nor in other precisions.
    """
    scaler = accelerator.scaler
    if scaler is None:
        return False
    scale = scaler.get_scale()
    scaler.update()  # what `optimizer.step` would have done; without it the next gradient is not unscaled
    return scale >= 1


def make_average(weights: Sequence[nn.Parameter], decay: float, state: dict[str, Any] | None = None) -> EMAModel | None:
    """A moving average that starts from the current weights, or from `state` of a checkpoint; None if `decay` is 0.

    The decay rises from 0 as (1 + n) / (10 + n) with the step n, so that the first steps are soon forgotten.
    """
    if not decay:
        return None
    average = EMAModel(weights, decay=decay)
    if state is not None:
        average.load_state_dict({**state, "decay": decay})
        average.to(weights[0].device)
    return average


@contextmanager
def swap_in_average(weights: Sequence[nn.Parameter], average: EMAModel | None) -> Iterator[None]:
    """Replace the weights by their average, if any, for the duration of a `with` block; not to be nested."""
    if average is None:
        yield
        return
    average.store(weights)
    average.copy_to(weights)
    try:
        yield
    finally:
        average.restore(weights)
