"""The training loop that all demo models share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .data import Scenes

LossOf = Callable[[Tensor], Tensor]


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


def fit(recipe: Recipe, modules: Iterable[nn.Module], scenes: Scenes, loss_of: LossOf, label: str) -> None:
    """Minimise the loss of random batches of scenes over the parameters of `modules`; leaves averaged weights in them.

    loss_of: a batch's numbers among the scenes, [B] → a scalar.
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
            warm_up, decline = min(1.0, (step + 1) / 100), min(1.0, max(0.03, (1 - step / recipe.steps) / 0.4))
            group["lr"] = recipe.lr * (warm_up * decline)
        with torch.autocast(device, torch.bfloat16, enabled=recipe.bf16):
            loss = loss_of(torch.randint(len(scenes), (recipe.batch,)))
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


def save(folder: Path, model: Any, *others: Any) -> None:
    """Write the trained model and what belongs to it: its tokenizer, its image processor."""
    for part in (model.eval(), *others):
        part.save_pretrained(folder)
