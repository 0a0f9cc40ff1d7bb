"""The SAM reward of the paper's first version (FineRewards): does what is found belong into the prompted scene?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.regions import Region, RegionSet
from ..language.likelihood import LanguageModel, tag_likelihoods
from ..perception.grounded_sam import GroundedSam
from ..perception.tagger import Tagger
from .reward import check_pairs

NOTHING_FOUND = -1.0
"""The reward of an image in which no category is found: it shows nothing of the prompt."""


class SamReward:
    """R_sam = (mean of s_c over the categories c found in the image) − 1, s_c in {2, 0.5, 0} of eq. 6: [−1, 1].

    A category is a tag whose thing Grounded-SAM finds a mask for; the language model says how likely it is in the
    prompted scene. The mean does not depend on how many there are. It asks whether what is there belongs there, not
    whether everything is there, nor which word goes with which thing. arXiv 2305.19599 v1. No gradient.
    """

    name, differentiable = "sam", False

    def __init__(
        self,
        tagger: Tagger,
        grounded_sam: GroundedSam,
        language_model: LanguageModel,
        offline: LanguageModel | None = None,
    ) -> None:
        """offline: answers what the language model does not (see `perception.likelihood`)."""
        self.tagger, self.grounded_sam = tagger, grounded_sam
        self.language_model, self.offline = language_model, offline

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """images [B, H, W, 3] in [0, 1] and a prompt each → [B] in [-1, 1]."""
        return self.with_notes(images, prompts)[0]

    def with_notes(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, list[str]]:
        """The same, and what is to be told of the likelihoods (see `perception.likelihood`), each note once."""
        asked = self._asked(images, prompts)
        found = self.grounded_sam.ground(images, asked)
        notes = dict.fromkeys(note for regions in asked for note in regions.notes)
        return torch.tensor([_mean(regions) for regions in found]), list(notes)

    def categories(self, images: Tensor, prompts: Sequence[str]) -> list[RegionSet]:
        """The categories of each image, with masks and likelihoods."""
        return self.grounded_sam.ground(images, self._asked(images, prompts))

    def _asked(self, images: Tensor, prompts: Sequence[str]) -> list[RegionSet]:
        check_pairs(images, prompts)
        tags = self.tagger.tag(images)
        return [self._scored(prompt, [tag.name for tag in own]) for prompt, own in zip(prompts, tags, strict=True)]

    def _scored(self, prompt: str, tags: Sequence[str]) -> RegionSet:
        scores, notes = tag_likelihoods(prompt, tags, self.language_model, self.offline)
        return RegionSet(prompt, tuple(Region(tag=tag, likelihood=score) for tag, score in scores.items()), notes)

    def networks(self) -> tuple[nn.Module, ...]:
        """Tagger, detector, segmenter, and what reads here, if it is no server."""
        eyes = self.tagger.model, self.grounded_sam.detector.model, self.grounded_sam.segmenter.model
        readers = (reader for reader in (self.language_model, self.offline) if hasattr(reader, "networks"))
        return tuple(dict.fromkeys([*eyes, *(network for reader in readers for network in reader.networks())]))


def _mean(regions: RegionSet) -> float:
    found = [region.likelihood for region in regions if region.mask is not None]
    return sum(found) / len(found) - 1 if found else NOTHING_FOUND
