"""ComfyUI's KSampler, for nodes that sample as it does."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

import nodes as comfy_nodes

from .inputs import check_choice, fraction_input


def ksampler_inputs(model_tooltip: str) -> list[Any]:
    """KSampler's inputs, then the CLIP."""
    return [
        io.Model.Input("model", tooltip=model_tooltip),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,  # newer frontends misread saved workflows without it
            tooltip="Seed of the noise. To sample an image again, use its seed.",
        ),
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Number of sampling steps."),
        io.Float.Input("cfg", default=8.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Guidance scale."),
        io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="The sampler."),
        io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="The noise schedule."),
        io.Conditioning.Input("positive", tooltip="The encoded prompt: what the image should show."),
        io.Conditioning.Input("negative", tooltip="What the image should not show."),
        io.Latent.Input(
            "latent_image",
            tooltip="The latent to start from. To sample an image again, use the one it started from, not its result.",
        ),
        fraction_input("denoise", 1.0, "1 starts from pure noise; lower values keep more of the latent."),
        clip_input(),
    ]


def clip_input() -> Any:
    return io.Clip.Input("clip", tooltip="The text encoder that encoded the prompt. It locates the words in it.")


def run_ksampler(
    model, seed, steps, cfg, sampler_name: str, scheduler: str, positive, negative, latent_image: dict, denoise: float
) -> dict:
    """The LATENT that KSampler returns for these inputs."""
    check_choice("sampler", sampler_name, comfy.samplers.KSampler.SAMPLERS)
    check_choice("scheduler", scheduler, comfy.samplers.KSampler.SCHEDULERS)
    (latent,) = comfy_nodes.common_ksampler(
        model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=denoise
    )
    return latent
