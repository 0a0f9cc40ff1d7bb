"""Part 4 of `make gpu`: images per second and memory of the trainer, beside the loop that ImageReward published.

Stable Diffusion 1.5 and BLIP-2 with OPT-2.7b with random weights; f_enc is the demo world's, which is far smaller than
its model but costs next to nothing in either. What is compared is told in `benchmarks/refl.py`.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState

from ...core.embedded import embedded
from ...core.precision import DTYPES
from ...perception.text_encoder import TextEncoder
from ...rewards.caption import CaptionReward
from ...training.loop.models import RunModels, make_trainable
from ...training.settings.refl import ReflConfig
from ..refl import EQUAL, measure, our_loop
from . import diffusion, models
from .results import Case, Lacking, Options, Result, parity

_captioner = lru_cache(maxsize=1)(models.captioner)
LORA: dict[str, Any] = {"train": "lora"}
LEAN: dict[str, Any] = LORA | {"gradient_checkpointing": True}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ours": {},
    "ours, LoRA": LORA,
    "ours, LoRA, gradient checkpointing": LEAN,
    "ours, LoRA, gradient checkpointing, offloading": LEAN | {"offload_captioner": True},
    "ours, 8-bit optimizer": {"optimizer_8bit": True},
    "ours, LoRA, fp16": LORA | {"precision": "fp16"},
}
FEW = {"rollout_steps": 2, "first_gradient_step": 0}


def cases(options: Options) -> dict[str, Case]:
    """One case for each way of training, then fp16's loss scale."""
    ways: dict[str, Case] = {way: partial(_way, options, way) for way in WAYS}
    return ways | {"loss scale": partial(_loss_scale, options)}


def _way(options: Options, way: str) -> Iterator[Result]:
    config, size = config_of(options, way), 64 if options.quick else 512
    try:
        random.seed(0)  # the steps at which the gradient enters, on which the time depends
        seen = measure(way, config, 1 if options.quick else 3, partial(load_run_models, quick=options.quick))
        total = torch.cuda.max_memory_allocated() if options.device.type == "cuda" else None
    finally:
        reset()
    case = f"SD1.5 {size}x{size}, batch of {config.optimizer.batch_size}"
    fields: dict[str, Any] = {"case": case, "way": way, "dtype": config.model.precision}
    yield Result(quantity="throughput", value=1 / seen["seconds"], unit="images/s", **fields)
    yield Result(quantity="memory of a step", value=seen["bytes"] / 1e6, unit="MB", **fields)
    if total is not None:
        yield Result(quantity="memory with models", value=total / 1e6, unit="MB", **fields)


def _loss_scale(options: Options) -> Iterator[Result]:
    """In fp16 the loss is scaled, and soon by a number with which gradients are finite and weights change."""
    config = config_of(options, "ours, LoRA, fp16").replace(**FEW)
    scales: list[float] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            step = our_loop(config.replace(output=folder), partial(load_run_models, quick=options.quick))
            first = [weight.detach().clone() for weight in step().models.weights]
            for _ in range(2 if options.quick else 12):
                run = step()
                scales.append(1.0 if run.accelerator.scaler is None else run.accelerator.scaler.get_scale())
        weights = run.models.weights
        finite = all(bool(weight.isfinite().all()) for weight in weights)
        moved = any(not torch.equal(*pair) for pair in zip(first, weights, strict=True))
    finally:
        reset()
    detail = f"loss scale by step: {', '.join(f'{scale:g}' for scale in scales)}"
    fields = {"way": "ours", "quantity": "failures", "dtype": config.model.precision, "detail": detail}
    yield parity("loss scaling", float(not (finite and moved)), 0, **fields)


def config_of(options: Options, way: str) -> ReflConfig:
    """ImageReward's settings with what the way changes; `Lacking` where this machine has not what it takes."""
    precision, batch = ("fp32", 2) if options.quick else ("bf16", 4)
    base: dict[str, Any] = {"model": "demo", "captioner": "demo", "text_encoder": "demo", "prompts": "demo"}
    base |= {"precision": precision, "batch_size": batch, **EQUAL}
    settings: dict[str, Any] = base | (FEW if options.quick else {}) | WAYS[way]
    config = ReflConfig(**settings)
    if config.optimizer.optimizer_8bit and find_spec("bitsandbytes") is None:
        raise Lacking("the package bitsandbytes")
    if config.model.precision == "fp16" and options.device.type == "cpu":
        raise Lacking("a GPU, on which alone fp16 trains")
    return config


def load_run_models(config: ReflConfig, device: torch.device, quick: bool) -> RunModels:
    """New models of a run, but for the captioner, which no run changes."""
    dtype = DTYPES[config.model.precision]
    sampler, captioner = diffusion.sampler("SD1.5", device, dtype, quick), _captioner(device, dtype, quick)
    place = torch.device("cpu") if config.model.offload_captioner else device
    captioner.model.to(place)
    reward = CaptionReward(captioner, TextEncoder.load(embedded("text_encoder"), place))
    for network in reward.networks():
        network.requires_grad_(False)
    weights = make_trainable(sampler.unet, config)
    return RunModels(sampler, {"caption": reward}, config.reward.terms, weights, device)


def reset() -> None:
    """Let the next run choose its precision; accelerate keeps the first one's for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
