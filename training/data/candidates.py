"""A round of reward-ranked learning: K images of each prompt by the model as it is, ranked, and the winners kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
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

SEED_OF_CANDIDATES = 5 * 10**8
"""Added to where a run's own seeds begin."""
MADE_OF = (
    *("reward", "winner", "images_per_prompt", "prompts_per_round", "rollout_steps", "cfg", "seed"),
    *("llm", "llm_model"),
)
"""The settings that a round's images and their order depend on, besides the prompts, the models' files and the trained
weights."""


class Round(NamedTuple):
    """The winners of P prompts."""

    number: int
    prompts: list[str]
    latents: Tensor
    """[P, C, h, w], float32, one a prompt."""
    scores: dict[str, Tensor]
    """Each reward of all images: [P, K]."""


def draw_round(
    config: ArlConfig,
    models: RunModels,
    texts: Sequence[str],
    number: int,
    weights: str,
    *,
    share: tuple[int, int] = (0, 1),
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Draw the images of round `number` that are not there yet, some prompts at a time, each a file.

    texts: the training prompts. weights: what tells the model's weights from others (`fingerprint_of`). share: of these
        files every n-th, from the i-th on, for one of n devices. stopped: asked before each file; what is drawn stays
        for the next start.

    Raises:
        RealignError: a file cannot be written.
    """
    files = parts(config, texts, number, models.sampler.max_batch)
    mine = list(files.items())[share[0] :: share[1]]
    for file, (start, prompts) in tqdm(mine, desc=f"images of round {number + 1}", disable=share[0] > 0):
        if stopped():
            return
        made_of = _made_of(config, prompts, weights)
        if _read(file, made_of) is None:
            _draw(config, models, prompts, number, start, file, made_of)


def read_round(config: ArlConfig, models: RunModels, texts: Sequence[str], number: int, weights: str) -> Round:
    """The winners of a round that was drawn.

    Raises:
        RealignError: a file of it is not there, as where devices do not write to one folder.
    """
    files = parts(config, texts, number, models.sampler.max_batch)
    read = [_read(file, _made_of(config, prompts, weights)) for file, (_, prompts) in files.items()]
    if missing := [file for file, part in zip(files, read, strict=True) if part is None]:
        raise RealignError(
            f"The round's images in '{missing[0]}' cannot be read, though they were just drawn: give an output that "
            "all devices write to and read from, and start again."
        )
    tensors = {name: torch.cat([part[name] for part in read]) for name in read[0]}
    latents = tensors.pop("winners")
    return Round(number, [text for _, prompts in files.values() for text in prompts], latents, tensors)


def parts(config: ArlConfig, texts: Sequence[str], number: int, at_once: int) -> dict[Path, tuple[int, list[str]]]:
    """Each file of a round with the prompts in it, and the place of the first of these in the round."""
    different = list(dict.fromkeys(texts))
    lots = random.Random(f"{config.seed} round {number}")
    chosen = lots.sample(different, min(config.prompts_per_round, len(different)))
    size = max(1, at_once // config.images_per_prompt)
    folder = Path(config.output) / "rounds" / f"{number + 1:04d}"
    return {
        folder / f"{start:06d}.safetensors": (start, chosen[start : start + size])
        for start in range(0, len(chosen), size)
    }


def winners(scores: Sequence[Tensor], how: str, lots: random.Random) -> Tensor:
    """The place of each prompt's winner among its images: one [P, K] a reward → [P]; `how` is the setting `winner`."""
    if how == "random":
        P, K = scores[0].shape
        return torch.tensor([lots.randrange(K) for _ in range(P)])
    return best_first(scores)[:, 0]


@torch.no_grad()
def _draw(
    config: ArlConfig,
    models: RunModels,
    prompts: list[str],
    number: int,
    start: int,
    file: Path,
    made_of: dict[str, object],
) -> None:
    P, K = len(prompts), config.images_per_prompt
    asked = [text for text in prompts for _ in range(K)]
    first = config.seed * 10**9 + SEED_OF_CANDIDATES + (number * config.prompts_per_round + start) * K
    noise = models.sampler.noise([first + i for i in range(P * K)])
    # P is 1 where a prompt has more images than are sampled at once
    batches = [slice(i, i + models.sampler.max_batch) for i in range(0, P * K, models.sampler.max_batch)]
    drawn = [_judged(config, models, asked[batch], noise[batch]) for batch in batches]
    latents, images = (torch.cat(parts) for parts in list(zip(*drawn, strict=True))[:2])
    scores = {name: torch.cat([own[name] for *_, own in drawn]).view(P, K) for name in models.rewards}
    won = winners(list(scores.values()), config.winner, random.Random(f"{config.seed} {file.name} {number}"))
    kept = latents.view(P, K, *latents.shape[1:])[torch.arange(P), won]
    _write(file, {"winners": kept.clone(), **scores}, made_of)
    if not start:
        order = best_first(list(scores.values())) + torch.arange(P)[:, None] * K
        _show(in_rows(to_pil(images[order.flatten()]), K), file.with_name("best-first.png"))


def _judged(
    config: ArlConfig, models: RunModels, asked: list[str], noise: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """An image for each prompt that is asked for, on the CPU: latents [N, C, h, w], float32, images [N, H, W, 3] in
    [0, 1], and what each reward says of them, [N].

    An image that is not finite, as may come of fp16, is black, and no reward says a number of it: it ranks last.
    """
    sampling = SamplingSettings(steps=config.rollout_steps, cfg=config.cfg)
    latents = models.sampler.sample_latents(asked, noise, sampling)
    images = models.sampler.decode(latents)
    broken = ~images.isfinite().flatten(1).all(1).cpu()
    images = images.where(images.isfinite(), 0.0)
    with models.rewards_on_device():
        scores = {name: reward(images, asked).float().cpu() for name, reward in models.rewards.items()}
    scores = {name: own.masked_fill(broken, torch.nan) for name, own in scores.items()}
    return latents.float().cpu(), images.cpu(), scores


def mean_reward(models: RunModels, scores: dict[str, Tensor]) -> float:
    """The mean weighted reward of all of a round's images that have one."""
    return float(weighted_sum(models.terms, scores).nanmean())


def fingerprint_of(weights: Sequence[Tensor]) -> str:
    """The same for equal weights; others hardly ever have it."""
    sums = [float(weight.detach().double().abs().sum()) for weight in weights]
    return fingerprint_of_texts([repr(value) for value in sums])


def _made_of(config: ArlConfig, prompts: Sequence[str], weights: str) -> dict[str, object]:
    """Settings, prompts, weights, and the contents of the files of the models that draw and judge."""
    needed = {"model", *models_of((term.name for term in config.terms), offline=True)}
    if config.llm and not is_server(config.llm):
        needed |= {"llm"}
    settings = {name: getattr(config, name) for name in MADE_OF if name not in needed}
    made_of = settings | {"prompts": fingerprint_of_texts(prompts), "weights": weights}
    return made_of | {f"files of {name}": value for name, value in fingerprint_models(config, sorted(needed)).items()}


def _write(file: Path, tensors: dict[str, Tensor], made_of: Mapping[str, object]) -> None:
    try:
        save_tensors(file, tensors, made_of)
    except RealignError as error:
        raise RealignError(
            f"The round's images could not be written to '{file}' ({reason(error.__cause__)}): make room there and "
            "start again; the run goes on where it was."
        ) from error


def _show(picture: Image.Image, file: Path) -> None:
    """For the eyes only, so a full disk ends nothing here."""
    try:
        write_picture(file, picture)
    except RealignError as error:
        tqdm.write(f"{error} The run goes on.")


def _read(file: Path, made_of: Mapping[str, object]) -> dict[str, Tensor] | None:
    """What a file holds, if it is whole and made by the same settings and models of the same prompts."""
    cached = load_tensors(file, made_of)
    return None if cached is None else cached.tensors
