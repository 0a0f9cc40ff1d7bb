"""The training loop that all demo models share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one model is trained: AdamW, warm-up, flat, then linear decay to 3 % over the last 40 % of the steps."""

    steps: int
    batch: int
    lr: float
    seed: int = 0
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float | None = None
    """Decay of the moving average of the weights; None: none is kept."""
    bf16: bool = True


def fit(recipe: Recipe, modules: Iterable[nn.Module], loss_of: Callable[[int], Tensor], label: str) -> None:
    """Minimise `loss_of(batch)` over the parameters of `modules`; leaves the averaged weights in them.

    loss_of: draws its own batch of the given size and returns a scalar.
    """
    torch.manual_seed(recipe.seed)
    weights = [p for module in modules for p in module.parameters() if p.requires_grad]
    device = weights[0].device.type
    optimizer = torch.optim.AdamW(weights, recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay)
    average = [w.detach().clone() for w in weights] if recipe.ema else None
    started, shown = time.process_time(), None
    bar = tqdm(range(recipe.steps), desc=label, mininterval=5)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * _schedule(step, recipe.steps)
        with torch.autocast(device, torch.bfloat16, enabled=recipe.bf16):
            loss = loss_of(recipe.batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, recipe.clip)
        optimizer.step()
        if average and recipe.ema:
            decay = min(recipe.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, [w.detach() for w in weights], 1 - decay)
        if step % 100 == 0:
            value = float(loss.detach())
            shown = value if shown is None else 0.8 * shown + 0.2 * value
            bar.set_postfix(loss=f"{shown:.4f}")
    if average:
        with torch.no_grad():
            torch._foreach_copy_([w.detach() for w in weights], average)
    tqdm.write(
        f"{label}: {recipe.steps} steps of {recipe.batch}, {(time.process_time() - started) / 60:.1f} CPU-minutes"
    )


def _schedule(step: int, steps: int) -> float:
    """The factor on the learning rate: 100 steps of warm-up, flat to 60 %, then down to 3 %."""
    return min(1.0, (step + 1) / 100) * min(1.0, max(0.03, (1 - step / steps) / 0.4))
