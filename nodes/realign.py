"""Re-weighted attention (eq. 7-9): regions into a CONDITIONING, a MODEL that heeds them, and both in a KSampler."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io

import nodes as comfy_nodes

from ..attention.equation.settings import ModulationSettings
from ..core.describe import outcomes
from ..core.interchange import region_sets
from .host.sockets import chosen, image_input, image_size, regions_input, text_input

CATEGORY = "RealignDiff"
PAPER = ModulationSettings()
NOTHING = "attention is re-weighted at no step: a strength, or the range of steps, is 0"
MODELS = "A Stable Diffusion 1, 2, XL or 3, Flux, Chroma, Qwen-Image, Lumina 2, Z-Image, Wan or Cosmos-Predict2."


def _setting(id: str, default: float, high: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(id, default=default, min=0.0, max=high, step=0.01, tooltip=tooltip)


def modulation_inputs() -> list[Any]:
    """λ, p and the step range of eq. 9; the defaults are the paper's."""
    return [
        _setting(
            "cross_strength",
            PAPER.cross_strength,
            10.0,
            "λ between pixels and words: how strongly each thing gets its own words. 0 switches this off.",
        ),
        _setting(
            "self_strength",
            PAPER.self_strength,
            10.0,
            "λ between pixels: how strongly each thing is kept apart from the others. 0 switches this off.",
        ),
        _setting(
            "power",
            PAPER.power,
            20.0,
            "p in λ·(t/T)^p: how fast it fades as the image emerges; 0: not at all. "
            "Lower it where denoise is below 1, or little is left.",
        ),
        _setting("start", PAPER.start, 1.0, "The fraction of this run's steps at which it sets in."),
        _setting("end", PAPER.end, 1.0, "The fraction of this run's steps at which it ends."),
    ]


def isolate_input() -> Any:
    """The switch that comes after all others, so that older workflows keep their values."""
    return io.Boolean.Input(
        "isolate_phrases",
        default=False,
        optional=True,
        tooltip="Encode each region's words alone, as DenseDiffusion does: in 'a red circle and a blue square', 'red' "
        "then knows of no square. Takes the text encoder once more for each phrase.",
    )


def _settings(
    cross_strength: float, self_strength: float, power: float, start: float, end: float
) -> ModulationSettings:
    return ModulationSettings(
        cross_strength=cross_strength, self_strength=self_strength, power=power, start=start, end=end
    )


def ksampler_inputs(models: str) -> list[Any]:
    """What KSampler takes; models: the tooltip that says of which families."""
    return [
        io.Model.Input("model", tooltip=models),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,  # said aloud, or newer frontends misread saved workflows
            tooltip="Of the noise: the first image's seed to mend that image.",
        ),
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Steps of the sampler."),
        io.Float.Input("cfg", default=8.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Guidance scale."),
        io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="The sampler."),
        io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="The noise schedule."),
        io.Conditioning.Input("positive", tooltip="What the image should show."),
        io.Conditioning.Input("negative", tooltip="What it should not show."),
        io.Latent.Input("latent_image", tooltip="The latent to start from: the first image's."),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="1 starts from noise; less keeps more of the latent.",
        ),
    ]


class ApplyRegions(io.ComfyNode):
    """Regions into a CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignApplyRegions",
            display_name="Apply Regions",
            category=CATEGORY,
            description="Lets a conditioning carry regions to the attention layers. Sample with a model from Realign "
            "Model, with any sampler node; combine, mask and time conditionings as always.",
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The encoded prompt; usually the positive one."),
                io.Clip.Input("clip", tooltip="The text encoder that encoded it: it knows where each word is."),
                regions_input(tooltip="Which words belong where; of a batch, set i is for image i."),
                text_input("The encoded text, if it is not the regions' own prompt."),
                image_input(),
                isolate_input(),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning")],
        )

    @classmethod
    def execute(
        cls,
        conditioning,
        clip,
        regions,
        text: str = "",
        image: torch.Tensor | None = None,
        isolate_phrases: bool = False,
    ) -> io.NodeOutput:
        from ..attention.comfy.conditioning import attach

        sets = region_sets(regions, text=text, size=image_size(image))
        attached = attach(conditioning, clip, sets, text, isolate_phrases)
        return io.NodeOutput(attached, ui={"text": [outcomes(sets)]})


class RealignModel(io.ComfyNode):
    """A MODEL that heeds regions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignModel",
            display_name="Realign Model",
            category=CATEGORY,
            description="Re-weights a model's attention by the regions that conditionings carry (see Apply Regions). "
            "Without any, the model samples as always, bit for bit.",
            inputs=[io.Model.Input("model", tooltip=MODELS), *modulation_inputs()],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(
        cls, model, cross_strength: float, self_strength: float, power: float, start: float, end: float
    ) -> io.NodeOutput:
        from ..attention.comfy.model import realign_model

        return io.NodeOutput(realign_model(model, _settings(cross_strength, self_strength, power, start, end)))


class RealignKSampler(io.ComfyNode):
    """KSampler with regions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignKSampler",
            display_name="Realign KSampler",
            category=CATEGORY,
            description="KSampler that gives each thing its own words. With the same seed and settings as the KSampler "
            "that drew the first image, it mends that image; without regions it is that KSampler.",
            inputs=[
                *ksampler_inputs(MODELS),
                io.Clip.Input("clip", tooltip="The text encoder that encoded the prompt: it knows where each word is."),
                regions_input(
                    optional=True,
                    tooltip="Which words belong where; of a batch, set i is for image i; none: a KSampler.",
                ),
                *modulation_inputs(),
                text_input("The encoded text, if it is not the regions' own prompt."),
                image_input(),
                isolate_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
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
        cross_strength: float,
        self_strength: float,
        power: float,
        start: float,
        end: float,
        regions=None,
        text: str = "",
        image: torch.Tensor | None = None,
        isolate_phrases: bool = False,
    ) -> io.NodeOutput:
        chosen("sampler", sampler_name, comfy.samplers.KSampler.SAMPLERS)
        chosen("scheduler", scheduler, comfy.samplers.KSampler.SCHEDULERS)
        ui = None
        if regions is not None:
            from ..attention.comfy.conditioning import attach
            from ..attention.comfy.model import realign_model

            settings = _settings(cross_strength, self_strength, power, start, end)
            model = realign_model(model, settings)
            sets = region_sets(regions, text=text, size=image_size(image))
            positive = attach(positive, clip, sets, text, isolate_phrases)
            ui = {"text": [outcomes(sets) if isolate_phrases or settings.acts(steps) else NOTHING]}
        (latent,) = comfy_nodes.common_ksampler(
            model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=denoise
        )
        return io.NodeOutput(latent, ui=ui)


NODES = [ApplyRegions, RealignModel, RealignKSampler]
