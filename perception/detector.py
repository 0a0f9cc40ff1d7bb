"""GroundingDINO: phrases in, boxes out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoTokenizer, GroundingDinoForObjectDetection

from ..checkpoints.files import weights_file
from ..checkpoints.folders import from_folder, pillow_processor
from ..checkpoints.grounding_dino import load_grounding_dino
from ..checkpoints.tokenizers import bert_tokenizer
from ..core.errors import RealignError
from ..core.images import to_pil
from ..core.words import content_words

NMS = 0.6
"""IoU: boxes that overlap more are one thing found twice."""

ImageProcessor = pillow_processor("GroundingDinoImageProcessor")


class Candidates(NamedTuple):
    """What the detector sees in one image: N boxes, each with a score for each of P phrases."""

    boxes: Tensor
    """[N, 4]: x0, y0, x1, y1 as fractions of width and height."""
    scores: Tensor
    """[N, P] in [0, 1]: the mean over the phrase's tokens; a box that is half of the phrase scores about half."""


class Detector:
    """A `GroundingDinoForObjectDetection` with its tokenizer and image processor."""

    def __init__(self, model: GroundingDinoForObjectDetection, tokenizer, processor) -> None:
        self.model, self.tokenizer, self.processor = model.eval(), tokenizer, processor

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        tokenizer: str | Path | None = None,
    ) -> Detector:
        """Read a GroundingDINO.

        path: a Hugging Face folder, e.g. `grounding-dino-tiny`; or its authors' file, e.g.
            `groundingdino_swint_ogc.pth`, or the folder that holds it.
        tokenizer: for such a file, the folder of bert-base-uncased's tokenizer; searched for where not given.
        """
        file = weights_file(path)
        if file is None:
            model = from_folder(GroundingDinoForObjectDetection, path, dtype=dtype).to(device)
            return cls(model, from_folder(AutoTokenizer, path), from_folder(ImageProcessor, path))
        model = load_grounding_dino(file, dtype).to(device)
        words = model.config.text_config.vocab_size
        return cls(model, bert_tokenizer(file, words, tokenizer), ImageProcessor())

    @torch.inference_mode()
    def detect(self, images: Tensor, phrases: Sequence[Sequence[str]], *, nms: float = NMS) -> list[Candidates]:
        """images [B, H, W, 3] in [0, 1] and each image's own phrases → each image's candidates, best first.

        An image with more phrases than the model reads at once is shown to it several times.
        nms: boxes with a higher IoU are one candidate; 1 keeps all.
        """
        pictures = to_pil(images)
        tokens = [[self._tokens(phrase) for phrase in own] for own in phrases]
        asked = [(i, some) for i, own in enumerate(tokens) for some in _passes(own, self._room)]
        found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in phrases]
        if asked:
            boxes, logits, spans = self._ask([pictures[i] for i, _ in asked], [tokens[i][some] for i, some in asked])
            boxes, read = _corners(boxes), logits.sigmoid()
            if boxes.isnan().any() or read.isnan().any():
                raise RealignError("What the detector finds is no number (NaN): its weights are damaged; load others.")
            for row, (i, some) in enumerate(asked):
                scores = torch.zeros(boxes.shape[1], len(phrases[i]))  # [Q, P]: 0 for the phrases of other passes
                own = torch.stack([read[row][:, a:b].mean(-1) for a, b in spans[row]], dim=-1)
                scores[:, some] = own.nan_to_num(0.0)  # the mean over nothing: a phrase without any token is nowhere
                found[i].append((boxes[row], scores))
        nothing = Candidates(torch.zeros(0, 4), torch.zeros(0, 0))
        return [_merge(*map(torch.cat, zip(*own, strict=True)), nms) if own else nothing for own in found]

    def _ask(
        self, pictures: list[Image.Image], tokens: list[list[list[int]]]
    ) -> tuple[Tensor, Tensor, list[list[tuple[int, int]]]]:
        """Boxes [B, Q, 4] as cx, cy, w, h; each token's logits [B, Q, L]; and where each phrase's tokens are."""
        ids, mask, spans = self._encode(tokens)
        pixels = self.processor(images=pictures, return_tensors="pt").to(self.model.device)
        with _OriginalLogit():
            out = self.model(
                pixel_values=pixels.pixel_values.to(self.model.dtype),
                pixel_mask=pixels.get("pixel_mask"),
                input_ids=ids,
                attention_mask=mask,
                token_type_ids=torch.zeros_like(ids),
            )
        return out.pred_boxes.float().cpu(), out.logits.float().cpu(), spans

    @property
    def _room(self) -> int:
        """How many tokens of phrases, each with its dot, the model reads between its start and its end token."""
        return self.model.config.max_text_len - 2

    def _tokens(self, phrase: str) -> list[int]:
        """The phrase's own tokens, without articles; of an overlong phrase those that the model can read."""
        words = " ".join(content_words(phrase)) or phrase
        return self.tokenizer(words, add_special_tokens=False, verbose=False).input_ids[: self._room - 1]

    def _encode(self, tokens: list[list[list[int]]]) -> tuple[Tensor, Tensor, list[list[tuple[int, int]]]]:
        """Texts `phrase . phrase .` as ids and mask [B, L], and where in them each phrase's tokens are.

        The text is put together from the phrases' own tokens, so no span has to be searched for.
        """
        dot = self.tokenizer.convert_tokens_to_ids(".")
        rows, spans = [], []
        for own in tokens:
            row, places = [self.tokenizer.cls_token_id], []
            for phrase in own:
                places.append((len(row), len(row) + len(phrase)))
                row += [*phrase, dot]
            rows.append([*row, self.tokenizer.sep_token_id])
            spans.append(places)
        length = max(map(len, rows))
        ids = torch.tensor([row + [self.tokenizer.pad_token_id] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        return ids.to(self.model.device), mask.to(self.model.device), spans


class _OriginalLogit(TorchFunctionMode):
    """Between two layers of the decoder, a box's sides pass through a logit. The weights were trained with one that
    stays 1e-3 away from infinity, transformers' is 1e-5 away: thin boxes and those that fill the image differ."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.special.logit:
            return torch.log(args[0].clamp(min=1e-3) / (1 - args[0]).clamp(min=1e-3))
        return func(*args, **(kwargs or {}))


def _passes(tokens: list[list[int]], room: int) -> list[slice]:
    """The phrases cut into runs, each as long as its tokens, with a dot each, have room."""
    starts, used = [], room
    for i, phrase in enumerate(tokens):
        used += len(phrase) + 1
        if used > room:
            starts.append(i)
            used = len(phrase) + 1
    return [slice(start, stop) for start, stop in pairwise([*starts, len(tokens)])]


def _corners(boxes: Tensor) -> Tensor:
    """(cx, cy, w, h) → (x0, y0, x1, y1), inside the image. [..., 4]"""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1).clamp(0, 1)


def _merge(boxes: Tensor, scores: Tensor, nms: float) -> Candidates:
    """One candidate a thing: overlapping boxes [Q, 4] give their best scores [Q, P] to the surest of them."""
    order = scores.amax(-1).argsort(descending=True)
    boxes, scores = boxes[order], scores[order]
    corners, merged = boxes.numpy(), scores.numpy().copy()
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left):
        best, left = int(left[0]), left[1:]
        kept.append(best)
        twins = _iou(corners[best], corners[left]) > nms
        if twins.any():
            merged[best] = np.maximum(merged[best], merged[left[twins]].max(0))
            left = left[~twins]
    return Candidates(boxes[kept], torch.from_numpy(merged)[kept])


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`box_iou` of one box [4] with others [N, 4]."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    both = sides.clip(min=0).prod(-1)
    areas = (others[:, 2:] - others[:, :2]).prod(-1)
    return both / np.maximum((box[2:] - box[:2]).prod() + areas - both, 1e-9)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes [N, 4] and [M, 4] → [N, M]."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(-1), (b[:, 2:] - b[:, :2]).prod(-1)
    return both / (area_a[:, None] + area_b - both).clamp(min=1e-9)
