"""What a run trains and what it trains with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from ...core.embedded import model_path
from ...core.errors import RealignError
from ...core.fingerprint import READ_BESIDE, fingerprint_of_files
from ...core.precision import DTYPES
from ...language.loading import load_language_model
from ...rewards.caption import CaptionReward
from ...rewards.combine import Term, weighted_sum
from ...rewards.loading import load_rewards
from ...rewards.registry import all_models, reward_entry
from ...rewards.reward import Reward
from ...sampling.sampler import DiffusersSampler
from ..settings.arl import ArlConfig
from ..settings.common import TrainingConfig
from .offload import moved_to


@dataclass(frozen=True)
class Trained:
    """The models of a run."""

    sampler: DiffusersSampler
    rewards: dict[str, Reward]
    """By name, each true: the caption reward of freely generated captions."""
    terms: tuple[Term, ...]
    """The rewards' weights."""
    weights: list[nn.Parameter]
    """What the optimiser changes, float32."""
    device: torch.device
    """Where the run computes. With `offload_captioner` what judges rests on the CPU."""

    @property
    def resolution(self) -> int:
        """The side in pixels of the images that are drawn: the size that the UNet was trained at."""
        return self.sampler.latent_shape[-1] * self.sampler.vae_scale_factor

    @torch.no_grad()
    def reward(self, images: Tensor, prompts: Sequence[str], progress: float = 0.5) -> Tensor:
        """The weighted sum of the true rewards of images [B, H, W, 3] in [0, 1]: [B] on the CPU.

        progress: see `rewards.combine`; half-way, for numbers that are to be compared over a whole run.
        """
        scores = {name: reward(images, prompts).float().cpu() for name, reward in self.rewards.items()}
        return weighted_sum(self.terms, scores, progress)

    def judging(self, *others: nn.Module) -> AbstractContextManager[None]:
        """The rewards' networks, and others, at the place where the run computes, for as long as they are used."""
        networks = [network for reward in self.rewards.values() for network in reward.networks()]
        return moved_to(self.device, list(dict.fromkeys([*networks, *others])))


def load(config: TrainingConfig, device: torch.device) -> Trained:
    """Read the run's models; all but the trained weights are frozen.

    Raises:
        RealignError: a folder is missing or holds another kind of model.
    """
    names = [term.name for term in config.reward.terms]
    entries = [reward_entry(name) for name in names]
    if config.lora.train == "lora":
        import_module("peft")  # which is missing now, not after minutes of reading
    sampler = DiffusersSampler.load(model_path(config.model.model, "model"), device, DTYPES[config.model.precision])
    _check_against_model(config, sampler)
    judges = judges_place(config, device)
    places = {name: path for name, path in config.to_dict().items() if name in all_models() and path}
    reader = None
    if isinstance(config, ArlConfig) and any(entry.asks_language_model for entry in entries):
        answers = Path(config.run.output) / "answers"
        reader = load_language_model(config.model.llm, config.model.llm_model, answers, *judges)
        unread = reader is not None and not model_path(config.model.text_encoder, "").exists()
        if unread and CaptionReward.name not in names:
            places.pop("text_encoder", None)  # it would be of use, but is not needed
    rewards = load_rewards(names, places, *judges, language_model=reader)
    for reward in rewards.values():
        for network in reward.networks():
            network.requires_grad_(False)
    return Trained(sampler, rewards, config.reward.terms, trainable(sampler.unet, config), device)


def judges_place(config: TrainingConfig, device: torch.device) -> tuple[torch.device, torch.dtype]:
    """Where what judges is loaded to, and in which precision."""
    return torch.device("cpu") if config.model.offload_captioner else device, DTYPES[config.model.precision]


def trainable(unet: nn.Module, config: TrainingConfig) -> list[nn.Parameter]:
    """The UNet's LoRA or all of it, as float32 parameters that take a gradient; the LoRA is put in here.

    Raises:
        RealignError: no module's name ends as `targets` says.
    """
    unet.requires_grad_(False)
    if config.model.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.lora.train == "unet":
        unet.float().requires_grad_(True)
        return list(unet.parameters())
    from peft import LoraConfig

    torch.manual_seed(config.run.seed)
    lora = LoraConfig(r=config.lora.rank, lora_alpha=config.lora.rank, target_modules=list(config.lora.targets))
    try:
        unet.add_adapter(lora)
    except ValueError as error:
        raise RealignError(
            f"No module of the UNet is called {', '.join(config.lora.targets)}: give targets such as to_q, to_k."
        ) from error
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    return weights


def fingerprints(config: TrainingConfig, names: Iterable[str]) -> dict[str, str]:
    """What the models of these settings are, by the contents of their files.

    Raises:
        RealignError: a file cannot be read.
    """
    settings = config.to_dict()
    places = {name: model_path(path, name) for name in names if (path := settings[name])}
    return {name: fingerprint_of_files(path, READ_BESIDE) for name, path in places.items()}


def _check_against_model(config: TrainingConfig, sampler: DiffusersSampler) -> None:
    """Images are learnt from at the UNet's noise levels."""
    levels = sampler.scheduler.config.num_train_timesteps
    for name in ("prior_min_timestep", "min_timestep"):
        if (lowest := config.to_dict().get(name, 0)) >= levels:
            raise RealignError(
                f"{name} is {lowest}, but this model's noise levels are 0 to {levels - 1}: set it to one of these."
            )
