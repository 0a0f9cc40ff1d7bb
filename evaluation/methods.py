"""The methods that are compared: ways to make an image of a prompt. On the command line they are written

    base                 the model as it came
    fine                 its images, re-aligned
    fine-all             re-aligned, and each re-aligned image kept, whatever its reward
    redraw               a control: sampled from other noise where `fine` would re-align, with the same choice
    NAME=FILE            the model with the LoRA or the UNet that a training run wrote
    NAME=FILE+fine       … and re-aligned (or +fine-all, +redraw)
    both                 the one method with weights, re-aligned
    NAME=FOLDER          another system's images

All sample prompt i from the same noise, except for the second image of `redraw`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from ..core.embedded import COARSE_LORA, DEMO
from ..core.errors import RealignError
from ..pipeline.realign import (
    CaptionedImage,
    Models,
    Progress,
    RealignResult,
    RealignSettings,
    apply_keep_better,
    caption_and_score,
    no_progress,
    realign_batch,
)
from ..rewards.gate import passes_gate, replaces
from ..sampling.sampler import DiffusersSampler

PLAIN, FINE, FINE_ALL, REDRAW = "plain", "fine", "fine-all", "redraw"
BASE, BOTH = "base", "both"
NAMES = {BASE: "base", FINE: "+ fine", FINE_ALL: "+ fine, every image kept", REDRAW: "+ redraw", BOTH: "both"}
"""Methods that are given by one word, and their names in tables."""
REDRAW_SEED_OFFSET = 10_000
"""Added to a prompt's seed for its redraw."""


@dataclass(frozen=True)
class Method:
    """A row of the tables."""

    name: str
    way: str = PLAIN
    """PLAIN, FINE, FINE_ALL or REDRAW."""
    weights: Path | None = None
    """The file of a LoRA or a UNet; None: the model as it came."""
    images: Path | None = None
    """The folder of another system's images."""

    @property
    def slug(self) -> str:
        """The name of the method's folder."""
        return "-".join(re.findall(r"\w+", self.name.lower()))[:60]

    @property
    def needs_perception(self) -> bool:
        """Whether it needs the captioner, tagger, detector and segmenter besides the text-to-image model."""
        return self.images is None and self.way != PLAIN


def parse_methods(texts: Sequence[str]) -> list[Method]:
    """The methods that the texts of `--method` name, in the same order."""
    parsed = [_parse(text) for text in texts]
    methods = [method for method in parsed if method is not None]
    weights = {method.weights for method in methods if method.weights is not None}
    if None in parsed:
        if len(weights) != 1:
            many = f"there are {len(weights)}" if weights else "there are none"
            raise RealignError(
                f"--method both re-aligns the one method that has weights of its own, and {many}: give one "
                "--method NAME=FILE.safetensors, or write NAME=FILE.safetensors+fine in place of both."
            )
        both = Method(NAMES[BOTH], FINE, *weights)
        methods = [both if method is None else method for method in parsed]
    seen: dict[str, Method] = {}
    for method in methods:
        if not method.slug:
            raise RealignError(f"A method is called '{method.name}': give it a name with a letter or a digit.")
        if (other := seen.setdefault(method.slug, method)) is not method:
            raise RealignError(
                f"Two methods, '{other.name}' and '{method.name}', would share the folder '{method.slug}': rename one."
            )
    return methods


def _parse(text: str) -> Method | None:
    """One method; None for `both`, which depends on the others."""
    if text == BOTH:
        return None
    if text in NAMES:
        return Method(NAMES[text], PLAIN if text == BASE else text)
    name, equals, place = (part.strip() for part in text.partition("="))
    if not equals:
        raise RealignError(
            f"--method is '{text}'; give {', '.join(NAMES)}, NAME=FILE.safetensors, NAME=FILE.safetensors+fine or "
            "NAME=FOLDER of images."
        )
    file, plus, way = place.rpartition("+")
    if not plus or way not in (FINE, FINE_ALL, REDRAW) or Path(place).exists():
        file, way = place, PLAIN
    if file == DEMO:
        return Method(name, way, COARSE_LORA)
    path = Path(file)
    if path.is_dir() and way == PLAIN:
        return Method(name, images=path)
    if not path.is_file():
        raise RealignError(f"There is no file or folder '{file}' for the method '{name}': check the path.")
    return Method(name, way, path)


@dataclass(frozen=True)
class MethodImage:
    """A prompt's image by one method."""

    image: Tensor
    """[H, W, 3] in [0, 1]."""
    result: RealignResult | None = None
    """How it was re-aligned; None for methods that do not."""


def sample_plain(
    sampler: DiffusersSampler,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: RealignSettings,
    on_progress: Progress,
    doing: str = "image",
) -> Tensor:
    """Images [B, H, W, 3] in [0, 1], one per prompt, from the noise of its seed."""
    return sampler.sample(prompts, sampler.noise(seeds), settings.sampling, on_step=partial(on_progress, doing))


def sample_methods(
    models: Models,
    prompts: Sequence[str],
    seeds: Sequence[int],
    ways: Collection[str],
    settings: RealignSettings,
    on_progress: Progress = no_progress,
) -> dict[str, list[MethodImage]]:
    """Each prompt's image in several ways, from the same noise. `keep_better` does not apply to FINE_ALL."""
    results: list[RealignResult] = []
    if {FINE, FINE_ALL} & set(ways):
        results = realign_batch(models, prompts, seeds, replace(settings, keep_better=False), on_progress)
        before = [result.before for result in results]
    else:
        images = sample_plain(models.sampler, prompts, seeds, settings, on_progress)
        before = caption_and_score(models, images, prompts)
    out = {PLAIN: [MethodImage(coarse.image) for coarse in before]}
    out[FINE_ALL] = [MethodImage(result.after.image, result) for result in results]
    chosen = [apply_keep_better(result) for result in results] if settings.keep_better else results
    out[FINE] = [MethodImage(result.after.image, result) for result in chosen]
    if REDRAW in ways:
        again = redraw(models, prompts, seeds, before, settings, on_progress)
        out[REDRAW] = [MethodImage(chosen.image) for chosen in again]
    return {way: out[way] for way in ways}


def redraw(
    models: Models,
    prompts: Sequence[str],
    seeds: Sequence[int],
    before: Sequence[CaptionedImage],
    settings: RealignSettings,
    on_progress: Progress = no_progress,
) -> list[CaptionedImage]:
    """The coarse images; those that fail the gate may be replaced by plain samples from other noise."""
    out = list(before)
    failed = [i for i, image in enumerate(before) if not passes_gate(image.reward, settings.gate)]
    if not failed:
        return out
    texts = [prompts[i] for i in failed]
    other_seeds = [seeds[i] + REDRAW_SEED_OFFSET for i in failed]
    images = sample_plain(models.sampler, texts, other_seeds, settings, on_progress, "second image")
    for i, image in zip(failed, caption_and_score(models, images, texts), strict=True):
        if replaces(out[i].reward, image.reward, settings.keep_better):
            out[i] = image
    return out
