"""The demo Stable Diffusion in this process, sampled by ComfyUI's own functions; and an independent modulation to
compare with: eq. 8-9 written out, in the rows of the positive conditioning, put in as another pack would do it."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.supported_models
import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.model_patcher import ModelPatcher
from realigndiff.attention.equation.layout import cross_layout, self_layout
from realigndiff.attention.equation.reference import reference_attention
from realigndiff.attention.equation.settings import ModulationSettings
from realigndiff.core.regions import Region, RegionSet
from realigndiff.nodes.host import demo_diffusion

WEIGHTS = Path(__file__).parents[2] / "demo" / "weights" / "stable_diffusion"
PROMPT = "a red circle and a blue square"
SETTINGS = ModulationSettings(end=0.5)
STEPS = 6


def box(y0: float, y1: float, x0: float, x1: float, size: int = 64) -> torch.Tensor:
    mask = torch.zeros(size, size)
    mask[round(y0 * size) : round(y1 * size), round(x0 * size) : round(x1 * size)] = 1
    return mask


REGIONS = RegionSet(
    PROMPT,
    (
        Region(tag="circle", phrase="a red circle", mask=box(0.1, 0.5, 0.6, 1)),
        Region(tag="square", phrase="a blue square", likelihood=0.5, mask=box(0.6, 1, 0.3, 0.65)),
    ),
)


@dataclass
class Tiny:
    """The demo models, and sampling in a line."""

    @cached_property
    def model(self):
        return demo_diffusion.load_model(WEIGHTS / "unet")

    @cached_property
    def clip(self):
        return demo_diffusion.load_clip(WEIGHTS / "text_encoder", WEIGHTS / "tokenizer")

    def encode(self, text: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    @cached_property
    def positive(self) -> list:
        return self.encode(PROMPT)

    @cached_property
    def negative(self) -> list:
        return self.encode("")

    def noise(self, batch: int = 1, height: int = 16, width: int = 16, seed: int = 22) -> torch.Tensor:
        return comfy.sample.prepare_noise(torch.zeros(batch, 4, height, width), seed)

    def sample(self, model, positive, negative=None, *, noise=None, latent=None, cfg=3.0, steps=STEPS, **options):
        """KSampler's latents."""
        noise = self.noise() if noise is None else noise
        latent = torch.zeros_like(noise) if latent is None else latent
        options = {"sampler_name": "ddim", "scheduler": "ddim_uniform", "denoise": 1.0} | options
        negative = self.negative if negative is None else negative
        return comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            positive=positive,
            negative=negative,
            latent_image=latent,
            disable_pbar=True,
            seed=22,
            **options,
        )


def sites(unet):
    """Every (kind, name, number, index) of the UNet."""
    parts = {"input": unet.input_blocks, "middle": [unet.middle_block], "output": unet.output_blocks}
    for name, blocks in parts.items():
        for number, block in enumerate(blocks):
            for layer in block:
                if isinstance(layer, SpatialTransformer):
                    yield from ((name, number, index) for index in range(len(layer.transformer_blocks)))


def written_out(tiny: Tiny, model, regions: RegionSet, settings: ModulationSettings = SETTINGS, extra=None):
    """`model` with eq. 8-9 written out in its positive rows; `extra(q, k, v, heads)` is added to cross-attention."""
    positions = []
    for region in regions.active:
        words = tiny.clip.tokenizer.clip_l.tokenizer(region.phrase, add_special_tokens=False).input_ids
        ids = [token for token, _ in tiny.clip.tokenize(regions.prompt)["l"][0]]
        start = next(i for i in range(len(ids)) if ids[i : i + len(words)] == words)
        positions.append(list(range(start, start + len(words))))

    def replace(cross: bool):
        def attention(q, k, v, options):
            heads = options["n_heads"]
            out = optimized_attention(q, k, v, heads)
            sigmas, sigma = options["sample_sigmas"], options["sigmas"][0]
            t = float(model.get_model_object("model_sampling").timestep(sigma)) / 1000
            now = settings.strengths(t, int((sigmas == sigma).nonzero()[0]) / (len(sigmas) - 1))[0 if cross else 1]
            which = options["cond_or_uncond"]
            per = len(q) // len(which)
            rows = [c * per + i for c, kind in enumerate(which) for i in range(per) if kind == 0]
            if now and rows:
                size = tuple(options["activations_shape"][-2:])
                sets = [regions] * len(rows)
                layout = (
                    cross_layout(sets, [positions] * len(rows), size, k.shape[1], settings)
                    if cross
                    else self_layout(sets, size, settings)
                )
                heads_first = [x[rows].unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
                out[rows] = reference_attention(*heads_first, layout, now).transpose(1, 2).flatten(2)
            return out + extra(q, k, v, heads) if extra and cross else out

        return attention

    patched = model.clone()
    for site in sites(model.get_model_object("diffusion_model")):
        patched.set_model_attn1_replace(replace(False), *site)
        patched.set_model_attn2_replace(replace(True), *site)
    return patched


def controlled(tiny: Tiny, positive: list) -> tuple[list, list]:
    """The positive and the negative conditioning under a ControlNet with random weights."""
    import comfy.cldm.cldm
    import comfy.controlnet

    torch.manual_seed(1)
    network = comfy.cldm.cldm.ControlNet(
        image_size=32,
        in_channels=4,
        model_channels=64,
        hint_channels=3,
        num_res_blocks=[1, 1],
        channel_mult=(1, 2),
        num_heads=2,
        transformer_depth=[1, 1],
        transformer_depth_middle=1,
        context_dim=64,
        use_spatial_transformer=True,
        legacy=False,
    )
    for parameter in network.parameters():
        parameter.data = 0.05 * torch.randn_like(parameter)
    control = comfy.controlnet.ControlNet(network, load_device=comfy.model_management.get_torch_device())
    control = control.copy().set_cond_hint(torch.rand(1, 3, 128, 128), 1.0, (0.0, 1.0))
    options = {"control": control, "control_apply_to_uncond": False}
    return tuple([[e, {**old, **options}] for e, old in conditioning] for conditioning in (positive, tiny.negative))


def patcher(kind: str, config: dict, checkpoint: dict | None = None) -> ModelPatcher:
    """A MODEL of an entry of `comfy.supported_models`, with random weights under which attention is far from even."""
    known = getattr(comfy.supported_models, kind)(config)
    known.set_inference_dtype(torch.float32, None)
    model = known.get_model(checkpoint or {}, "")
    fill(model.diffusion_model)
    device = comfy.model_management.get_torch_device()
    return ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def fill(network: torch.nn.Module) -> None:
    """ComfyUI leaves parameters as the memory was."""
    random = torch.Generator().manual_seed(3)
    sharp = re.compile(r"norm_(added_)?[qk]|(q|k|query|key)_norm|ln_[qk]|to_[qk]")
    for name, parameter in network.named_parameters():
        value = torch.randn(parameter.shape, generator=random)
        if parameter.ndim > 1:
            value /= parameter[0].numel() ** 0.5
        else:
            value = 0.1 * value + (not name.endswith("bias"))
        parameter.data = value * (1.5 if sharp.search(name) else 1)
    for name, buffer in network.named_buffers():
        if name == "pos_embed":
            buffer.normal_(generator=random)


def tiny_sdxl():
    """A UNet with SDXL's block layout (no attention in the first level, two transformers in the second), random."""
    config = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 64,
        "channel_mult": [1, 2],
        "num_res_blocks": [2, 2],
        "transformer_depth": [0, 0, 2, 2],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2],
        "transformer_depth_middle": 2,
        "context_dim": 64,
        "num_head_channels": 32,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "adm_in_channels": 2816,
        "num_classes": "sequential",
        "use_temporal_attention": False,
        "legacy": False,
    }
    return patcher("SDXL", config)
