"""The SAM reward (FineRewards, arXiv 2305.19599 v1): do the things in the image belong in the prompted scene?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..core.regions import Region, RegionSet
from ..language.binding import score_tags
from ..language.model import LanguageModel
from ..language.offline_scorer import OfflineScorer
from ..perception.grounded_sam import GroundedSam
from ..perception.tagger import Tagger
from ..perception.text_encoder import TextEncoder
from .reward import Judgement, Reward, check_pairs

if TYPE_CHECKING:
    from .loading import RewardModels

NOTHING_FOUND = -1.0
"""The reward of an image in which no category is found: it shows nothing of the prompt."""


class SamReward(Reward):
    """R_sam = (mean of s_c over the categories c found in the image) − 1, with s_c in {2, 0.5, 0} of eq. 6: [−1, 1].

    A category is a tag for which Grounded-SAM finds a mask; the language model says how likely it is in the prompted
    scene. The mean does not depend on how many categories there are. The reward asks whether the things in the image
    belong there, not whether all are there, nor which words belong to which thing. arXiv 2305.19599 v1. No gradient.
    """

    name, differentiable = "sam", False

    def __init__(
        self,
        tagger: Tagger,
        grounded_sam: GroundedSam,
        language_model: LanguageModel,
        offline: LanguageModel | None = None,
    ) -> None:
        """offline: answers what the language model does not (see `language.binding`)."""
        self.tagger, self.grounded_sam = tagger, grounded_sam
        self.language_model, self.offline = language_model, offline

    def judge(self, images: Tensor, prompts: Sequence[str]) -> Judgement:
        """Scores in [-1, 1], and the language step's notes."""
        tagged = self._tagged(images, prompts)
        grounded = self.grounded_sam.ground(images, tagged)
        notes = dict.fromkeys(note for regions in tagged for note in regions.notes)
        return Judgement(torch.tensor([_mean(regions) for regions in grounded]), tuple(notes))

    def categories(self, images: Tensor, prompts: Sequence[str]) -> list[RegionSet]:
        """The categories of each image, with masks and likelihoods."""
        return self.grounded_sam.ground(images, self._tagged(images, prompts))

    def _tagged(self, images: Tensor, prompts: Sequence[str]) -> list[RegionSet]:
        """Each image's tags with their likelihoods, not yet looked for in the image."""
        check_pairs(images, prompts)
        names = [[tag.name for tag in tags] for tags in self.tagger.tag(images)]
        return [self._scored(prompt, tags) for prompt, tags in zip(prompts, names, strict=True)]

    def _scored(self, prompt: str, tags: Sequence[str]) -> RegionSet:
        scores, notes = score_tags(prompt, tags, self.language_model, self.offline)
        return RegionSet(prompt, tuple(Region(tag=tag, likelihood=score) for tag, score in scores.items()), notes)

    def networks(self) -> tuple[nn.Module, ...]:
        """Tagger, detector, segmenter, and the language models that run on this machine."""
        perception = self.tagger.model, self.grounded_sam.detector.model, self.grounded_sam.segmenter.model
        language = [getattr(model, "networks", tuple)() for model in (self.language_model, self.offline)]
        return tuple(dict.fromkeys([*perception, *chain.from_iterable(language)]))


def _mean(regions: RegionSet) -> float:
    found = [region.likelihood for region in regions if region.mask is not None]
    return sum(found) / len(found) - 1 if found else NOTHING_FOUND


def load(models: RewardModels) -> SamReward:
    """`sam`; all of its networks stay in float32."""
    known = "text_encoder" in models.paths
    offline = OfflineScorer(models.read(TextEncoder, "text_encoder", dtype=torch.float32) if known else None)
    grounded_sam = GroundedSam.load(models.paths["detector"], models.paths["segmenter"], models.device)
    tagger = models.read(Tagger, "tagger", dtype=torch.float32)
    return SamReward(tagger, grounded_sam, models.language_model or offline, offline)
