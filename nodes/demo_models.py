"""The demo world's models, with which every example runs on a machine without other weights."""

from __future__ import annotations

from comfy_api.latest import io

from ..core.embedded import embedded
from . import loaders
from .host.inputs import output
from .host.language_models import ManagedOfflineScorer
from .host.sockets import Blip2, GroundedSam, Llm, Reward, Tagger
from .rewards import load_reward


class LoadDemoModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignLoadDemoModels",
            display_name="Load Demo Models",
            category=loaders.CATEGORY,
            description="Loads the small models that come with the pack; nothing is downloaded. They draw and "
            "recognize colored shapes: circle, square, triangle, cross, ring, diamond in red, green, blue, yellow, "
            "purple, orange, pink. Use an empty latent of 128 x 128: its image has 64 x 64 pixels.",
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="A small Stable Diffusion, for any sampler node."),
                output(io.Clip, "clip", "Its text encoder, for CLIP Text Encode and Realign KSampler."),
                io.Vae.Output(display_name="vae", tooltip="Its autoencoder, for VAE Decode and VAE Encode."),
                Blip2.Output(display_name="blip2", tooltip=loaders.BLIP2_USES),
                Tagger.Output(display_name="tagger", tooltip=loaders.TAGGER_USES),
                GroundedSam.Output(display_name="grounded_sam", tooltip=loaders.GROUNDED_SAM_USES),
                Llm.Output(display_name="llm", tooltip="The offline scorer, for Likelihoods and SAM Reward."),
                Reward.Output(display_name="clip_reward", tooltip="A small CLIP, for Rank Images."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from .host.demo_diffusion import load_clip, load_model, load_vae

        diffusion = embedded("model")
        blip2 = loaders.load_blip2(embedded("captioner"), embedded("text_encoder"), "fp32")
        return io.NodeOutput(
            load_model(diffusion / "unet"),
            load_clip(diffusion / "text_encoder", diffusion / "tokenizer"),
            load_vae(diffusion / "vae"),
            blip2,
            loaders.load_tagger(embedded("tagger"), "fp32"),
            loaders.load_grounded_sam(embedded("detector"), embedded("segmenter"), "fp32"),
            ManagedOfflineScorer(blip2),
            load_reward("clip", embedded("clip")),
        )


NODES = [LoadDemoModels]
