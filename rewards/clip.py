"""The CLIP reward, and NegCLIP's, which is a CLIP that was taught to mind the order of words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from ..checkpoints.files import weights_file
from ..checkpoints.folders import from_folder
from ..checkpoints.open_clip import load_open_clip
from ..checkpoints.tokenizers import clip_tokenizer
from .preprocessing import Preprocessing
from .reward import check_pairs


class ClipReward:
    """cos(image, prompt) of CLIP's embeddings: [−1, 1].

    arXiv 2103.00020. CLIPScore (arXiv 2104.08718) is 2.5 · max(cos, 0) of the same cosine. As `negclip` the same of
    NegCLIP (arXiv 2210.01936), a ViT-B/32 whose fine-tuning had captions with words swapped as negatives. Its
    authors' evaluation has open_clip build a plain ViT-B-32, with exact GELU, although OpenAI's weights, from which it
    was tuned, have QuickGELU. So as to be comparable, files of open_clip are read like that here too, unless an
    open_clip_config.json beside them says otherwise.

    Prompts are cut where CLIP's text half ends (77 tokens with the two marks). Differentiable.
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

        Raises:
            RealignError: a file is missing, damaged or another model's.
        """
        file = weights_file(path)
        if file is None:
            model = from_folder(CLIPModel, path, dtype=dtype).to(device, dtype)
            seen = Preprocessing.of(from_folder(AutoImageProcessor, path))
            return cls(model, from_folder(AutoTokenizer, path), seen, name)
        model = load_open_clip(file, dtype).to(device)
        side = model.config.vision_config.image_size
        words = clip_tokenizer(file, model.config.text_config.vocab_size, tokenizer)
        return cls(model, words, Preprocessing(side, (side, side)), name)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """images [B, H, W, 3] in [0, 1] and a prompt each → [B] in [-1, 1]."""
        check_pairs(images, prompts)
        return (self.embed_images(images) * self.embed_texts(prompts)).sum(-1)

    def embed_images(self, images: Tensor) -> Tensor:
        """images [B, H, W, 3] in [0, 1] → unit vectors [B, D], float32, differentiable."""
        pixels = self.preprocessing(images.to(self.model.device)).to(self.model.dtype)
        looked = self.model.vision_model(pixel_values=pixels).pooler_output
        return normalize(self.model.visual_projection(looked).float(), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """N texts → unit vectors [N, D], float32."""
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        tokens = tokens.to(self.model.device)
        out = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return normalize(self.model.text_projection(out.pooler_output).float(), dim=-1)

    def networks(self) -> tuple[nn.Module, ...]:
        """CLIP."""
        return (self.model,)
