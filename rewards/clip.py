"""The CLIP reward, and the same by NegCLIP, a CLIP that was trained to mind the order of words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from ..checkpoints.files import weights_file
from ..checkpoints.folders import from_folder
from ..checkpoints.open_clip import load_open_clip
from ..checkpoints.tokenizers import clip_tokenizer
from .preprocessing import Preprocessing
from .reward import Judgement, Reward, check_pairs

if TYPE_CHECKING:
    from .loading import RewardModels


class ClipReward(Reward):
    """cos(image, prompt) of CLIP's embeddings: [−1, 1].

    arXiv 2103.00020. CLIPScore (arXiv 2104.08718) is 2.5 · max(cos, 0) of the same cosine. `negclip` is the same
    reward by NegCLIP (arXiv 2210.01936), a ViT-B/32 that was fine-tuned with word-swapped captions as negatives.

    Files of open_clip are read with exact GELU, as NegCLIP's authors evaluated it, unless an open_clip_config.json
    beside the file says otherwise (see docs/rewards.md). Prompts are cut after 77 tokens. Differentiable.
    """

    differentiable = True

    def __init__(self, model: CLIPModel, tokenizer, preprocessing: Preprocessing, name: str = "clip") -> None:
        self.model, self.tokenizer, self.preprocessing, self.name = model.eval(), tokenizer, preprocessing, name
        model.requires_grad_(False)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        name: str = "clip",
        tokenizer: str | Path | None = None,
    ) -> ClipReward:
        """Read a CLIP.

        path: a Hugging Face folder of a `CLIPModel`, e.g. `clip-vit-base-patch32`; or a file of open_clip, e.g.
            `negclip.pth` or `open_clip_pytorch_model.bin`, or the folder that holds it.
        tokenizer: for such a file, a folder with CLIP's tokenizer, where none lies beside it.
        """
        file = weights_file(path)
        if file is None:
            model = from_folder(CLIPModel, path, dtype=dtype).to(device, dtype)
            preprocessing = Preprocessing.of(from_folder(AutoImageProcessor, path))
            return cls(model, from_folder(AutoTokenizer, path), preprocessing, name)
        model = load_open_clip(file, dtype).to(device)
        side = model.config.vision_config.image_size
        loaded = clip_tokenizer(file, model.config.text_config.vocab_size, tokenizer)
        return cls(model, loaded, Preprocessing(side, (side, side)), name)

    def judge(self, images: Tensor, prompts: Sequence[str]) -> Judgement:
        """Scores in [-1, 1]."""
        check_pairs(images, prompts)
        return Judgement((self.embed_images(images) * self.embed_texts(prompts)).sum(-1))

    def embed_images(self, images: Tensor) -> Tensor:
        """images [B, H, W, 3] in [0, 1] → unit vectors [B, D], float32, differentiable."""
        pixels = self.preprocessing(images.to(self.model.device)).to(self.model.dtype)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return normalize(self.model.visual_projection(pooled).float(), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """N texts → unit vectors [N, D], float32."""
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        tokens = tokens.to(self.model.device)
        out = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return normalize(self.model.text_projection(out.pooler_output).float(), dim=-1)

    def networks(self) -> tuple[nn.Module, ...]:
        return (self.model,)


def load_clip(models: RewardModels) -> ClipReward:
    return models.read(ClipReward, "clip", tokenizer=models.clip_tokenizer)


def load_negclip(models: RewardModels) -> ClipReward:
    """`negclip`; where its file has no tokenizer beside it, that of `clip` is taken."""
    tokenizer = models.clip_tokenizer or models.paths.get("clip")
    return models.read(ClipReward, "negclip", name="negclip", tokenizer=tokenizer)
