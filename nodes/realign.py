"""Re-weighted attention (eq. 7-9): regions in a conditioning, a model that uses them, and a KSampler with both."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..attention.comfy.families import list_families
from ..attention.equation.settings import ModulationSettings
from ..core.describe import describe_effect
from ..core.interchange import region_sets
from .host.inputs import box_image_input, image_size, output, regions_input, text_input
from .host.ksampler import clip_input, ksampler_inputs, run_ksampler

CATEGORY = "RealignDiff"
PAPER = ModulationSettings()
NOTHING = "attention is re-weighted at no step: a strength, or the range of steps, is 0"
MODELS = f"{list_families()}, also with LoRA, ControlNet or IPAdapter."
MODULATION = {
    "cross_strength": (
        10.0,
        "λ between image and text: how strongly each region is drawn from its own words. Raise it if an object still "
        "gets the wrong words; lower it if the image looks harsh. 0 turns it off.",
    ),
    "self_strength": (
        10.0,
        "λ within the image: how strongly each region is kept apart from the rest. Raise it a little if two objects "
        "merge. 0 turns it off.",
    ),
    "power": (
        20.0,
        "p in λ·(t/T)^p: how fast the effect fades as the noise does; 0 keeps it constant. Use 0 or 1 if denoise is "
        "below 1.",
    ),
    "start": (1.0, "The fraction of this run's steps at which the effect begins."),
    "end": (1.0, "The fraction of this run's steps at which the effect ends."),
}
"""The settings of eq. 9 that are inputs: the largest value and the tooltip. The defaults are the paper's."""


def modulation_inputs() -> list[Any]:
    return [
        io.Float.Input(id, default=getattr(PAPER, id), min=0.0, max=largest, step=0.01, tooltip=tooltip)
        for id, (largest, tooltip) in MODULATION.items()
    ]


def attaching_inputs() -> list[Any]:
    """The optional inputs of nodes that attach regions; the last came later, so older workflows keep their values."""
    return [
        text_input("The text that was encoded. Needed only if the regions carry no prompt, or a different one."),
        box_image_input(),
        io.Boolean.Input(
            "isolate_phrases",
            default=False,
            optional=True,
            tooltip="Encode the phrase of each region by itself, as DenseDiffusion does, so that 'red' in 'a red "
            "circle and a blue square' knows nothing of a square. Runs the text encoder once more per phrase.",
        ),
    ]


class ApplyRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignApplyRegions",
            display_name="Apply Regions",
            category=CATEGORY,
            description="Attaches regions to a conditioning. Sample it with a model from Realign Model, in any sampler "
            "node.",
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The encoded prompt, usually the positive one."),
                clip_input(),
                regions_input("Which words belong where. In a batch, set i is for image i."),
                *attaching_inputs(),
            ],
            outputs=[output(io.Conditioning, "conditioning", "A copy of the conditioning with the regions attached.")],
        )

    @classmethod
    def execute(cls, conditioning, clip, regions, text="", image=None, isolate_phrases=False) -> io.NodeOutput:
        from ..attention.comfy.conditioning import attach

        sets = region_sets(regions, text=text, size=image_size(image))
        attached = attach(conditioning, clip, sets, text, isolate_phrases)
        return io.NodeOutput(attached, ui={"text": [describe_effect(sets)]})


class RealignModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignModel",
            display_name="Realign Model",
            category=CATEGORY,
            description="Re-weights a model's attention by the regions that Apply Regions attached to its "
            "conditionings. Without regions the model samples exactly as before.",
            inputs=[io.Model.Input("model", tooltip=MODELS), *modulation_inputs()],
            outputs=[io.Model.Output(display_name="model", tooltip="The patched model, for any sampler node.")],
        )

    @classmethod
    def execute(cls, model, **strengths: float) -> io.NodeOutput:
        from ..attention.comfy.model import realign_model

        return io.NodeOutput(realign_model(model, ModulationSettings(**strengths)))


class RealignKSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignKSampler",
            display_name="Realign KSampler",
            category=CATEGORY,
            description="A KSampler that gives each region its own words. With the seed and settings of an earlier "
            "KSampler it corrects that image; without regions it is a plain KSampler.",
            inputs=[
                *ksampler_inputs(MODELS),
                regions_input(
                    "Which words belong where. In a batch, set i is for image i. Without regions this is a KSampler.",
                    optional=True,
                ),
                *modulation_inputs(),
                *attaching_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The sampled latent, for VAE Decode.")],
        )

    @classmethod
    def execute(
        cls, model, steps: int, positive, clip, regions=None, text="", image=None, isolate_phrases=False, **others: Any
    ) -> io.NodeOutput:
        """others: the strengths, and the inputs that only KSampler uses."""
        strengths = {name: others.pop(name) for name in MODULATION}
        ui = None
        if regions is not None:
            from ..attention.comfy.conditioning import attach
            from ..attention.comfy.model import realign_model

            settings = ModulationSettings(**strengths)
            model = realign_model(model, settings)
            sets = region_sets(regions, text=text, size=image_size(image))
            positive = attach(positive, clip, sets, text, isolate_phrases)
            ui = {"text": [describe_effect(sets) if isolate_phrases or settings.acts(steps) else NOTHING]}
        return io.NodeOutput(run_ksampler(model=model, steps=steps, positive=positive, **others), ui=ui)


NODES = [RealignKSampler, RealignModel, ApplyRegions]
