"""The plan of a run for `--dry-run`: steps, memory and files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ...core.prompt_files import Prompts
from ..data.prior import prior_captioner
from ..data.prompts import load_prompts
from ..settings.arl import ArlConfig
from ..settings.common import TrainingConfig
from ..settings.refl import ReflConfig
from ..state import checkpoints
from ..state.provenance import compare, provenance
from ..state.run_folder import ASIDE, holds_a_run
from ..state.validation import check_settings
from .models import RunModels, load_models, make_estimators

REWARD_PREFIX = "reward/"
QUANTISED_FROM, BLOCK = 4096, 256
"""bitsandbytes keeps moments of tensors with at least this many weights in 8 bits, with one float32 per block."""


def plan(config: TrainingConfig) -> str:
    """The plan as text. Reads prompts and models into the computer's memory and writes nothing."""
    training, held_out = load_prompts(config)
    models = load_models(config, torch.device("cpu"))
    if isinstance(config, ReflConfig):  # for their errors
        make_estimators(config, models.rewards)
        prior_captioner(config, models)
    batch = config.optimizer.batch_size * config.optimizer.gradient_accumulation
    trained = sum(weight.numel() for weight in models.weights)
    evaluated = min(config.watch.evaluate_prompts, len(held_out.texts)) if config.watch.evaluate_every else 0
    rounds = []
    if isinstance(config, ArlConfig):
        count = min(config.rounds.prompts_per_round, len(set(training.texts)))
        images = f"{count} × {config.rounds.images_per_prompt} images"
        rounds = [f"ranks {config.rounds.rounds} times {images} by {config.reward.reward}"]
    return "\n".join(
        [
            *training.problems,
            *held_out.problems,
            f"trains {trained:,} parameters ({config.lora.train}) of {config.model.model}",
            f"{config.optimizer.steps} steps of {batch} images a device, on {len(training.texts)} prompts",
            *rounds,
            f"evaluates on {evaluated} of {len(held_out.texts)} held-out prompts",
            *_start(config, training, held_out),
            "",
            *_memory_in_words(config, models),
            "",
            f"writes to {Path(config.run.output)}:",
            *(f"    {name:<30}{text}" for name, text in _files(config, models, held_out).items()),
        ]
    )


def checkpoint_bytes(config: TrainingConfig, models: RunModels) -> float:
    """The size of a checkpoint."""
    copies = 2 if config.optimizer.ema else 1
    return copies * _bytes(models.weights) + _moments(models.weights, config.optimizer.optimizer_8bit)


def memory(config: TrainingConfig, models: RunModels) -> dict[str, float]:
    """What a device's memory holds throughout a run, in bytes, without activations."""
    parts = {"model/unet": [models.sampler.unet], "model/vae": [models.sampler.vae]}
    parts |= {f"model/text_encoder_{i}": [encoder] for i, encoder in enumerate(models.sampler.text_encoders, 1)}
    for name, reward in models.rewards.items():
        counted = {network for networks in parts.values() for network in networks}  # some rewards share one
        parts[f"{REWARD_PREFIX}{name}"] = [network for network in reward.networks() if network not in counted]
    count = sum(weight.numel() for weight in models.weights)
    halved = config.lora.train == "unet" and config.model.precision != "fp32"  # by autocast
    return {
        **{name: sum(_bytes([*n.parameters(), *n.buffers()]) for n in networks) for name, networks in parts.items()},
        "gradient": 4.0 * count,
        "AdamW's moments": _moments(models.weights, config.optimizer.optimizer_8bit),
        "moving average": 4.0 * count if config.optimizer.ema else 0.0,
        "copy in half": 2.0 * count if halved else 0.0,
    }


def _memory_in_words(config: TrainingConfig, models: RunModels) -> list[str]:
    sizes = memory(config, models)
    lines = [f"memory of each device: {format_bytes(sum(sizes.values()))}, and activations"]
    for name, count in sizes.items():
        away = config.model.offload_captioner and name.startswith(REWARD_PREFIX)
        note = "  only while rewards are computed" if away else ""
        lines += [f"    {name:<22}{format_bytes(count):>10}{note}"] if count else []
    return [
        *lines,
        "    Activations are not estimated: they grow with batch_size. Where they do not fit, halve",
        "    batch_size and double gradient_accumulation, or set gradient_checkpointing.",
    ]


def _moments(weights: Sequence[nn.Parameter], eight_bit: bool) -> float:
    """The bytes of AdamW's two moments per weight."""
    return sum(
        2.0 * weight.numel() * (1 + 4 / BLOCK if eight_bit and weight.numel() >= QUANTISED_FROM else 4)
        for weight in weights
    )


def _start(config: TrainingConfig, training: Prompts, held_out: Prompts) -> list[str]:
    """The checkpoint from which the run would resume, if any, and the changed settings."""
    made_of, lines = provenance(config, training, held_out), []
    files = checkpoints.list_checkpoints(config.run.resume, Path(config.run.output))
    for file in files:
        try:
            state = checkpoints.read(file)
            check_settings(file, state)
        except checkpoints.Unusable as why:
            lines.append(f"cannot go on from {file}: {why}")
            continue
        changed = compare(file, state, config, made_of).sentences
        return [*lines, f"goes on from {file}", *(f"    with {sentence}" for sentence in changed)]
    if files:
        return [*lines, "so that it would stop: restore a checkpoint, or set resume to never"]
    kept = f"keeps the files of the run that is in {config.run.output} in a folder {ASIDE}N of it"
    return [kept] if holds_a_run(Path(config.run.output)) else []


def _files(config: TrainingConfig, models: RunModels, held_out: Prompts) -> dict[str, str]:
    """The files that the run would write, each with its size or content."""
    weights, checkpoint = _bytes(models.weights), checkpoint_bytes(config, models)
    # as `export` writes them: a LoRA in float32, the UNet in float16
    exported = format_bytes(weights if config.lora.train == "lora" else weights / 2)
    every = config.watch.sample_every if held_out.texts else 0
    channels, height, width = models.sampler.latent_shape
    latents = 4.0 * channels * height * width
    prior_images = 0
    if isinstance(config, ReflConfig) and config.prior.prior == "frozen" and config.prior.prior_weight > 0:
        prior_images = config.prior.prior_images
    ranked = config.rounds.rounds * config.rounds.prompts_per_round if isinstance(config, ArlConfig) else 0
    files = {
        "log.csv": "a row per step",
        "samples/step-*.png": f"grids, {1 + config.optimizer.steps // every} in all" if every else "",
        "prior.safetensors": format_bytes(latents * prior_images) if prior_images else "",
        "rounds/": f"{format_bytes(latents * ranked)}, the winners and all scores" if ranked else "",
        "checkpoints/step-*.pt": f"{format_bytes(checkpoint)} each, the last {config.run.keep_last} are kept",
        "report.html": "the run in pictures",
        "last.safetensors": exported,
        "best.safetensors": exported if config.watch.evaluate_every and held_out.texts else "",
        "unet/": f"{format_bytes(weights)}, in the diffusers layout" if config.lora.train == "unet" else "",
    }
    return {name: text for name, text in files.items() if text}


def _bytes(tensors: Iterable[Tensor]) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def format_bytes(count: float) -> str:
    """Bytes as text: `1.5 GB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e3:.1f} kB"
