"""Two rewards by BLIP: do image and prompt match (ITM), and how similar are their embeddings (ITC)?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, Blip2ForImageTextRetrieval, BlipForImageTextRetrieval

from ..checkpoints.files import read_tensors, weights_file
from ..checkpoints.folders import existing_folder, from_folder
from ..checkpoints.kinds import wrong_file
from ..core.errors import RealignError
from .preprocessing import Preprocessing
from .reward import Judgement, Reward, check_pairs

if TYPE_CHECKING:
    from .loading import RewardModels

_CLASSES = {"blip": BlipForImageTextRetrieval, "blip-2": Blip2ForImageTextRetrieval}
"""By the model_type in the folder's config.json."""


class Blip:
    """A retrieval BLIP (arXiv 2201.12086) or BLIP-2 (arXiv 2301.12597), shared by both rewards."""

    def __init__(
        self, model: BlipForImageTextRetrieval | Blip2ForImageTextRetrieval, tokenizer, preprocessing: Preprocessing
    ) -> None:
        self.model, self.tokenizer, self.preprocessing = model.eval(), tokenizer, preprocessing
        model.requires_grad_(False)
        text = getattr(model.config, "qformer_config", model.config.text_config)
        self.limit = min(tokenizer.model_max_length, text.max_position_embeddings)
        if isinstance(model, Blip2ForImageTextRetrieval):
            model.config.image_token_index = None  # newer transformers would cut placeholders off the text, older not

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Blip:
        """Read a Hugging Face folder, e.g. `blip-itm-base-coco` or `blip2-itm-vit-g`."""
        if (file := weights_file(folder)) is not None:
            raise wrong_file(file, read_tensors(file), "the Hugging Face folder of a retrieval BLIP or BLIP-2")
        model = from_folder(_class_of(existing_folder(folder)), folder, dtype=dtype).to(device, dtype)
        preprocessing = Preprocessing.of(from_folder(AutoImageProcessor, folder))
        return cls(model, from_folder(AutoTokenizer, folder), preprocessing)

    def match(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images [B, H, W, 3] in [0, 1], B prompts → the probability that they match: [B], differentiable."""
        return self._logits(images, prompts, head=True).softmax(-1)[:, 1]

    def similarity(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images [B, H, W, 3] in [0, 1], B prompts → cosine of their embeddings: [B], differentiable."""
        return self._logits(images, prompts, head=False).diagonal()

    def _logits(self, images: Tensor, prompts: Sequence[str], head: bool) -> Tensor:
        """The matching head's logits [B, 2], or the cosines of all images and all prompts [B, B]; float32."""
        check_pairs(images, prompts)
        model = self.model
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.limit, return_tensors="pt"
        ).to(model.device)
        inputs = {
            "pixel_values": self.preprocessing(images.to(model.device)).to(model.dtype),
            "input_ids": tokens.input_ids,
            "attention_mask": tokens.attention_mask,
        }
        if isinstance(model, Blip2ForImageTextRetrieval):
            return model(**inputs, use_image_text_matching_head=head).logits_per_image.float()
        return model(**inputs, use_itm_head=head).itm_score.float()


class _BlipReward(Reward):
    """What both rewards have in common."""

    differentiable = True

    def __init__(self, blip: Blip) -> None:
        self.blip = blip

    def networks(self) -> tuple[nn.Module, ...]:
        return (self.blip.model,)


class BlipItmReward(_BlipReward):
    """ITM (arXiv 2201.12086): the probability that image and prompt match, by the head that reads both: [0, 1]."""

    name = "blip-itm"

    def judge(self, images: Tensor, prompts: Sequence[str]) -> Judgement:
        """Scores in [0, 1]."""
        return Judgement(self.blip.match(images, prompts))


class BlipItcReward(_BlipReward):
    """ITC (arXiv 2201.12086): cos(image, prompt) of embeddings, each of which is made without the other: [−1, 1].

    BLIP-2 embeds an image once per query; the nearest embedding counts.
    """

    name = "blip-itc"

    def judge(self, images: Tensor, prompts: Sequence[str]) -> Judgement:
        """Scores in [-1, 1]."""
        return Judgement(self.blip.similarity(images, prompts))


def load_itm(models: RewardModels) -> BlipItmReward:
    return BlipItmReward(models.read(Blip, "blip"))


def load_itc(models: RewardModels) -> BlipItcReward:
    """`blip-itc`, which shares its network with `blip-itm`."""
    return BlipItcReward(models.read(Blip, "blip"))


def _class_of(folder: Path) -> type[BlipForImageTextRetrieval] | type[Blip2ForImageTextRetrieval]:
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise RealignError(
            f"'{folder}' has no config.json that can be read ({error}): choose the folder of a retrieval BLIP."
        ) from error
    if kind not in _CLASSES:
        raise RealignError(
            f"'{folder}' holds a model of type {kind}: choose the folder of a retrieval BLIP or BLIP-2, e.g. "
            "blip-itm-base-coco or blip2-itm-vit-g."
        )
    return _CLASSES[kind]
