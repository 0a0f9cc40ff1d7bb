"""The ways of making an image of a prompt that are compared, as they are written on the command line.

    base                 the model as it came
    fine                 its images, re-aligned
    fine-all             re-aligned, and each re-aligned image kept, whatever its reward
    redraw               a control: drawn again from other noise where `fine` would re-align, with the same choice
    NAME=FILE            the model with the LoRA or the UNet that a training run wrote
    NAME=FILE+fine       … and re-aligned (or +fine-all, +redraw)
    both                 the one method that has weights of its own, re-aligned
    NAME=FOLDER          images that something else made

All draw prompt i from the same noise, but for the second image of `redraw`.
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
"""The methods that need no more than a word, and what tables call them."""
OTHER_NOISE = 10_000
"""Added to a prompt's seed for its redraw."""


@dataclass(frozen=True)
class Method:
    """A row of the tables."""

    name: str
    way: str = PLAIN
    """PLAIN, FINE, FINE_ALL or REDRAW."""
    weights: Path | None = None
    """What is put into the model; None: nothing."""
    images: Path | None = None
    """The folder of the images, where another system made them."""

    @property
    def slug(self) -> str:
        """The name of the method's folder."""
        return "-".join(re.findall(r"\w+", self.name.lower()))[:60]

    @property
    def looks(self) -> bool:
        """Whether it needs what looks at images."""
        return self.images is None and self.way != PLAIN


def parse(texts: Sequence[str]) -> list[Method]:
    """The methods of `--method`'s texts, in their order.

    Raises:
        RealignError: one is none, two would have one name, or `both` has no weights, or several, to take.
    """
    methods = [_parse(text) for text in texts]
    own = {method.weights for method in methods if method is not None and method.weights is not None}
    if None in methods:
        if len(own) != 1:
            many = f"there are {len(own)}" if own else "there are none"
            raise RealignError(
                f"--method both re-aligns the one method that has weights of its own, and {many}: give one "
                "--method NAME=FILE.safetensors, or write NAME=FILE.safetensors+fine in place of both."
            )
        both = Method(NAMES[BOTH], FINE, *own)
        methods = [both if method is None else method for method in methods]
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
class Drawn:
    """A prompt's image by one method."""

    image: Tensor
    """[H, W, 3] in [0, 1]."""
    result: RealignResult | None = None
    """How it was re-aligned, if it was."""


def plain(
    sampler: DiffusersSampler,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: RealignSettings,
    on_progress: Progress,
    doing: str = "image",
) -> Tensor:
    """One image a prompt, from the noise of its seed: [B, H, W, 3] in [0, 1]."""
    return sampler.sample(prompts, sampler.noise(seeds), settings.sampling, on_step=partial(on_progress, doing))


def draw(
    models: Models,
    prompts: Sequence[str],
    seeds: Sequence[int],
    ways: Collection[str],
    settings: RealignSettings,
    on_progress: Progress = no_progress,
) -> dict[str, list[Drawn]]:
    """The prompts' images in several ways, from the same noise: what they have in common is made once.

    `settings.keep_better` is the choice of FINE and REDRAW; FINE_ALL makes none.
    """
    results: list[RealignResult] = []
    if {FINE, FINE_ALL} & set(ways):
        results = realign_batch(models, prompts, seeds, replace(settings, keep_better=False), on_progress)
        before = [result.before for result in results]
    else:
        before = caption_and_score(models, plain(models.sampler, prompts, seeds, settings, on_progress), prompts)
    out = {PLAIN: [Drawn(seen.image) for seen in before]}
    chosen = [apply_keep_better(result) for result in results] if settings.keep_better else results
    out[FINE], out[FINE_ALL] = ([Drawn(own.after.image, own) for own in made] for made in (chosen, results))
    if REDRAW in ways:
        out[REDRAW] = [Drawn(seen.image) for seen in redraw(models, prompts, seeds, before, settings, on_progress)]
    return {way: out[way] for way in ways}


def redraw(
    models: Models,
    prompts: Sequence[str],
    seeds: Sequence[int],
    looks: Sequence[CaptionedImage],
    settings: RealignSettings,
    on_progress: Progress = no_progress,
) -> list[CaptionedImage]:
    """The images that the gate does not protect drawn once more, plainly, from other noise; the choice is `fine`'s."""
    out = list(looks)
    wrong = [i for i, seen in enumerate(looks) if not passes_gate(seen.reward, settings.gate)]
    if not wrong:
        return out
    texts = [prompts[i] for i in wrong]
    others = [seeds[i] + OTHER_NOISE for i in wrong]
    images = plain(models.sampler, texts, others, settings, on_progress, "second image")
    again = caption_and_score(models, images, texts)
    for i, seen in zip(wrong, again, strict=True):
        if replaces(out[i].reward, seen.reward, settings.keep_better):
            out[i] = seen
    return out
