"""Which words the pixels attend to, in pictures: a KSampler that looks at its model's cross-attention."""

from __future__ import annotations

import comfy.samplers
import numpy as np
import torch
from comfy_api.latest import io, ui

import nodes as comfy_nodes

from ..core.errors import RealignError
from ..core.phrases import parse_phrases
from ..core.regions import check_count, check_prompt
from ..core.words import strip_weights
from .host.hosting import stopping
from .host.pictures import SIDE
from .host.sockets import chosen, text_input
from .realign import ksampler_inputs

CELL = 8
"""The pixels that one element of a latent becomes, as ComfyUI counts them."""


class AttentionMaps(io.ComfyNode):
    """Cross-attention as heat maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignAttentionMaps",
            display_name="Attention Maps",
            category="RealignDiff/look",
            description="KSampler that shows where in the image each word is attended to. With a model from Realign "
            "Model and a conditioning from Apply Regions it shows re-weighted attention, so two of these nodes show "
            "before and after. The latent is KSampler's.",
            inputs=[
                *ksampler_inputs("A Stable Diffusion 1, 2 or SDXL."),
                io.Clip.Input("clip", tooltip="The text encoder that encoded the prompt: it knows where each word is."),
                io.String.Input(
                    "words",
                    multiline=True,
                    default="",
                    tooltip="Words of the prompt, separated by commas or lines; empty: each thing that it names.",
                ),
                text_input("The encoded text; not needed where Apply Regions told it to the positive conditioning."),
                io.Vae.Input("vae", optional=True, tooltip="Lets the image be seen through the maps."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="What KSampler would give, bit for bit."),
                io.Image.Output(display_name="heat_maps", tooltip="One picture a word, image by image."),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="One map a word, image by image; 1 is each map's own largest value.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive,
        negative,
        latent_image: dict,
        denoise: float,
        clip,
        words: str,
        text: str = "",
        vae=None,
    ) -> io.NodeOutput:
        from ..attention.comfy.conditioning import find_words, text_of
        from ..attention.comfy.maps import recording, with_words
        from ..attention.equation.maps import AttentionMaps, scale_to_max

        chosen("sampler", sampler_name, comfy.samplers.KSampler.SAMPLERS)
        chosen("scheduler", scheduler, comfy.samplers.KSampler.SCHEDULERS)
        text = text or text_of(positive) or ""
        if not text.strip():
            raise RealignError("The prompt is unknown: connect it to text, or a positive conditioning with regions.")
        check_prompt(text)
        looked_at = parse_phrases(words, strip_weights(text))
        check_count(len(looked_at), "words")
        if not looked_at:
            raise RealignError(f"The prompt '{text}' names nothing: write some of its words into words.")
        positions = find_words(looked_at, clip, text)
        maps = AttentionMaps([positions] * len(latent_image["samples"]))
        latent = comfy_nodes.common_ksampler(
            recording(model, maps),
            *(seed, steps, cfg, sampler_name, scheduler),
            with_words(positive, clip, text, positions),
            negative,
            latent_image,
            denoise=denoise,
        )[0]
        image = None if vae is None else vae.decode(latent["samples"])
        height, width = (CELL * side for side in latent["samples"].shape[-2:]) if image is None else image.shape[1:3]
        heat = maps.mean((height, width))
        pictures = _pictures(heat, [phrase for phrase, _ in looked_at], image)
        preview = ui.PreviewImage(pictures, cls=cls).as_dict()
        return io.NodeOutput(latent, pictures, scale_to_max(heat).flatten(0, 1), ui=preview)


def _pictures(heat: torch.Tensor, words: list[str], image: torch.Tensor | None) -> torch.Tensor:
    """Maps [B, W, h, w] of W words, over images [B, h, w, 3] if there are any: [B·W, *, *, 3] in [0, 1]."""
    from ..drawing.attention_map import draw_labelled_map

    height, width = heat.shape[-2:]
    size = round(SIDE * width / max(height, width)), round(SIDE * height / max(height, width))
    drawn = [
        draw_labelled_map(one, phrase, size, None if image is None else image[i])
        for i, own in enumerate(heat)
        for one, phrase in zip(stopping(own), words, strict=True)
    ]
    return torch.from_numpy(np.stack([np.asarray(picture, np.float32) / 255 for picture in drawn]))
