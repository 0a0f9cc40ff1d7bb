"""A KSampler that draws its model's cross-attention maps: which parts of the image attend to which words."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..attention.comfy.families import UNET, list_families
from ..core.errors import RealignError
from ..core.phrases import parse_phrases
from ..core.regions import check_count, check_prompt
from ..core.words import strip_weights
from .host.inputs import output, text_input
from .host.interrupts import interruptible
from .host.ksampler import ksampler_inputs, run_ksampler
from .host.region_outputs import MIN_SIDE, image_batch

VAE_SCALE_FACTOR = 8
"""Pixels per element of a latent, as ComfyUI counts them."""


class AttentionMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignAttentionMaps",
            display_name="Attention Maps",
            category="RealignDiff/look",
            description="A KSampler that shows which parts of the image attend to which words. With Realign Model and "
            "Apply Regions it shows the re-weighted attention, so two of these nodes show before and after.",
            inputs=[
                *ksampler_inputs(f"{list_families(families=[UNET])}, also from Realign Model."),
                io.String.Input(
                    "words",
                    multiline=True,
                    default="",
                    tooltip="Words of the prompt, separated by commas or lines. Empty shows each object that the "
                    "prompt names.",
                ),
                text_input("The text that was encoded. Not needed if positive comes from Apply Regions."),
                io.Vae.Input("vae", optional=True, tooltip="Shows the sampled image, in grey, behind the maps."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="Exactly what KSampler would output."),
                output(io.Image, "heat_maps", "A picture per word, image by image, with its scale below."),
                output(io.Mask, "masks", "A mask per word, image by image: the map divided by its largest value."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, positive, latent_image, clip, words, text="", vae=None, **others: Any) -> io.NodeOutput:
        """others: the inputs that only KSampler uses."""
        from ..attention.comfy.conditioning import text_of
        from ..attention.comfy.encoded_text import EncodedText
        from ..attention.comfy.maps import record_attention, tag_words
        from ..attention.equation.maps import AttentionMaps, scale_to_max

        text = text or text_of(positive) or ""
        if not text.strip():
            raise RealignError("The prompt is unknown: connect it to text, or a positive conditioning with regions.")
        check_prompt(text)
        phrases = parse_phrases(words, strip_weights(text))
        check_count(len(phrases), "words")
        if not phrases:
            raise RealignError(f"The prompt '{text}' names nothing: write some of its words into words.")
        encoded = EncodedText(clip, text)
        positions = encoded.find(phrases)
        maps = AttentionMaps([positions] * len(latent_image["samples"]))
        latent = run_ksampler(
            model=record_attention(model, maps),
            positive=tag_words(positive, encoded, positions),
            latent_image=latent_image,
            **others,
        )
        image = None if vae is None else vae.decode(latent["samples"])
        latent_size = latent["samples"].shape[-2:]
        size = [VAE_SCALE_FACTOR * side for side in latent_size] if image is None else image.shape[1:3]
        heat = maps.mean(tuple(size))
        pictures = _pictures(heat, [phrase for phrase, _ in phrases], image)
        preview = ui.PreviewImage(pictures, cls=cls).as_dict()
        return io.NodeOutput(latent, pictures, scale_to_max(heat).flatten(0, 1), ui=preview)


def _pictures(heat: torch.Tensor, words: list[str], image: torch.Tensor | None) -> torch.Tensor:
    """Maps [B, W, h, w] of W words as labelled pictures [B·W, *, *, 3] in [0, 1], over images [B, h, w, 3] if given."""
    from ..drawing.attention_map import draw_labelled_map

    height, width = heat.shape[-2:]
    size = round(MIN_SIDE * width / max(height, width)), round(MIN_SIDE * height / max(height, width))
    return image_batch(
        draw_labelled_map(word_map, phrase, size, None if image is None else image[i])
        for i, image_maps in enumerate(heat)
        for word_map, phrase in zip(interruptible(image_maps), words, strict=True)
    )


NODES = [AttentionMaps]
