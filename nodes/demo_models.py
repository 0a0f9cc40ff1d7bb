"""The embedded demo world, so that every example runs on a machine without weights."""

from __future__ import annotations

from comfy_api.latest import io

from ..core.embedded import embedded
from . import loaders
from .host.sockets import Blip2, GroundedSam, Llm, Reward, Tagger
from .llm import HostedScorer
from .rewards import reward_model


class LoadDemoModels(io.ComfyNode):
    """All models of the demo world."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignLoadDemoModels",
            display_name="Load Demo Models",
            category=loaders.CATEGORY,
            description="Small models that draw and recognize colored shapes (circle, square, triangle, cross, ring, "
            "diamond in red, green, blue, yellow, purple, orange, pink). They come with the pack: nothing is fetched. "
            "Their images are 4 times as large as the latent, so an empty latent of 128 x 128 gives 64 x 64 pixels.",
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Clip.Output(display_name="clip"),
                io.Vae.Output(display_name="vae"),
                Blip2.Output(display_name="blip2"),
                Tagger.Output(display_name="tagger"),
                GroundedSam.Output(display_name="grounded_sam"),
                Llm.Output(display_name="llm"),
                Reward.Output(display_name="clip_reward", tooltip="For Rank Images."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from .host.demo_host import load_clip, load_model, load_vae

        diffusion = embedded("model")
        blip2 = loaders.blip2(embedded("captioner"), embedded("text_encoder"), "fp32")
        return io.NodeOutput(
            load_model(diffusion / "unet"),
            load_clip(diffusion / "text_encoder", diffusion / "tokenizer"),
            load_vae(diffusion / "vae"),
            blip2,
            loaders.tagger(embedded("tagger"), "fp32"),
            loaders.grounded_sam(embedded("detector"), embedded("segmenter"), "fp32"),
            HostedScorer(blip2),
            reward_model("clip", embedded("clip")),
        )


NODES = [LoadDemoModels]
