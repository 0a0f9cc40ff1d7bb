"""A pack of loaders that give SDXL and Flux in miniature, with random weights, in the place of ComfyUI's loaders."""

from __future__ import annotations

import comfy.sd
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL

from . import text_encoders
from .families import family
from .tiny import fill, patcher

SDXL_SIZES = 6 * 256
"""What SDXL is told of a picture's size beside the pooled prompt."""


class Loader:
    """A node without inputs."""

    FUNCTION, CATEGORY = "load", "miniatures"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}


class MiniatureSdxl(Loader):
    """As CheckpointLoaderSimple."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    def load(self):
        sdxl = family("SDXL")
        model = patcher(sdxl.kind, {**sdxl.config, "adm_in_channels": text_encoders.POOLED + SDXL_SIZES})
        return model, text_encoders.sdxl_clip(), vae(4)


class MiniatureFlux(Loader):
    """As UNETLoader."""

    RETURN_TYPES = ("MODEL",)

    def load(self):
        return (family("Flux").model,)


class MiniatureFluxClip(Loader):
    """As DualCLIPLoader."""

    RETURN_TYPES = ("CLIP",)

    def load(self):
        return (text_encoders.flux_clip(),)


class MiniatureFluxVae(Loader):
    """As VAELoader."""

    RETURN_TYPES = ("VAE",)

    def load(self):
        return (vae(16),)


def vae(channels: int) -> comfy.sd.VAE:
    """Of latents with so many channels, a quarter as high and wide as their pictures."""
    shape = {
        "double_z": True,
        "z_channels": channels,
        "resolution": 64,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    network = AutoencoderKL(embed_dim=channels, ddconfig=shape)
    fill(network)
    config = {"params": {"ddconfig": shape, "embed_dim": channels}}
    return comfy.sd.VAE(sd=network.state_dict(), config=config, dtype=torch.float32)


NODE_CLASS_MAPPINGS = {
    kind.__name__: kind for kind in (MiniatureSdxl, MiniatureFlux, MiniatureFluxClip, MiniatureFluxVae)
}
