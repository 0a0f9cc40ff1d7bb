"""L_pre of eq. 5: the denoising loss on images that the model should stay able to draw.

The paper trains on captions only, so the images are sampled once from the frozen model and kept beside the run. Paired
with the captioner's words in place of the prompt, a pair is right even where the model mixed things up. The captioner
is not always right, but how likely its words are tells fairly well when: the likeliest pairs may be kept alone.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..core.errors import RealignError
from ..perception.captioner import Captioner
from ..perception.speech import Speech
from ..pipeline.sampler import DiffusersSampler
from ..pipeline.settings import SamplingSettings
from ..rewards.caption import CaptionReward
from ..rewards.caption_gradient import PromptLikelihood
from .models import Trained, judges_place, place
from .pairs import Pairs
from .prompts import fingerprint
from .refl_settings import ReflConfig

logger = logging.getLogger(__name__)
MADE_OF = ("model", "captioner", "prior_captions", "prior_images", "prior_steps", "cfg", "seed")
"""The settings that the images of the frozen model depend on, besides the prompts."""
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}


class Drawn(NamedTuple):
    """The images that the untrained model drew."""

    latents: Tensor
    """[N, C, h, w], float32."""
    captions: list[str]
    """The words that each is paired with."""
    likelihoods: Tensor | None
    """[N] in (-inf, 0]: mean log-likelihood of those words as the captioner's; None where all are learnt from."""

    def likeliest(self, share: float) -> tuple[Tensor, list[str]]:
        """The latents and captions of that share of them, at least one, in their order."""
        if self.likelihoods is None:
            return self.latents, self.captions
        count = max(1, round(share * len(self.captions)))
        kept = self.likelihoods.nan_to_num(nan=-math.inf).topk(count).indices.sort().values
        return self.latents[kept], [self.captions[i] for i in kept.tolist()]


def prior_captioner(config: ReflConfig, models: Trained) -> Captioner | None:
    """What looks at the frozen model's images: the caption reward's captioner, else one of its own; None where nothing
    has to be said of them.

    Raises:
        RealignError: there is none where `captioner` says.
    """
    asked = config.prior_captions == "captioner" or config.prior_keep < 1
    if not (config.prior_weight and config.prior == "frozen" and asked):
        return None
    reward = models.rewards.get(CaptionReward.name)
    if reward is not None:
        return reward.captioner
    return Captioner.load(place(config.captioner, "blip2_captioner"), *judges_place(config, models.device))


def frozen_prior(
    sampler: DiffusersSampler,
    captioner: Captioner | None,
    prompts: Sequence[str],
    config: ReflConfig,
    on_image: Callable[[int], None] = lambda count: None,
) -> Pairs:
    """`prior_images` images of the prompts in turn, sampled from the untrained model, or those an earlier start kept;
    of these the likeliest, as `prior_keep` says.

    captioner: see `prior_captioner`. on_image: called with how many were just made.
    """
    file = Path(config.output) / "prior.safetensors"
    made_of = json.dumps({name: getattr(config, name) for name in MADE_OF} | {"prompts": fingerprint(prompts)})
    drawn = _kept(file, made_of, scored=config.prior_keep < 1)
    if drawn is None:
        drawn = _draw(sampler, captioner, prompts, config, on_image)
        _keep(file, made_of, drawn)
    return Pairs(*drawn.likeliest(config.prior_keep), config.prior_min_timestep)


@torch.no_grad()
def _draw(
    sampler: DiffusersSampler,
    captioner: Captioner | None,
    prompts: Sequence[str],
    config: ReflConfig,
    on_image: Callable[[int], None],
) -> Drawn:
    asked = [prompts[i % len(prompts)] for i in range(config.prior_images)]
    sampling = SamplingSettings(steps=config.prior_steps, cfg=config.cfg)
    likelihood = PromptLikelihood(Speech(captioner)) if config.prior_keep < 1 else None
    latents, captions, likelihoods = [], [], []
    for start in range(0, len(asked), sampler.at_once):
        texts = asked[start : start + sampler.at_once]
        noise = sampler.noise([config.seed + 10**6 + start + i for i in range(len(texts))])
        drawn = sampler.latents(texts, noise, sampling)
        latents.append(drawn.float().cpu())
        relabelled = config.prior_captions == "captioner"
        images = sampler.decode(drawn) if relabelled or likelihood else None
        words = captioner.caption(images) if relabelled else texts
        captions += words
        if likelihood:
            likelihoods.append(likelihood(images, words).cpu())
        on_image(len(texts))
    return Drawn(torch.cat(latents).clone(), captions, torch.cat(likelihoods) if likelihoods else None)


def _keep(file: Path, made_of: str, drawn: Drawn) -> None:
    """For the next start of the same run."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    told = {"captions": json.dumps(drawn.captions), "made_of": made_of}
    tensors = {name: tensor for name, tensor in drawn._asdict().items() if isinstance(tensor, Tensor)}
    try:
        save_file(tensors, part, told)
        part.replace(file)
    except (OSError, SafetensorError) as error:
        logger.warning("%s could not be kept (%s); a run that goes on has to sample its images again.", file, error)


@torch.no_grad()
def folder_prior(folder: Path, sampler: DiffusersSampler, resolution: int, min_timestep: int = 0) -> Pairs:
    """The images of a folder, each beside a `.txt` file with its caption, cut to a square of `resolution` pixels.

    Raises:
        RealignError: there is no such pair.
    """
    pairs = [(file, file.with_suffix(".txt")) for file in sorted(folder.rglob("*")) if file.suffix.lower() in PICTURES]
    pairs = [(picture, text) for picture, text in pairs if text.is_file()]
    if not pairs:
        raise RealignError(f"'{folder}' has no image beside a .txt file with its caption: give such pairs, or frozen.")
    vae, latents = sampler.vae, []
    for picture, _ in pairs:
        try:
            cut = ImageOps.fit(Image.open(picture).convert("RGB"), (resolution, resolution), Image.BICUBIC)
        except (OSError, SyntaxError, ValueError) as error:
            raise RealignError(f"'{picture}' is not an image that can be read ({error}): mend or remove it.") from error
        pixels = torch.from_numpy(np.array(cut, np.float32)).permute(2, 0, 1)[None].to(vae.device, vae.dtype)
        latents.append(vae.encode(pixels / 127.5 - 1).latent_dist.mean.float().cpu() * vae.config.scaling_factor)
    return Pairs(torch.cat(latents), [_text(file) for _, file in pairs], min_timestep)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise RealignError(f"'{file}' is not UTF-8: save it as UTF-8.") from error


def _kept(file: Path, made_of: str, *, scored: bool) -> Drawn | None:
    """What an earlier start of the same run drew; with its likelihoods where these are asked for."""
    if not file.is_file():
        return None
    with safe_open(file, "pt") as opened:
        told, names = opened.metadata(), set(opened.keys())
        if told["made_of"] != made_of or (scored and "likelihoods" not in names):
            return None
        likelihoods = opened.get_tensor("likelihoods") if scored else None
        return Drawn(opened.get_tensor("latents"), json.loads(told["captions"]), likelihoods)
