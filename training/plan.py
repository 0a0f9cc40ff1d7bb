"""What a run would do, with sizes and files: `--dry-run`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from . import checkpoints
from .models import Trained, load
from .prompts import Prompts, load_prompts
from .settings import ReflConfig

QUANTISED_FROM, BLOCK = 4096, 256
"""bitsandbytes keeps moments of tensors from this many weights on in 8 bits, with one float32 a block."""


def plan(config: ReflConfig) -> str:
    """The plan in words. Reads prompts and models, in the computer's memory, and writes nothing.

    Raises:
        RealignError: what would also stop the run: prompts or a model are missing or wrong.
    """
    training, held_out = load_prompts(config)
    models = load(config, torch.device("cpu"))
    batch, trained = config.batch_size * config.gradient_accumulation, sum(w.numel() for w in models.weights)
    evaluated = min(config.evaluate_prompts, len(held_out.texts)) if config.evaluate_every else 0
    return "\n".join(
        [
            *training.problems,
            *held_out.problems,
            f"trains {trained:,} parameters ({config.train}) of {config.model}",
            f"{config.steps} steps of {batch} images a device, on {len(training.texts)} prompts",
            f"evaluates on {evaluated} of {len(held_out.texts)} held-out prompts",
            *_start(config),
            "",
            *_memory_in_words(config, models),
            "",
            f"writes to {Path(config.output)}:",
            *(f"    {name:<30}{told}" for name, told in _files(config, models, held_out).items()),
        ]
    )


def memory(config: ReflConfig, models: Trained) -> dict[str, float]:
    """What lies in a device's memory all through a run, in bytes; activations, which come on top, not counted."""
    sampler = {"model/unet": models.sampler.unet, "model/vae": models.sampler.vae}
    sampler |= {f"model/text_encoder_{i}": encoder for i, encoder in enumerate(models.sampler.text_encoders, 1)}
    judges = {"captioner": models.reward.captioner.model, "f_enc": models.reward.text_encoder.model}
    count = sum(weight.numel() for weight in models.weights)
    return {
        **{name: _bytes([*part.parameters(), *part.buffers()]) for name, part in {**sampler, **judges}.items()},
        "gradient": 4.0 * count,
        "AdamW's moments": _moments(models.weights, config.optimizer_8bit),
        "moving average": 4.0 * count if config.ema else 0.0,
        "copy in half": 2.0 * count if config.train == "unet" and config.precision != "fp32" else 0.0,  # of autocast
    }


def _memory_in_words(config: ReflConfig, models: Trained) -> list[str]:
    sizes = memory(config, models)
    lines = [f"memory of each device: {_size(sum(sizes.values()))}, and activations"]
    for name, size in sizes.items():
        away = config.offload_captioner and name in ("captioner", "f_enc")
        if size:
            lines.append(f"    {name:<20}{_size(size):>10}{'  only while images are judged' if away else ''}")
    return [
        *lines,
        "    Activations are not estimated: they grow with batch_size and resolution. Where they do not fit, halve",
        "    batch_size and double gradient_accumulation, or set gradient_checkpointing.",
    ]


def _moments(weights: Sequence[nn.Parameter], eight_bit: bool) -> float:
    """The bytes of AdamW's two moments of each weight."""
    return sum(
        2.0 * weight.numel() * (1 + 4 / BLOCK if eight_bit and weight.numel() >= QUANTISED_FROM else 4)
        for weight in weights
    )


def _start(config: ReflConfig) -> list[str]:
    """Which checkpoint the run would go on from, if any."""
    return [f"goes on from {file}" for file in checkpoints.found(config.resume, Path(config.output))[:1]]


def _files(config: ReflConfig, models: Trained, held_out: Prompts) -> dict[str, str]:
    """Each file in the run's folder with what is to say of it."""
    own = _bytes(models.weights)
    average = own if config.ema else 0
    checkpoint = own + _moments(models.weights, config.optimizer_8bit) + average
    # as `export` writes them: a LoRA in float32, the UNet in float16
    exported = _size(own if config.train == "lora" else own / 2)
    shown = config.sample_every and (config.sample_prompts or held_out.texts)
    channels, height, width = models.sampler.latent_shape
    drawn = config.prior == "frozen" and config.prior_weight > 0
    told = {
        "log.csv": "a row a step",
        "samples/step-*.png": f"grids, {1 + config.steps // config.sample_every} in all" if shown else "",
        "prior.safetensors": _size(4.0 * config.prior_images * channels * height * width) if drawn else "",
        "checkpoints/step-*.pt": f"{_size(checkpoint)} each, the last {config.keep_last} are kept",
        "report.html": "the run in pictures",
        "last.safetensors": exported,
        "best.safetensors": exported if config.evaluate_every and held_out.texts else "",
        "unet/": f"{_size(own)}, the last weights in the diffusers layout" if config.train == "unet" else "",
    }
    return {name: text for name, text in told.items() if text}


def _bytes(tensors: Iterable[Tensor]) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _size(count: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e3:.1f} kB"
