"""The images for L_pre (eq. 5), the denoising loss that keeps the model able to draw them.

The paper trains on captions only, so the images are sampled once from the frozen model and cached beside the run. With
the captioner's caption instead of the prompt a pair is right even if the model mixed things up. The likelihood of a
caption tells fairly well whether the captioner is right, so the training can be restricted to the likeliest pairs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

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
from ..loop.models import RunModels, fingerprint_models, reward_device_and_dtype
from ..settings.refl import ReflConfig
from ..state.tensor_cache import load_tensors, save_tensors
from .pairs import Pairs

logger = logging.getLogger(__name__)
MADE_OF = ("prior_captions", "prior_images", "prior_steps", "cfg", "seed")
"""The settings on which the frozen model's images depend, besides the prompts and the models' files."""


class FrozenImages(NamedTuple):
    """Images that the untrained model drew."""

    latents: Tensor  # [N, C, h, w], float32
    captions: list[str]  # one per image
    likelihoods: Tensor | None
    """[N] in (-inf, 0]: the captioner's mean log-likelihood of each caption; None if all images are used."""

    def select_likeliest(self, share: float) -> tuple[Tensor, list[str]]:
        """The latents and captions of the likeliest `share` of the images, at least one, in their order."""
        if self.likelihoods is None:
            return self.latents, self.captions
        count = max(1, round(share * len(self.captions)))
        selected = self.likelihoods.nan_to_num(nan=-math.inf).topk(count).indices.sort().values
        return self.latents[selected], [self.captions[i] for i in selected.tolist()]


def prior_captioner(config: ReflConfig, models: RunModels) -> Captioner | None:
    """The captioner for the frozen model's images: the caption reward's if there is one; None if none is needed."""
    needed = config.prior.prior_captions == "captioner" or config.prior.prior_keep < 1
    if not (config.prior.prior_weight and config.prior.prior == "frozen" and needed):
        return None
    reward: Any = models.rewards.get(CaptionReward.name)
    if reward is not None:
        return reward.captioner
    placement = reward_device_and_dtype(config, models.device)
    return Captioner.load(model_path(config.model.captioner, "captioner"), *placement)


def frozen_prior(
    sampler: DiffusersSampler,
    captioner: Captioner | None,
    prompts: Sequence[str],
    config: ReflConfig,
    on_image: Callable[[int], object] = lambda count: None,
) -> Pairs:
    """`prior_images` images of the prompts in turn, sampled from the untrained model or cached by an earlier start; of
    these the likeliest share `prior_keep`.

    captioner: see `prior_captioner`. on_image: called with the number of images just made.
    """
    scored, file = config.prior.prior_keep < 1, Path(config.run.output) / "prior.safetensors"
    captioned = config.prior.prior_captions == "captioner" or scored
    made_of = {name: config.to_dict()[name] for name in MADE_OF} | {"prompts": fingerprint_of_texts(prompts)}
    made_of |= fingerprint_models(config, ["model", *(["captioner"] if captioned else [])])
    cached = load_tensors(file, made_of)
    if cached is not None and (not scored or "likelihoods" in cached[0]):
        tensors, captions = cached
        images = FrozenImages(tensors["latents"], captions, tensors["likelihoods"] if scored else None)
    else:
        images = _sample(sampler, captioner, prompts, config, on_image)
        tensors = {name: tensor for name, tensor in images._asdict().items() if isinstance(tensor, Tensor)}
        try:
            save_tensors(file, tensors, made_of, images.captions)
        except RealignError as error:
            logger.warning("%s A run that goes on has to sample its images again.", error)
    return Pairs(*images.select_likeliest(config.prior.prior_keep), config.prior.prior_min_timestep)


@torch.no_grad()
def _sample(
    sampler: DiffusersSampler,
    captioner: Captioner | None,
    prompts: Sequence[str],
    config: ReflConfig,
    on_image: Callable[[int], object],
) -> FrozenImages:
    cycled = [prompts[i % len(prompts)] for i in range(config.prior.prior_images)]
    sampling = SamplingSettings(steps=config.prior.prior_steps, cfg=config.rollout.cfg)
    likelihood = None
    if captioner is not None and config.prior.prior_keep < 1:
        likelihood = PromptLikelihood(CaptionLikelihood(captioner))
    latents, captions, likelihoods = [], [], []
    for start in range(0, len(cycled), sampler.max_batch):
        texts = cycled[start : start + sampler.max_batch]
        noise = sampler.noise([config.run.seed + 10**6 + start + i for i in range(len(texts))])
        batch = sampler.sample_latents(texts, noise, sampling)
        latents.append(batch.float().cpu())
        relabelled = config.prior.prior_captions == "captioner"
        batch_captions = texts
        if captioner is not None and (relabelled or likelihood):
            images = sampler.decode(batch)
            if relabelled:
                batch_captions = captioner.caption(images)
            if likelihood:
                likelihoods.append(likelihood(images, batch_captions).cpu())
        captions += batch_captions
        on_image(len(texts))
    return FrozenImages(torch.cat(latents).clone(), captions, torch.cat(likelihoods) if likelihoods else None)


@torch.no_grad()
def folder_prior(
    folder: Path,
    sampler: DiffusersSampler,
    resolution: int,
    min_timestep: int = 0,
    report: Callable[[str], None] = logger.warning,
) -> Pairs:
    """The images of a folder, each beside a `.txt` file with its caption, cropped to a square of `resolution` pixels.

    report: called with a sentence for each reason why images were skipped.
    """
    if not folder.is_dir():
        raise RealignError(f"There is no folder '{folder}' of images with captions: give another prior, or frozen.")
    files, left_out = find_pictures(folder)
    skipped: dict[str, list[Path]] = {}
    latents, captions = [], []
    for picture, caption in _pair_with_captions(files, skipped):
        try:
            cut = ImageOps.fit(open_picture(picture), (resolution, resolution), Image.Resampling.BICUBIC)
        except Exception:  # Pillow raises errors of many kinds
            skipped.setdefault("that cannot be read", []).append(picture)
            continue
        latents.append(_encode(cut, sampler))
        captions.append(caption)
    for reason, pictures in skipped.items():
        report(f"Skipped in '{folder}': {count_noun(len(pictures), 'image')} {reason} ({list_names(pictures)}).")
    if left_out:
        report(left_out)
    if not captions:
        raise RealignError(
            f"'{folder}' has no image that can be read beside a .txt file with its caption: give such pairs, or frozen."
        )
    return Pairs(torch.cat(latents), captions, min_timestep)


def _pair_with_captions(files: Sequence[Path], skipped: dict[str, list[Path]]) -> Iterator[tuple[Path, str]]:
    """Yields each image that has a caption to itself, with the caption; adds the others to `skipped`, by reason."""
    images: dict[Path, list[Path]] = {}
    for file in files:
        images.setdefault(file.with_suffix(".txt"), []).append(file)
    for text, sharing in images.items():
        if not text.is_file():
            skipped.setdefault("without a .txt file beside it", []).extend(sharing)
        elif len(sharing) > 1:
            skipped.setdefault("that share a .txt file with another", []).extend(sharing)
        else:
            caption = ""
            with suppress(OSError, UnicodeDecodeError):
                caption = text.read_text(encoding="utf-8-sig").strip()
            if caption:
                yield sharing[0], caption
            else:
                skipped.setdefault("whose .txt file is empty or not UTF-8", []).extend(sharing)


def _encode(picture: Image.Image, sampler: DiffusersSampler) -> Tensor:
    """The latents [1, C, h, w] of an RGB picture, float32 on the CPU."""
    vae = sampler.vae
    pixels = torch.from_numpy(np.array(picture, np.float32)).permute(2, 0, 1)[None].to(vae.device, vae.dtype)
    return vae.encode(pixels / 127.5 - 1).latent_dist.mean.float().cpu() * vae.config.scaling_factor
