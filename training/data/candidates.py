"""A round of reward-ranked learning: the model draws K images per prompt, rewards rank them, and the best are kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ...core.errors import RealignError
from ...core.files import reason
from ...core.fingerprint import fingerprint_of_texts
from ...core.images import to_pil
from ...language.loading import is_server
from ...rewards.combine import weighted_sum
from ...rewards.ranking import best_first
from ...rewards.registry import models_of
from ...sampling.settings import SamplingSettings
from ..loop.models import RunModels, fingerprint_models
from ..settings.arl import ArlConfig
from ..state.tensor_cache import load_tensors, save_tensors
from ..watch.samples import in_rows, write_picture

SEED_OF_CANDIDATES = 5 * 10**8  # offset from the seeds of the training steps
MADE_OF = (
    *("reward", "winner", "images_per_prompt", "prompts_per_round", "rollout_steps", "cfg", "seed"),
    *("llm", "llm_model"),
)
"""The settings on which a round's images and their ranking depend, besides prompts, model files and trained weights."""


class Round(NamedTuple):
    """The winners of P prompts."""

    number: int
    prompts: list[str]
    latents: Tensor  # [P, C, h, w], float32, one per prompt
    scores: dict[str, Tensor]  # each reward's scores of all images: [P, K]


def draw_round(
    config: ArlConfig,
    models: RunModels,
    texts: Sequence[str],
    number: int,
    weights: str,
    *,
    share: tuple[int, int] = (0, 1),
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Draw the images of round `number` that do not exist yet; each file holds some prompts.

    texts: the training prompts. weights: the `fingerprint_weights` of the current model. share: (i, n) draws every n-th
        file from the i-th on, for device i of n. should_stop: asked before each file; the files drawn so far serve the
        next start.
    """
    files = round_files(config, texts, number, models.sampler.max_batch)
    mine = list(files.items())[share[0] :: share[1]]
    for file, (start, prompts) in tqdm(mine, desc=f"images of round {number + 1}", disable=share[0] > 0):
        if should_stop():
            return
        made_of = provenance_of(config, prompts, weights)
        if read_file(file, made_of) is None:
            draw_file(config, models, prompts, number, start, file, made_of)


def read_round(config: ArlConfig, models: RunModels, texts: Sequence[str], number: int, weights: str) -> Round:
    """The winners of a round after `draw_round` on all devices."""
    files = round_files(config, texts, number, models.sampler.max_batch)
    read = [read_file(file, provenance_of(config, prompts, weights)) for file, (_, prompts) in files.items()]
    if missing := [file for file, part in zip(files, read, strict=True) if part is None]:
        raise RealignError(
            f"The round's images in '{missing[0]}' cannot be read, though they were just drawn: give an output that "
            "all devices write to and read from, and start again."
        )
    parts = [part for part in read if part is not None]
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    latents = tensors.pop("winners")
    return Round(number, [text for _, prompts in files.values() for text in prompts], latents, tensors)


def round_files(
    config: ArlConfig, texts: Sequence[str], number: int, max_batch: int
) -> dict[Path, tuple[int, list[str]]]:
    """Each file of a round with its prompts and the index of the first of these in the round."""
    different = list(dict.fromkeys(texts))
    rng = random.Random(f"{config.run.seed} round {number}")
    prompts = rng.sample(different, min(config.rounds.prompts_per_round, len(different)))
    size = max(1, max_batch // config.rounds.images_per_prompt)
    folder = Path(config.run.output) / "rounds" / f"{number + 1:04d}"
    return {
        folder / f"{start:06d}.safetensors": (start, prompts[start : start + size])
        for start in range(0, len(prompts), size)
    }


def pick_winners(scores: Sequence[Tensor], method: str, rng: random.Random) -> Tensor:
    """The index of each prompt's winner: scores [P, K] per reward → [P]; `method` is the setting `winner`."""
    if method == "random":
        P, K = scores[0].shape
        return torch.tensor([rng.randrange(K) for _ in range(P)])
    return best_first(scores)[:, 0]


@torch.no_grad()
def draw_file(
    config: ArlConfig,
    models: RunModels,
    prompts: list[str],
    number: int,
    start: int,
    file: Path,
    made_of: dict[str, object],
) -> None:
    P, K = len(prompts), config.rounds.images_per_prompt
    repeated = [text for text in prompts for _ in range(K)]
    first = config.run.seed * 10**9 + SEED_OF_CANDIDATES + (number * config.rounds.prompts_per_round + start) * K
    noise = models.sampler.noise([first + i for i in range(P * K)])
    # P is 1 if a prompt has more images than fit into a batch
    batches = [slice(i, i + models.sampler.max_batch) for i in range(0, P * K, models.sampler.max_batch)]
    samples = [_sample_and_score(config, models, repeated[batch], noise[batch]) for batch in batches]
    latents, images = (torch.cat(parts) for parts in list(zip(*samples, strict=True))[:2])
    scores = {name: torch.cat([scores[name] for *_, scores in samples]).view(P, K) for name in models.rewards}
    rng = random.Random(f"{config.run.seed} {file.name} {number}")
    winners = pick_winners(list(scores.values()), config.rounds.winner, rng)
    best = latents.view(P, K, *latents.shape[1:])[torch.arange(P), winners]
    try:
        save_tensors(file, {"winners": best.clone(), **scores}, made_of)
    except RealignError as error:
        raise RealignError(
            f"The round's images could not be written to '{file}' ({reason(error.__cause__)}): make room there and "
            "start again; the run goes on where it was."
        ) from error
    if not start:
        order = best_first(list(scores.values())) + torch.arange(P)[:, None] * K
        try:
            write_picture(file.with_name("best-first.png"), in_rows(to_pil(images[order.flatten()]), K))
        except RealignError as error:  # the picture is only for people
            tqdm.write(f"{error} The run goes on.")


def _sample_and_score(
    config: ArlConfig, models: RunModels, prompts: list[str], noise: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """One image per prompt, on the CPU: latents [N, C, h, w], float32, images [N, H, W, 3] in [0, 1], scores [N].

    An image that is not finite, which can happen in fp16, becomes black with NaN as scores, so that it ranks last.
    """
    sampling = SamplingSettings(steps=config.rollout.rollout_steps, cfg=config.rollout.cfg)
    latents = models.sampler.sample_latents(prompts, noise, sampling)
    images = models.sampler.decode(latents)
    broken = ~images.isfinite().flatten(1).all(1).cpu()
    images = images.where(images.isfinite(), 0.0)
    with models.rewards_on_device():
        scores = {name: reward(images, prompts).float().cpu() for name, reward in models.rewards.items()}
    scores = {name: score.masked_fill(broken, torch.nan) for name, score in scores.items()}
    return latents.float().cpu(), images.cpu(), scores


def mean_reward(models: RunModels, scores: dict[str, Tensor]) -> float:
    """The mean weighted reward of a round's images, without those that are NaN."""
    return float(weighted_sum(models.terms, scores).nanmean())


def fingerprint_weights(weights: Sequence[Tensor]) -> str:
    """A digest that is equal for equal weights, and almost surely different for others."""
    sums = [float(weight.detach().double().abs().sum()) for weight in weights]
    return fingerprint_of_texts([repr(value) for value in sums])


def provenance_of(config: ArlConfig, prompts: Sequence[str], weights: str) -> dict[str, Any]:
    """What the images and scores of these prompts follow from: settings, prompts, weights and model files."""
    needed = {"model", *models_of((term.name for term in config.reward.terms), offline=True)}
    if config.model.llm and not is_server(config.model.llm):
        needed |= {"llm"}
    settings = {name: config.to_dict()[name] for name in MADE_OF if name not in needed}
    made_of = settings | {"prompts": fingerprint_of_texts(prompts), "weights": weights}
    return made_of | {f"files of {name}": value for name, value in fingerprint_models(config, sorted(needed)).items()}


def read_file(file: Path, made_of: Mapping[str, object]) -> dict[str, Tensor] | None:
    """The tensors of a file, if it is whole and was made with the same settings, models and prompts."""
    cached = load_tensors(file, made_of)
    return cached and cached[0]
