"""L_pre of eq. 5: the denoising loss on images that the model should stay able to draw.

The paper trains on captions only, so the images are sampled once from the frozen model and kept beside the run. Paired
with the captioner's words in place of the prompt, a pair is right even where the model mixed things up. The captioner
is not always right, but how likely its words are tells fairly well when: the likeliest pairs may be kept alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...core.embedded import model_path
from ...core.errors import RealignError
from ...core.fingerprint import fingerprint_of_texts
from ...core.pictures import count_noun, find_pictures, list_names, open_picture
from ...perception.captioner import Captioner
from ...rewards.caption import CaptionReward
from ...rewards.caption_gradient import PromptLikelihood
from ...rewards.caption_likelihood import CaptionLikelihood
from ...sampling.sampler import DiffusersSampler
from ...sampling.settings import SamplingSettings
from ..loop.models import Trained, fingerprints, judges_place
from ..settings.refl import ReflConfig
from ..state.kept import keep, kept
from .pairs import Pairs

logger = logging.getLogger(__name__)
MADE_OF = ("prior_captions", "prior_images", "prior_steps", "cfg", "seed")
"""The settings that the images of the frozen model depend on, besides the prompts and the models' files."""


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
    asked = config.prior.prior_captions == "captioner" or config.prior.prior_keep < 1
    if not (config.prior.prior_weight and config.prior.prior == "frozen" and asked):
        return None
    reward = models.rewards.get(CaptionReward.name)
    if reward is not None:
        return reward.captioner
    return Captioner.load(model_path(config.model.captioner, "captioner"), *judges_place(config, models.device))


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
    file, made_of = Path(config.run.output) / "prior.safetensors", _made_of(config, prompts)
    drawn = _kept(file, made_of, scored=config.prior.prior_keep < 1)
    if drawn is None:
        drawn = _draw(sampler, captioner, prompts, config, on_image)
        _keep(file, made_of, drawn)
    return Pairs(*drawn.likeliest(config.prior.prior_keep), config.prior.prior_min_timestep)


@torch.no_grad()
def _draw(
    sampler: DiffusersSampler,
    captioner: Captioner | None,
    prompts: Sequence[str],
    config: ReflConfig,
    on_image: Callable[[int], None],
) -> Drawn:
    asked = [prompts[i % len(prompts)] for i in range(config.prior.prior_images)]
    sampling = SamplingSettings(steps=config.prior.prior_steps, cfg=config.rollout.cfg)
    likelihood = PromptLikelihood(CaptionLikelihood(captioner)) if config.prior.prior_keep < 1 else None
    latents, captions, likelihoods = [], [], []
    for start in range(0, len(asked), sampler.max_batch):
        texts = asked[start : start + sampler.max_batch]
        noise = sampler.noise([config.run.seed + 10**6 + start + i for i in range(len(texts))])
        drawn = sampler.sample_latents(texts, noise, sampling)
        latents.append(drawn.float().cpu())
        relabelled = config.prior.prior_captions == "captioner"
        images = sampler.decode(drawn) if relabelled or likelihood else None
        words = captioner.caption(images) if relabelled else texts
        captions += words
        if likelihood:
            likelihoods.append(likelihood(images, words).cpu())
        on_image(len(texts))
    return Drawn(torch.cat(latents).clone(), captions, torch.cat(likelihoods) if likelihoods else None)


def _made_of(config: ReflConfig, prompts: Sequence[str]) -> dict[str, object]:
    """Settings, prompts, and the contents of the models' files; of the captioner's where it was asked."""
    asked = config.prior.prior_captions == "captioner" or config.prior.prior_keep < 1
    models = fingerprints(config, ["model", *(["captioner"] if asked else [])])
    return {name: config.to_dict()[name] for name in MADE_OF} | {"prompts": fingerprint_of_texts(prompts)} | models


def _keep(file: Path, made_of: dict[str, object], drawn: Drawn) -> None:
    """For the next start of the same run."""
    tensors = {name: tensor for name, tensor in drawn._asdict().items() if isinstance(tensor, Tensor)}
    try:
        keep(file, tensors, made_of, drawn.captions)
    except RealignError as error:
        logger.warning("%s A run that goes on has to sample its images again.", error)


def _kept(file: Path, made_of: dict[str, object], *, scored: bool) -> Drawn | None:
    """What an earlier start of the same run drew; with its likelihoods where these are asked for."""
    found = kept(file, made_of)
    if found is None or (scored and "likelihoods" not in found.tensors):
        return None
    return Drawn(found.tensors["latents"], found.about, found.tensors["likelihoods"] if scored else None)


@torch.no_grad()
def folder_prior(
    folder: Path,
    sampler: DiffusersSampler,
    resolution: int,
    min_timestep: int = 0,
    report: Callable[[str], None] = logger.warning,
) -> Pairs:
    """The images of a folder, each beside a `.txt` file with its caption, cut to a square of `resolution` pixels.

    Images are opened as `scripts/caption.py` opens them.

    report: called with a sentence that counts and names what was skipped, for each reason.

    Raises:
        RealignError: there is no such pair.
    """
    if not folder.is_dir():
        raise RealignError(f"There is no folder '{folder}' of images with captions: give another prior, or frozen.")
    files, left_out = find_pictures(folder)
    skipped: dict[str, list[Path]] = {}
    latents, captions = [], []
    for picture, caption in _captioned(files, skipped):
        try:
            cut = ImageOps.fit(open_picture(picture), (resolution, resolution), Image.Resampling.BICUBIC)
        except Exception:  # Pillow raises errors of many kinds
            skipped.setdefault("that cannot be read", []).append(picture)
            continue
        latents.append(_encoded(cut, sampler))
        captions.append(caption)
    for sentence in _in_words(folder, skipped, left_out):
        report(sentence)
    if not captions:
        raise RealignError(
            f"'{folder}' has no image that can be read beside a .txt file with its caption: give such pairs, or frozen."
        )
    return Pairs(torch.cat(latents), captions, min_timestep)


def _captioned(files: Sequence[Path], skipped: dict[str, list[Path]]) -> Iterator[tuple[Path, str]]:
    """The images that have a caption of their own, with it; the others go to `skipped`, under the reason."""
    images: dict[Path, list[Path]] = {}
    for file in files:
        images.setdefault(file.with_suffix(".txt"), []).append(file)
    for text, of_text in images.items():
        if not text.is_file():
            skipped.setdefault("without a .txt file beside it", []).extend(of_text)
        elif len(of_text) > 1:
            skipped.setdefault("that share a .txt file with another", []).extend(of_text)
        elif caption := _caption(text):
            yield of_text[0], caption
        else:
            skipped.setdefault("whose .txt file is empty or not UTF-8", []).extend(of_text)


def _caption(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _encoded(picture: Image.Image, sampler: DiffusersSampler) -> Tensor:
    """The latents [1, C, h, w] of an RGB picture, float32 on the CPU."""
    vae = sampler.vae
    pixels = torch.from_numpy(np.array(picture, np.float32)).permute(2, 0, 1)[None].to(vae.device, vae.dtype)
    return vae.encode(pixels / 127.5 - 1).latent_dist.mean.float().cpu() * vae.config.scaling_factor


def _in_words(folder: Path, skipped: dict[str, list[Path]], left_out: str) -> list[str]:
    """A sentence for each reason why images are not learnt from."""
    sentences = [
        f"Skipped in '{folder}': {count_noun(len(files), 'image')} {reason} ({list_names(files)})."
        for reason, files in skipped.items()
    ]
    return [*sentences, *([left_out] if left_out else [])]
