"""The models of a run: what it trains, what rewards it, and the gradient of the rewards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.embedded import model_path
from ...core.errors import RealignError
from ...core.fingerprint import READ_BESIDE, fingerprint_of_files
from ...core.precision import DTYPES
from ...language.loading import load_language_model
from ...rewards.caption import CaptionReward
from ...rewards.caption_gradient import Estimator, PromptLikelihood, ScoreFunction, StraightThrough
from ...rewards.caption_likelihood import CaptionLikelihood
from ...rewards.combine import Term, weighted_sum
from ...rewards.loading import load_rewards
from ...rewards.registry import all_models, reward_entry
from ...rewards.reward import Reward
from ...sampling.sampler import DiffusersSampler
from ...sampling.settings import SamplingSettings
from ..settings.arl import ArlConfig
from ..settings.common import TrainingConfig
from ..settings.refl import ReflConfig

EVALUATION_SEED = 10**7  # the seed of the first prompt of an evaluation; no training step uses it


@dataclass(frozen=True)
class RunModels:
    """The models of a run."""

    sampler: DiffusersSampler
    rewards: dict[str, Reward]  # the true rewards by name; the caption reward is that of freely generated captions
    terms: tuple[Term, ...]  # the rewards' weights
    weights: list[nn.Parameter]  # the trainable weights, float32
    device: torch.device
    """Where the run computes. With `offload_captioner` the rewards' networks stay on the CPU between uses."""

    @property
    def resolution(self) -> int:
        """The side of the images in pixels: the size at which the UNet was trained."""
        return self.sampler.latent_shape[-1] * self.sampler.vae_scale_factor

    @torch.no_grad()
    def reward(self, images: Tensor, prompts: Sequence[str], progress: float = 0.5) -> Tensor:
        """The weighted sum of the true rewards of images [B, H, W, 3] in [0, 1]: [B] on the CPU.

        progress: see `rewards.combine`; 0.5 for numbers that are compared over a whole run.
        """
        scores = {name: reward(images, prompts).float().cpu() for name, reward in self.rewards.items()}
        return weighted_sum(self.terms, scores, progress)

    def sample(self, texts: Sequence[str], settings: SamplingSettings, first: int = 0) -> Tensor:
        """One image per prompt from fixed noise: [B, H, W, 3] in [0, 1].

        first: the index of the first prompt, which selects the noise.
        """
        noise = self.sampler.noise([EVALUATION_SEED + first + i for i in range(len(texts))])
        return self.sampler.sample(texts, noise, settings)

    def mean_reward(self, texts: Sequence[str], settings: SamplingSettings) -> float:
        """The mean weighted reward of one image per prompt."""
        scores: list[float] = []
        for start in range(0, len(texts), self.sampler.max_batch):
            batch = texts[start : start + self.sampler.max_batch]
            images = self.sample(batch, settings, start)
            with self.rewards_on_device():
                scores += self.reward(images, batch).tolist()
        return sum(scores) / len(scores)

    def rewards_on_device(self, *others: nn.Module) -> AbstractContextManager[None]:
        """Hold the rewards' networks, and others, on `device` for the duration of a `with` block."""
        networks = [network for reward in self.rewards.values() for network in reward.networks()]
        return on_device(self.device, list(dict.fromkeys([*networks, *others])))


def load_models(config: TrainingConfig, device: torch.device) -> RunModels:
    """Read the run's models; all but the trained weights are frozen."""
    names = [term.name for term in config.reward.terms]
    entries = [reward_entry(name) for name in names]
    if config.lora.train == "lora":
        import_module("peft")  # fails at once, not after minutes of reading models
    sampler = DiffusersSampler.load(model_path(config.model.model, "model"), device, DTYPES[config.model.precision])
    levels = sampler.scheduler.config.num_train_timesteps
    for name in ("prior_min_timestep", "min_timestep"):
        if (lowest := config.to_dict().get(name, 0)) >= levels:
            raise RealignError(
                f"{name} is {lowest}, but this model's noise levels are 0 to {levels - 1}: set it to one of these."
            )
    placement = reward_device_and_dtype(config, device)
    paths = {name: path for name, path in config.to_dict().items() if name in all_models() and path}
    language_model = None
    if isinstance(config, ArlConfig) and any(entry.asks_language_model for entry in entries):
        answers = Path(config.run.output) / "answers"
        language_model = load_language_model(config.model.llm, config.model.llm_model, answers, *placement)
        unread = language_model is not None and not model_path(config.model.text_encoder, "").exists()
        if unread and CaptionReward.name not in names:
            paths.pop("text_encoder", None)  # useful, but not required
    rewards = load_rewards(names, paths, *placement, language_model=language_model)
    for reward in rewards.values():
        for network in reward.networks():
            network.requires_grad_(False)
    return RunModels(sampler, rewards, config.reward.terms, make_trainable(sampler.unet, config), device)


@contextmanager
def on_device(device: torch.device, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Hold frozen modules on `device` for the duration of a `with` block.

    Afterwards they have their previous memory again: nothing is copied back, as nothing changed. A backward pass
    through them must end inside the block.
    """
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    originals = [tensor.data for tensor in tensors]
    try:
        for tensor, data in zip(tensors, originals, strict=True):
            tensor.data = data.to(device)
        yield
    finally:
        for tensor, data in zip(tensors, originals, strict=True):
            tensor.data = data


def reward_device_and_dtype(config: TrainingConfig, device: torch.device) -> tuple[torch.device, torch.dtype]:
    """Where the rewards' networks are loaded, and in which precision."""
    return torch.device("cpu") if config.model.offload_captioner else device, DTYPES[config.model.precision]


def make_trainable(unet: Any, config: TrainingConfig) -> list[nn.Parameter]:
    """Freeze the UNet, add a LoRA or unfreeze all of it, and return the trainable weights in float32."""
    unet.requires_grad_(False)
    if config.model.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.lora.train == "unet":
        unet.float().requires_grad_(True)
        return list(unet.parameters())
    from peft import LoraConfig

    torch.manual_seed(config.run.seed)
    lora = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,  # pyright: ignore[reportArgumentType]: any number works
        target_modules=list(config.lora.targets),
    )
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


def fingerprint_models(config: TrainingConfig, names: Iterable[str]) -> dict[str, str]:
    """A digest of each model's files, by name; empty settings are left out."""
    settings = config.to_dict()
    places = {name: model_path(path, name) for name in names if (path := settings[name])}
    return {name: fingerprint_of_files(path, READ_BESIDE) for name, path in places.items()}


def make_estimators(config: ReflConfig, rewards: dict[str, Reward]) -> dict[str, Estimator]:
    """For each reward a function differentiable in the images: an estimator for the caption reward, else itself."""
    flat = [name for name, reward in rewards.items() if name != CaptionReward.name and not reward.differentiable]
    if flat:
        raise RealignError(
            f"The reward {flat[0]} has no gradient: leave it out, or rank images by it with training/arl_train.py."
        )
    return {name: _estimator(config, r) if isinstance(r, CaptionReward) else r for name, r in rewards.items()}


def _estimator(config: ReflConfig, reward: CaptionReward) -> Estimator:
    likelihood = CaptionLikelihood(reward.captioner)
    if config.reward.estimator == "score_function":
        return ScoreFunction(likelihood, reward.similarity, config.reward.samples_per_image)
    if config.reward.estimator == "prompt_likelihood":
        return PromptLikelihood(likelihood)
    return StraightThrough(likelihood, reward.text_encoder, reward.similarity)
