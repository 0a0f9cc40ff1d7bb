"""Which model a file's tensors belong to, recognised by their names; the error for the wrong model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ..core.errors import RealignError

_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a RAM++ tagger", ("label_embed", "reweight_scale", "tagging_head.")),
    ("a RAM tagger", ("label_embed", "tagging_head.")),
    ("a Tag2Text tagger", ("tagging_head.", "visual_encoder.")),
    ("a HQ-SAM segmenter", ("mask_decoder.hf_token.", "image_encoder.")),
    ("a SAM 2 segmenter", ("image_encoder.trunk.", "memory_encoder.")),
    ("a SAM segmenter", ("image_encoder.blocks.", "prompt_encoder.", "mask_decoder.")),
    ("a MobileSAM segmenter", ("image_encoder.layers.", "prompt_encoder.", "mask_decoder.")),
    ("a GroundingDINO detector", ("transformer.level_embed", "bert.", "backbone.")),
    ("a GroundingDINO detector of transformers", ("model.backbone.", "model.text_backbone.")),
    ("a SAM segmenter of transformers", ("vision_encoder.", "prompt_encoder.", "mask_decoder.")),
    ("a SAM 2 segmenter of transformers", ("vision_encoder.backbone.", "mask_decoder.")),
    ("an ImageReward", ("blip.visual_encoder.", "blip.text_encoder.", "mlp.layers.")),
    ("a CLIP of open_clip", ("visual.transformer.resblocks.", "transformer.resblocks.", "token_embedding.")),
    ("a CLIP with a ResNet", ("visual.layer1.", "token_embedding.")),
    ("a CLIP of transformers", ("vision_model.", "text_model.", "visual_projection.")),
    ("a BLIP of its authors", ("visual_encoder.blocks.", "text_encoder.")),
    ("a BLIP of transformers", ("vision_model.", "text_encoder.")),
    ("a BLIP-2 of LAVIS", ("visual_encoder.", "Qformer.")),
    ("a BLIP-2 of transformers", ("qformer.", "vision_model.")),
    ("a Stable Diffusion checkpoint", ("model.diffusion_model.",)),
    ("a LoRA", ("lora_unet_",)),
    ("a text encoder", ("text_model.encoder.",)),
    ("a VAE", ("encoder.down", "decoder.up")),
)


def looks_like(names: Iterable[str]) -> str:
    """The model whose tensors have these names: `a SAM segmenter`, `an unknown model (its first tensor is 'x')`."""
    names = list(names)
    for kind, marks in _KINDS:
        if all(any(name.startswith(mark) for name in names) for mark in marks):
            return kind
    return f"an unknown model (its first tensor is '{names[0]}')" if names else "nothing"


def wrong_file(file: str | Path, tensors: Mapping[str, Tensor], wanted: str) -> RealignError:
    """The error for an intact file of another model. wanted: e.g. `a SAM segmenter`."""
    kind = looks_like(tensors)
    if kind.endswith(" of transformers") and wanted.startswith(kind.removesuffix(" of transformers")):
        return RealignError(f"'{file}' looks like {kind}, which needs its folder: put its config.json beside it.")
    return RealignError(f"'{file}' looks like {kind}, but {wanted} is wanted: choose another file.")
