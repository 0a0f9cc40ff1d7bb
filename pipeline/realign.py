"""The whole method, from prompt to re-aligned image.

coarse image → caption reward → gate (good enough: stop) → tags → phrases and likelihoods → boxes and masks
→ the same noise again, attention re-weighted inside the masks → re-aligned image → caption reward
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..attention.equation.settings import ModulationSettings
from ..attention.equation.tokens import token_positions
from ..core.describe import describe_unhelped, quote_phrases
from ..core.errors import RealignError
from ..core.regions import UNLIKELY, Region, RegionSet
from ..core.text import encodable
from ..language.binding import bind_tags
from ..language.model import LanguageModel
from ..language.offline_scorer import OfflineScorer
from ..perception.captioner import Captioner
from ..perception.detector import NMS
from ..perception.grounded_sam import BOX_THRESHOLD, Boxes, GroundedSam, check_grounding
from ..perception.tagger import Tagger, check_threshold
from ..perception.text_encoder import TextEncoder
from ..rewards.caption import CaptionReward
from ..rewards.gate import passes_gate, replaces
from ..sampling.settings import SamplingSettings

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from ..sampling.sampler import DiffusersSampler

Progress = Callable[[str, int, int], None]
"""Called with (current activity, step, steps); raise an exception in it to interrupt."""


def no_progress(doing: str, step: int, steps: int) -> None:
    pass


@dataclass(frozen=True)
class Models:
    """The models of the loop: text-to-image, caption reward, tagger, language model, detector and segmenter."""

    sampler: DiffusersSampler
    reward: CaptionReward
    tagger: Tagger
    language_model: LanguageModel
    grounded_sam: GroundedSam

    @classmethod
    def load(
        cls,
        sampler: DiffusersSampler,
        paths: Mapping[str, Path],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        language_model: LanguageModel | None = None,
    ) -> Models:
        """Load the models around a sampler. Only the captioner is in `dtype`: fp16 changes the others' scores.

        paths: of captioner, text_encoder, tagger, detector, segmenter. language_model: by default the offline scorer.

        Raises:
            RealignError: a model cannot be read.
        """
        text_encoder = TextEncoder.load(paths["text_encoder"], device)
        return cls(
            sampler=sampler,
            reward=CaptionReward(Captioner.load(paths["captioner"], device, dtype), text_encoder),
            tagger=Tagger.load(paths["tagger"], device),
            language_model=language_model or OfflineScorer(text_encoder),
            grounded_sam=GroundedSam.load(paths["detector"], paths["segmenter"], device),
        )


@dataclass(frozen=True, kw_only=True)
class RealignSettings:
    """The settings of the loop; the paper's values where it has them. A value out of its range is a RealignError."""

    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    modulation: ModulationSettings = field(default_factory=ModulationSettings)
    isolate_phrases: bool = True
    """Encode the regions' phrases alone, as the code of DenseDiffusion does, on which the paper builds; see
    `sampling.prompt_encoding`."""
    gate: float | None = None
    """An image with at least this caption reward, in [-1, 1], is left alone; None (the paper): no image is."""
    keep_better: bool = False
    """Keep the coarse image unless the re-aligned one has a higher caption reward; the paper does not."""
    tag_threshold: float | None = None
    """Least confidence of a tag, in [0, 1]; None: each tag's own threshold."""
    box_threshold: float = BOX_THRESHOLD
    """Least grounding score of a box, in [0, 1]."""
    boxes: Boxes = "one"
    """"one" box per phrase, or "all" boxes that score best for the phrase ("three red apples")."""
    nms: float = NMS
    """IoU from which two boxes count as the same object, in [0, 1]."""
    min_area: float = 0.0
    """Least fraction of the image that a mask must cover, in [0, 1]."""

    def __post_init__(self) -> None:
        check_grounding(**self.grounding)
        if self.gate is not None and not math.isfinite(self.gate):
            raise RealignError(f"gate is {self.gate}; give a number from -1 to 1, or none.")
        check_threshold(self.tag_threshold)

    @property
    def grounding(self) -> dict[str, Any]:
        """The settings of `GroundedSam.ground`."""
        return {name: getattr(self, name) for name in ("box_threshold", "boxes", "nms", "min_area")}

    @property
    def has_effect(self) -> bool:
        """Whether regions change anything when an image is sampled again."""
        return self.isolate_phrases or self.modulation.acts(self.sampling.steps)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class CaptionedImage:
    """An image, its caption by the captioner, and the caption's reward."""

    image: Tensor
    """[H, W, 3] in [0, 1]."""
    caption: str
    reward: float
    """R_cap of eq. 4, in [-1, 1]."""


@dataclass(frozen=True)
class RealignResult:
    """The result for one prompt and seed."""

    prompt: str
    seed: int
    before: CaptionedImage
    after: CaptionedImage
    """`before` itself if the image was left alone."""
    regions: RegionSet
    verdict: str
    """What was done and why, one sentence."""

    @property
    def changed(self) -> bool:
        return self.after is not self.before


def realign(
    models: Models,
    prompt: str,
    seed: int,
    settings: RealignSettings | None = None,
    on_progress: Progress = no_progress,
) -> RealignResult:
    """Sample `prompt` from the noise of `seed`, then sample the same noise again with re-weighted attention.

    Raises:
        RealignError: the prompt is empty, or the seed is not a whole number of 64 bits.
    """
    return realign_batch(models, [prompt], [seed], settings, on_progress)[0]


def realign_batch(
    models: Models,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: RealignSettings | None = None,
    on_progress: Progress = no_progress,
) -> list[RealignResult]:
    """`realign` for B prompts at once, one seed per prompt; results in the same order."""
    settings = settings or RealignSettings()
    if len(prompts) != len(seeds):
        raise RealignError(f"There are {len(prompts)} prompts and {len(seeds)} seeds; give one seed per prompt.")
    if not prompts:
        return []
    for i, prompt in enumerate(prompts):
        if not prompt.strip():
            raise RealignError(f"Prompt {i + 1} of {len(prompts)} is empty: write what the image should show.")
    prompts = [encodable(prompt) for prompt in prompts]
    noise = models.sampler.noise(seeds)
    images = models.sampler.sample(prompts, noise, settings.sampling, on_step=partial(on_progress, "coarse image"))
    before = caption_and_score(models, images, prompts)
    on_progress("looking", 0, 1)
    failed = [i for i, image in enumerate(before) if not passes_gate(image.reward, settings.gate)]
    sets = find_regions(models, images[failed], [prompts[i] for i in failed], settings)
    sets = [zero_truncated_phrases(found, models.sampler.tokenizer) for found in sets]
    regions = dict(zip(failed, sets, strict=True))
    on_progress("looking", 1, 1)
    again = [i for i in failed if regions[i].active and settings.has_effect]
    images = resample(
        models, [prompts[i] for i in again], noise[again], [regions[i] for i in again], settings, on_progress
    )
    resampled = dict(zip(again, images, strict=True))
    after = {
        i: image for i, image in resampled.items() if replaces(before[i].reward, image.reward, settings.keep_better)
    }
    return [
        RealignResult(
            prompt=prompts[i],
            seed=seeds[i],
            before=before[i],
            after=after.get(i, before[i]),
            regions=regions.get(i, RegionSet(prompts[i])),
            verdict=_verdict(before[i], regions.get(i), resampled.get(i), i in after, settings),
        )
        for i in range(len(prompts))
    ]


def report(result: RealignResult, settings: RealignSettings) -> dict[str, Any]:
    """A result as JSON: prompt, seed, verdict, captions and rewards, regions with their notes, settings."""
    return {
        "prompt": result.prompt,
        "seed": result.seed,
        "verdict": result.verdict,
        "before": _caption(result.before),
        "after": _caption(result.after),
        **{key: value for key, value in result.regions.to_dict().items() if key != "prompt"},
        "settings": settings.to_dict(),
    }


def _caption(image: CaptionedImage) -> dict[str, Any]:
    return {"caption": image.caption, "caption_reward": round(image.reward, 4)}


def apply_keep_better(result: RealignResult) -> RealignResult:
    """The result that the setting `keep_better` would have given, from one without it."""
    if not result.changed or replaces(result.before.reward, result.after.reward, keep_better=True):
        return result
    return replace(result, after=result.before, verdict=_no_better(result.before, result.after, result.regions))


def caption_and_score(models: Models, images: Tensor, prompts: Sequence[str]) -> list[CaptionedImage]:
    """Caption images [B, H, W, 3] and reward how well the captions agree with the prompts."""
    judgement = models.reward.judge(images, prompts)
    return [CaptionedImage(*parts) for parts in zip(images, judgement.captions, judgement.scores.tolist(), strict=True)]


def find_regions(models: Models, images: Tensor, prompts: Sequence[str], settings: RealignSettings) -> list[RegionSet]:
    """Tags → phrases and likelihoods (eq. 6) → boxes and masks, for each image [B, H, W, 3]."""
    if not len(images):
        return []
    tags = models.tagger.tag(images, threshold=settings.tag_threshold)
    offline = OfflineScorer(models.reward.text_encoder)
    bound = [
        bind_tags(prompt, [tag.name for tag in image_tags], models.language_model, offline)
        for prompt, image_tags in zip(prompts, tags, strict=True)
    ]
    return models.grounded_sam.ground(images, bound, **settings.grounding)


def zero_truncated_phrases(regions: RegionSet, tokenizer: CLIPTokenizer) -> RegionSet:
    """Set a region's likelihood to 0, and note it, where its phrase is beyond what the text encoder reads."""
    out: list[Region] = []
    notes: list[str] = []
    for region in regions:
        try:
            if region.active:
                token_positions(region.phrase, regions.prompt, tokenizer, region.occurrence)
        except RealignError as error:
            region = replace(region, likelihood=UNLIKELY)
            notes.append(str(error))
        out.append(region)
    return regions.with_regions(out, *notes)


def resample(
    models: Models,
    prompts: Sequence[str],
    noise: Tensor,
    region_sets: Sequence[RegionSet],
    settings: RealignSettings,
    on_progress: Progress = no_progress,
) -> list[CaptionedImage]:
    """Sample images again from their own noise [B, C, h, w], with attention re-weighted by regions (eq. 7-9)."""
    if not prompts:
        return []
    images = models.sampler.sample(
        prompts,
        noise,
        settings.sampling,
        region_sets=region_sets,
        modulation=settings.modulation,
        isolate_phrases=settings.isolate_phrases,
        on_step=partial(on_progress, "re-aligned image"),
    )
    return caption_and_score(models, images, prompts)


def _verdict(
    before: CaptionedImage,
    regions: RegionSet | None,
    resampled: CaptionedImage | None,
    replaced: bool,
    settings: RealignSettings,
) -> str:
    """regions: None if the image passed the gate. resampled: the image sampled again, if it was."""
    if regions is None:
        return (
            f"Unchanged: the caption reward {before.reward:.3f} reaches the gate {settings.gate:g}, so its regions "
            "were not looked for."
        )
    if replaced:
        means = ["attention re-weighted inside its regions"] * settings.modulation.acts(settings.sampling.steps)
        means += ["its phrases encoded alone"] * settings.isolate_phrases
        return _sentence(f"The image was sampled again with {' and '.join(means)}", regions)
    if resampled is not None:
        return _no_better(before, resampled, regions)
    if regions.active:
        return (
            "Unchanged: the settings re-weight attention at no step (a strength, the range of steps or the limit is "
            "0), so sampling again would change nothing."
        )
    missing = quote_phrases([region for region in regions if region.phrase and not region.area], regions)
    if any(region.phrase and region.area for region in regions):
        found = quote_phrases([region for region in regions if region.phrase and region.area], regions)
        return (
            f"Unchanged: what was found of the prompt ({found}) has likelihood 0 (scored unlikely, or not read by the "
            "text encoder: see the notes), so there is nothing to re-weight"
            + (f"; not found in the image: {missing}." if missing else ".")
        )
    which = f" ({missing})" if missing else ""
    return f"Unchanged: no region of the prompt was found in the image{which}, so there is nothing to re-weight."


def _no_better(before: CaptionedImage, resampled: CaptionedImage, regions: RegionSet) -> str:
    return _sentence(
        f"Unchanged: sampled again with re-weighted attention, its caption reward would be {resampled.reward:.3f}, "
        f"which is no better than {before.reward:.3f}",
        regions,
    )


def _sentence(done: str, regions: RegionSet) -> str:
    """The sentence, with the phrases that were not helped."""
    return "; ".join(filter(None, [done, describe_unhelped(regions)])) + "."
