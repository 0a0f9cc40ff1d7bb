"""The whole method, from prompt to re-aligned image.

coarse image → caption reward → (good enough: stop) → tags → likelihoods and phrases → boxes and masks
→ the same noise again, attention re-weighted inside the masks → refined image → caption reward
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..attention.equation.settings import ModulationSettings
from ..attention.equation.tokens import token_positions
from ..core.describe import named, not_helped
from ..core.errors import RealignError
from ..core.regions import UNLIKELY, Region, RegionSet
from ..core.text import encodable
from ..language.likelihood import LanguageModel, OfflineScorer, likelihoods
from ..perception.detector import NMS
from ..perception.grounded_sam import BOX_THRESHOLD, Boxes, GroundedSam, check_grounding
from ..perception.tagger import Tagger, check_threshold
from ..rewards.caption import CaptionReward
from ..sampling.settings import SamplingSettings

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from ..sampling.sampler import DiffusersSampler

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, step, steps); raise in it to interrupt."""


def silent(doing: str, step: int, steps: int) -> None:
    pass


@dataclass(frozen=True)
class Models:
    """Everything the loop draws, looks, reads and judges with."""

    sampler: DiffusersSampler
    reward: CaptionReward
    tagger: Tagger
    language_model: LanguageModel
    grounded_sam: GroundedSam


@dataclass(frozen=True, kw_only=True)
class RealignSettings:
    """The settings of the loop; the paper's values where it has them."""

    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    modulation: ModulationSettings = field(default_factory=ModulationSettings)
    isolate_phrases: bool = True
    """Whether the tokens of the regions' phrases have the embeddings of the phrase encoded alone, as in
    DenseDiffusion's code, on which the paper builds: "red" in "a red circle and a blue square" then knows of no other
    thing."""
    gate: float | None = None
    """An image whose caption reward is at least this is left alone, in [-1, 1]; None (the paper): none is."""
    keep_better: bool = False
    """Whether an image that the re-aligned one does not surpass in caption reward is kept; the paper keeps none."""
    tag_threshold: float | None = None
    """Confidence from which a tag counts, in [0, 1]; None: each tag's own threshold."""
    box_threshold: float = BOX_THRESHOLD
    """Grounding score from which a box counts, in [0, 1]."""
    boxes: Boxes = "one"
    """Whether a phrase takes one box, or all that are more its than another phrase's ("three red apples")."""
    nms: float = NMS
    """IoU from which two boxes are one thing found twice, in [0, 1]."""
    min_area: float = 0.0
    """The fraction of the image that a mask must cover to count, in [0, 1]."""

    def __post_init__(self) -> None:
        """
        Raises:
            RealignError: a value is out of its range.
        """
        check_grounding(**self.grounding)
        if self.gate is not None and not math.isfinite(self.gate):
            raise RealignError(f"gate is {self.gate}; give a number from -1 to 1, or none.")
        check_threshold(self.tag_threshold)

    @property
    def grounding(self) -> dict[str, Any]:
        """The settings of `GroundedSam.ground`."""
        return {name: getattr(self, name) for name in ("box_threshold", "boxes", "nms", "min_area")}

    @property
    def does_anything(self) -> bool:
        """Whether regions change anything when an image is sampled again."""
        return self.isolate_phrases or self.modulation.acts(self.sampling.steps)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Look:
    """An image and what the captioner makes of it."""

    image: Tensor
    """[H, W, 3] in [0, 1]."""
    caption: str
    reward: float
    """R_cap of eq. 4, in [-1, 1]."""


@dataclass(frozen=True)
class RealignResult:
    """What became of one prompt and seed."""

    prompt: str
    seed: int
    before: Look
    after: Look
    """Equal to `before` when the image was left alone."""
    regions: RegionSet
    verdict: str
    """What was done and why, in one sentence."""

    @property
    def changed(self) -> bool:
        return self.after is not self.before


def realign(
    models: Models,
    prompt: str,
    seed: int,
    settings: RealignSettings | None = None,
    on_progress: Progress = silent,
) -> RealignResult:
    """Draw `prompt` from `seed`'s noise and mend what the image mixes up.

    Raises:
        RealignError: the prompt is empty, or the seed is not one of a generator's.
    """
    return realign_batch(models, [prompt], [seed], settings, on_progress)[0]


def realign_batch(
    models: Models,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: RealignSettings | None = None,
    on_progress: Progress = silent,
) -> list[RealignResult]:
    """`realign` for several prompts at once, one seed each; order and number are kept."""
    settings = settings or RealignSettings()
    if len(prompts) != len(seeds):
        raise RealignError(f"There are {len(prompts)} prompts and {len(seeds)} seeds; give one seed a prompt.")
    if not prompts:
        return []
    for i, prompt in enumerate(prompts):
        if not prompt.strip():
            raise RealignError(f"Prompt {i + 1} of {len(prompts)} is empty: write what the image should show.")
    prompts = [encodable(prompt) for prompt in prompts]
    noise = models.sampler.noise(seeds)
    images = models.sampler.sample(prompts, noise, settings.sampling, on_step=partial(on_progress, "coarse image"))
    before = look(models, images, prompts)
    on_progress("looking", 0, 1)
    wrong = [i for i, seen in enumerate(before) if settings.gate is None or seen.reward < settings.gate]
    sets = find_regions(models, images[wrong], [prompts[i] for i in wrong], settings)
    found = {i: readable(regions, models.sampler.tokenizer) for i, regions in zip(wrong, sets, strict=True)}
    on_progress("looking", 1, 1)
    mend = [i for i in wrong if found[i].active and settings.does_anything]
    mended = resample(models, [prompts[i] for i in mend], noise[mend], [found[i] for i in mend], settings, on_progress)
    tried = dict(zip(mend, mended, strict=True))
    after = {i: seen for i, seen in tried.items() if not settings.keep_better or seen.reward > before[i].reward}
    return [
        RealignResult(
            prompt=prompts[i],
            seed=seeds[i],
            before=before[i],
            after=after.get(i, before[i]),
            regions=found.get(i, RegionSet(prompts[i])),
            verdict=_verdict(before[i], found.get(i), tried.get(i), i in after, settings),
        )
        for i in range(len(prompts))
    ]


def keeping_better(result: RealignResult) -> RealignResult:
    """What `keep_better` makes of a result without it: the image of the two with the higher caption reward."""
    if not result.changed or result.after.reward > result.before.reward:
        return result
    return replace(result, after=result.before, verdict=_no_better(result.before, result.after, result.regions))


def look(models: Models, images: Tensor, prompts: Sequence[str]) -> list[Look]:
    """Caption images [B, H, W, 3] and reward them for saying their prompt."""
    scores, captions = models.reward.with_captions(images, prompts)
    return [Look(*parts) for parts in zip(images, captions, scores.tolist(), strict=True)]


def find_regions(models: Models, images: Tensor, prompts: Sequence[str], settings: RealignSettings) -> list[RegionSet]:
    """Tags → phrases and likelihoods (eq. 6) → boxes and masks, for each image [B, H, W, 3]."""
    if not len(images):
        return []
    tags = models.tagger.tag(images, threshold=settings.tag_threshold)
    offline = OfflineScorer(models.reward.text_encoder)
    bound = [
        likelihoods(prompt, [tag.name for tag in own], models.language_model, offline)
        for prompt, own in zip(prompts, tags, strict=True)
    ]
    return models.grounded_sam.ground(images, bound, **settings.grounding)


def readable(regions: RegionSet, tokenizer: CLIPTokenizer) -> RegionSet:
    """The same regions; one whose words the text encoder does not read gets likelihood 0, and a note says why.

    A prompt may be longer than what the encoder reads of it, and still be drawn.
    """
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
    on_progress: Progress = silent,
) -> list[Look]:
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
    return look(models, images, prompts)


def _verdict(
    before: Look, regions: RegionSet | None, tried: Look | None, taken: bool, settings: RealignSettings
) -> str:
    """regions: None when the gate kept the image; tried: the image sampled again, if it was."""
    if regions is None:
        return (
            f"Unchanged: the caption reward {before.reward:.3f} reaches the gate {settings.gate:g}, so its regions "
            "were not looked for."
        )
    if taken:
        ways = ["attention re-weighted inside its regions"] * settings.modulation.acts(settings.sampling.steps)
        ways += ["its phrases encoded alone"] * settings.isolate_phrases
        return _sentence(f"The image was sampled again with {' and '.join(ways)}", regions)
    if tried is not None:
        return _no_better(before, tried, regions)
    if regions.active:
        return (
            "Unchanged: the settings re-weight attention at no step (a strength, the range of steps or the limit is "
            "0), so sampling again would change nothing."
        )
    missing = named([region for region in regions if region.phrase and not region.area], regions)
    if any(region.phrase and region.area for region in regions):
        found = named([region for region in regions if region.phrase and region.area], regions)
        return (
            f"Unchanged: what was found of the prompt ({found}) has likelihood 0 (scored unlikely, or not read by the "
            "text encoder: see the notes), so there is nothing to re-weight"
            + (f"; not found in the image: {missing}." if missing else ".")
        )
    which = f" ({missing})" if missing else ""
    return f"Unchanged: no region of the prompt was found in the image{which}, so there is nothing to re-weight."


def _no_better(before: Look, tried: Look, regions: RegionSet) -> str:
    return _sentence(
        f"Unchanged: sampled again with re-weighted attention, its caption reward would be {tried.reward:.3f}, "
        f"which is no better than {before.reward:.3f}",
        regions,
    )


def _sentence(done: str, regions: RegionSet) -> str:
    """What was done, and which phrases it did not help."""
    return "; ".join(filter(None, [done, not_helped(regions)])) + "."
