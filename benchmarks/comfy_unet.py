"""What `sampling.py` measures: a UNet of the true architecture with random weights, sampled by ComfyUI's KSampler."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..attention.equation.layout_cache import Batch, LayoutCache
from ..attention.equation.settings import ModulationSettings
from ..core.errors import RealignError
from ..core.regions import RegionSet
from .attention import positions_of
from .dense_diffusion import Attend


def enter() -> None:
    """Make the ComfyUI at COMFYUI_PATH importable, with PyTorch's own fused attention on a CPU too."""
    path = os.path.expanduser(os.environ.get("COMFYUI_PATH", ""))
    if not os.path.isfile(os.path.join(path, "comfy", "samplers.py")):
        raise RealignError(
            "Sampling is measured in ComfyUI: set COMFYUI_PATH to a checkout of it, and run this with its Python."
        )
    sys.path.insert(0, path)
    import comfy.options

    comfy.options.enable_args_parsing()
    cpu = [] if torch.cuda.is_available() else ["--cpu"]
    arguments, sys.argv = sys.argv, ["comfy", "--use-pytorch-cross-attention", *cpu]
    try:
        import comfy.cli_args  # it reads them once
    finally:
        sys.argv = arguments


ATTENTION = {
    "sd15": {
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "context_dim": 768,
        "num_heads": 8,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
    },
    "sdxl": {
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
        "context_dim": 2048,
        "num_head_channels": 64,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": 2816,
    },
}
"""Of the published UNets, what differs."""


def random_unet(name: str, dtype: torch.dtype) -> Any:
    """A MODEL with weights that keep the size of what runs through it.

    On a CPU all layers of one shape share them, so that SDXL needs no 10 GB; a GPU gets a copy for each layer.
    """
    import comfy.model_detection
    import comfy.model_management
    from comfy.model_patcher import ModelPatcher

    common = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320}
    kind = {"use_spatial_transformer": True, "use_temporal_attention": False, "legacy": False}
    known = comfy.model_detection.model_config_from_unet_config({**common, **kind, **ATTENTION[name]})
    known.set_inference_dtype(dtype, None)
    model = known.get_model({}, "")
    torch.manual_seed(0)
    weights: dict[torch.Size, Tensor] = {}
    for name, parameter in model.diffusion_model.named_parameters():
        if parameter.ndim == 1:
            parameter.data.fill_(float(name.endswith("weight")))
            continue
        if parameter.shape not in weights:
            weights[parameter.shape] = torch.randn_like(parameter) * parameter[0].numel() ** -0.5
        parameter.data = weights[parameter.shape]
    management = comfy.model_management
    return ModelPatcher(model, management.get_torch_device(), management.unet_offload_device())


def conditioning(model_name: str, seed: int, regions: RegionSet | None = None) -> list:
    """A CONDITIONING of random numbers, for all images alike, with regions or without."""
    from ..attention.comfy.payload import KEY, BoundRegions, Payload, put_entry

    g = torch.Generator().manual_seed(seed)
    width = ATTENTION[model_name]["context_dim"]
    options = {"pooled_output": torch.randn(1, 1280, generator=g)} if model_name == "sdxl" else {}
    if regions is not None:
        bound = BoundRegions(regions, positions_of(regions))
        options = put_entry(options, KEY, Payload((bound,), regions.prompt))
    return [[torch.randn(1, 77, width, generator=g), options]]


def sample(
    model: Any, positive: list, negative: list, noise: Tensor, steps: int, after_step: Callable[[], None]
) -> Tensor:
    """KSampler's latents, by one call of the UNet a step for both conditionings."""
    import comfy.sample

    how = (7.0, "euler", "normal", positive, negative, torch.zeros_like(noise))
    return comfy.sample.sample(
        model, noise, steps, *how, disable_pbar=True, seed=0, callback=lambda *args: after_step()
    )


def replace_attention(model: Any, regions: RegionSet, settings: ModulationSettings, attend: Attend) -> Any:
    """`attend` in the place of all attention, as another pack would put it in."""
    sampling, layouts = model.get_model_object("model_sampling"), LayoutCache(settings)

    def attention(cross: bool, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        if options["cond_or_uncond"] != [1, 0]:
            raise RealignError("There is too little memory for both conditionings at once: measure a smaller image.")
        sigma = options["sigmas"][:1]
        step = int((options["sample_sigmas"] >= sigma * (1 - 1e-5)).sum()) - 1
        fade = float(sampling.timestep(sigma.cpu())) / sampling.num_timesteps
        lam = settings.strengths(fade, step / (len(options["sample_sigmas"]) - 1))[0 if cross else 1]
        half = len(q) // 2  # the rows of the prompt are the second half, as ComfyUI orders them
        batch = Batch([None] * half + [regions] * half, [()] * half + [positions_of(regions)] * half)
        size = tuple(options["activations_shape"][-2:])
        layout = layouts.get(cross, size, k.shape[1], q.device, lambda: batch, key=half)
        q, k, v = (x.unflatten(-1, (options["n_heads"], -1)).transpose(1, 2) for x in (q, k, v))
        return attend(q, k, v, layout, lam).transpose(1, 2).flatten(2)

    patched = model.clone()
    for name, numbers in (("input", range(12)), ("middle", range(1)), ("output", range(12))):
        for number in numbers:
            patched.set_model_attn1_replace(partial(attention, False), name, number)
            patched.set_model_attn2_replace(partial(attention, True), name, number)
    return patched
