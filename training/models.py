"""What a run trains and what it trains with."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..core.errors import RealignError
from ..perception.captioner import Captioner
from ..perception.speech import Speech
from ..perception.text_encoder import TextEncoder
from ..pipeline.sampler import DiffusersSampler
from ..rewards.caption import CaptionReward
from ..rewards.caption_gradient import Estimator, PromptLikelihood, ScoreFunction, StraightThrough
from .offload import moved_to
from .settings import ReflConfig

DEMO = Path(__file__).parents[1] / "demo" / "weights"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Trained:
    """The models of a run."""

    sampler: DiffusersSampler
    reward: CaptionReward
    """The true R_cap, of freely generated captions."""
    estimator: Estimator
    """Its differentiable stand-in."""
    weights: list[nn.Parameter]
    """What the optimiser changes, float32."""
    device: torch.device
    """Where the run computes. With `offload_captioner` captioner and text encoder rest on the CPU."""

    def judging(self) -> AbstractContextManager[None]:
        """Captioner and text encoder at the place where the run computes, for as long as they are used."""
        return moved_to(self.device, [self.reward.captioner.model, self.reward.text_encoder.model])


def load(config: ReflConfig, device: torch.device) -> Trained:
    """Read the run's models; all but the trained weights are frozen, in `precision` or `frozen_precision`.

    Raises:
        RealignError: a folder is missing or holds another kind of model.
    """
    dtype = DTYPES[config.precision]
    sampler = DiffusersSampler.load(_folder(config.model, "stable_diffusion"), device, dtype)
    _check_against_model(config, sampler)
    judges = (
        torch.device("cpu") if config.offload_captioner else device,
        dtype if config.frozen_precision == "same" else DTYPES[config.frozen_precision],
    )
    captioner = Captioner.load(_folder(config.captioner, "blip2_captioner"), *judges)
    text_encoder = TextEncoder.load(_folder(config.text_encoder, "blip2_itm"), *judges)
    reward = CaptionReward(captioner, text_encoder)
    weights = trainable(sampler.unet, config)
    return Trained(sampler, reward, _estimator(config, reward), weights, device)


def trainable(unet: nn.Module, config: ReflConfig) -> list[nn.Parameter]:
    """The UNet's LoRA or all of it, as float32 parameters that take a gradient; the LoRA is put in here.

    Raises:
        RealignError: no module's name ends as `targets` says.
    """
    unet.requires_grad_(False)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.train == "unet":
        unet.float().requires_grad_(True)
        return list(unet.parameters())
    from peft import LoraConfig

    torch.manual_seed(config.seed)
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets))
    try:
        unet.add_adapter(lora)
    except ValueError as error:
        raise RealignError(
            f"No module of the UNet is called {', '.join(config.targets)}: give targets such as to_q, to_k."
        ) from error
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    return weights


def _check_against_model(config: ReflConfig, sampler: DiffusersSampler) -> None:
    """The rollout draws at the size that the UNet was made for, and L_pre learns at its noise levels."""
    drawn = sampler.latent_shape[-1] * sampler.cell
    if config.resolution != drawn:
        raise RealignError(f"resolution is {config.resolution}, but this model is trained at {drawn}: set it to that.")
    levels = sampler.scheduler.config.num_train_timesteps
    if config.prior_min_timestep >= levels:
        raise RealignError(
            f"prior_min_timestep is {config.prior_min_timestep}, but this model's noise levels are 0 to {levels - 1}: "
            "set it to one of these."
        )


def _folder(name: str, demo: str) -> Path:
    return DEMO / demo if name == "demo" else Path(name)


def _estimator(config: ReflConfig, reward: CaptionReward) -> Estimator:
    speech = Speech(reward.captioner)
    if config.estimator == "score_function":
        return ScoreFunction(speech, reward.similarity, config.samples_per_image)
    if config.estimator == "prompt_likelihood":
        return PromptLikelihood(speech)
    return StraightThrough(speech, reward.text_encoder, reward.similarity)
