"""GroundingDINO: images and phrases → boxes with scores."""

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

NMS = 0.6  # boxes with a higher IoU (intersection over union) count as one object found twice

ImageProcessor = pillow_processor("GroundingDinoImageProcessor")


class Candidates(NamedTuple):
    """Boxes found in one image: N boxes, each with a score for each of P phrases."""

    boxes: Tensor  # [N, 4]: x0, y0, x1, y1 as fractions of width and height
    scores: Tensor
    """[N, P] in [0, 1]: the mean over the phrase's tokens; a box that matches half of the phrase scores about half."""


class Detector:
    """A `GroundingDinoForObjectDetection` with its tokenizer and image processor."""

    def __init__(self, model: GroundingDinoForObjectDetection, tokenizer, processor) -> None:
        self.model, self.tokenizer, self.processor = model.eval(), tokenizer, processor
        self._max_tokens = model.config.max_text_len - 2  # phrases and dots, between the start and the end token

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

        path: a Hugging Face folder, e.g. `grounding-dino-tiny`; or `groundingdino_swint_ogc.pth` or its folder.
        tokenizer: the folder of bert-base-uncased's tokenizer, for such a file; by default it is searched for.
        """
        file = weights_file(path)
        if file is None:
            model = from_folder(GroundingDinoForObjectDetection, path, dtype=dtype).to(device)
            return cls(model, from_folder(AutoTokenizer, path), from_folder(ImageProcessor, path))
        model = load_grounding_dino(file, dtype).to(device)
        size = model.config.text_config.vocab_size
        return cls(model, bert_tokenizer(file, size, tokenizer), ImageProcessor())

    @torch.inference_mode()
    def detect(self, images: Tensor, phrases: Sequence[Sequence[str]], *, nms: float = NMS) -> list[Candidates]:
        """images [B, H, W, 3] in [0, 1] and the phrases of each image → the candidates of each image, best first.

        An image with more phrases than the model reads at once takes several passes.
        nms: boxes with a higher IoU are one candidate; 1 keeps all.
        """
        pictures = to_pil(images)
        tokens = [[self._tokenize(phrase) for phrase in texts] for texts in phrases]
        passes = [(i, part) for i, texts in enumerate(tokens) for part in _split_to_fit(texts, self._max_tokens)]
        found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in phrases]
        if passes:
            boxes, logits, spans = self._forward(
                [pictures[i] for i, _ in passes], [tokens[i][part] for i, part in passes]
            )
            boxes, token_scores = _corners(boxes), logits.sigmoid()
            if boxes.isnan().any() or token_scores.isnan().any():
                raise RealignError("What the detector finds is no number (NaN): its weights are damaged; load others.")
            for row, (i, part) in enumerate(passes):
                scores = torch.zeros(boxes.shape[1], len(phrases[i]))  # [Q, P]: 0 for the phrases of other passes
                means = torch.stack([token_scores[row][:, a:b].mean(-1) for a, b in spans[row]], dim=-1)
                scores[:, part] = means.nan_to_num(0.0)  # a phrase without tokens scores 0
                found[i].append((boxes[row], scores))
        nothing = Candidates(torch.zeros(0, 4), torch.zeros(0, 0))
        return [_merge(*map(torch.cat, zip(*parts, strict=True)), nms=nms) if parts else nothing for parts in found]

    def _forward(
        self, pictures: list[Image.Image], tokens: list[list[list[int]]]
    ) -> tuple[Tensor, Tensor, list[list[tuple[int, int]]]]:
        """Boxes [B, Q, 4] as cx, cy, w, h; logits [B, Q, L] per token; (start, stop) of each phrase's tokens."""
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

    def _tokenize(self, phrase: str) -> list[int]:
        """The phrase's tokens without articles, cut to what the model can read."""
        words = " ".join(content_words(phrase)) or phrase
        return self.tokenizer(words, add_special_tokens=False, verbose=False).input_ids[: self._max_tokens - 1]

    def _encode(self, tokens: list[list[list[int]]]) -> tuple[Tensor, Tensor, list[list[tuple[int, int]]]]:
        """Ids and mask [B, L] of the texts `phrase . phrase .`, and (start, stop) of each phrase's tokens."""
        dot = self.tokenizer.convert_tokens_to_ids(".")
        rows, spans = [], []
        for phrases in tokens:
            row, places = [self.tokenizer.cls_token_id], []
            for phrase in phrases:
                places.append((len(row), len(row) + len(phrase)))
                row += [*phrase, dot]
            rows.append([*row, self.tokenizer.sep_token_id])
            spans.append(places)
        length = max(map(len, rows))
        ids = torch.tensor([row + [self.tokenizer.pad_token_id] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        return ids.to(self.model.device), mask.to(self.model.device), spans


class _OriginalLogit(TorchFunctionMode):
    """Inside, `torch.special.logit` clips at 1e-3. Between decoder layers a box's sides pass through a logit; the
    original clips it at 1e-3, transformers at 1e-5, which gives other boxes for thin or image-filling objects."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.special.logit:
            return torch.log(args[0].clamp(min=1e-3) / (1 - args[0]).clamp(min=1e-3))
        return func(*args, **(kwargs or {}))


def _split_to_fit(tokens: list[list[int]], max_tokens: int) -> list[slice]:
    """Slices of the phrases, each with at most `max_tokens` tokens, counting a dot per phrase."""
    starts, used = [], max_tokens
    for i, phrase in enumerate(tokens):
        used += len(phrase) + 1
        if used > max_tokens:
            starts.append(i)
            used = len(phrase) + 1
    return [slice(start, stop) for start, stop in pairwise([*starts, len(tokens)])]


def _corners(boxes: Tensor) -> Tensor:
    """(cx, cy, w, h) → (x0, y0, x1, y1), inside the image. [..., 4]"""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1).clamp(0, 1)


def _merge(boxes: Tensor, scores: Tensor, nms: float) -> Candidates:
    """One candidate per object: of overlapping boxes [Q, 4] the best stays, with the best of their scores [Q, P]."""
    order = scores.amax(-1).argsort(descending=True)
    boxes, scores = boxes[order], scores[order]
    corners, merged = boxes.numpy(), scores.numpy().copy()
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left):
        best, left = int(left[0]), left[1:]
        kept.append(best)
        twins = _iou(corners[best, None], corners[left])[0] > nms  # all pairs at once may need gigabytes
        if twins.any():
            merged[best] = np.maximum(merged[best], merged[left[twins]].max(0))
            left = left[~twins]
    return Candidates(boxes[kept], torch.from_numpy(merged)[kept])


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes [N, 4] and [M, 4] → [N, M]."""
    return torch.from_numpy(_iou(a.cpu().numpy(), b.cpu().numpy()))


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`box_iou` with numpy, which is faster for a few boxes."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = (high - low).clip(min=0).prod(-1)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(-1), (b[:, 2:] - b[:, :2]).prod(-1)
    return overlap / (area_a[:, None] + area_b - overlap).clip(min=1e-9)
