"""Exported files in ComfyUI: its own loaders take all of a LoRA and of a UNet, and compute what diffusers computes."""

import logging
from functools import cache

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

from realigndiff.lora_files.export import save_lora, save_unet
from realigndiff.lora_files.ldm_keys import ldm_names
from realigndiff.lora_files.state_dicts import merge_lora, unet_ldm_state_dict
from realigndiff.tests.close import CALL, apart, assert_close
from realigndiff.tests.test_export import (
    ALL,
    ATTENTION,
    CONVOLUTIONS,
    FEED_FORWARD,
    PATTERNS,
    SHAPES,
    make_inputs,
    make_unet,
    output,
    with_lora,
)

pytestmark = pytest.mark.usefixtures("comfy")

TRUE_SIZES = {
    "sd1": {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
TARGETS = {"attention": ATTENTION, "feed-forward": FEED_FORWARD, "convolutions": CONVOLUTIONS, "all": ALL}


@cache
def true_size(kind):
    """Without any memory."""
    with torch.device("meta"):
        return make_unet(kind, **TRUE_SIZES[kind])


def in_comfy(kind, weights):
    """A MODEL built of LDM weights as ComfyUI itself would, were it not particular about sizes."""
    import comfy.supported_models
    from comfy.model_detection import detect_unet_config
    from comfy.model_patcher import ModelPatcher

    config = detect_unet_config(weights, "")
    known = {"sd1": "SD15", "sd2": "SD20", "sdxl": "SDXL"}[kind]
    known = getattr(comfy.supported_models, known)(config)
    if kind != "sd1":
        known.unet_config.update(num_heads=-1, num_head_channels=16)  # of 64 in the true sizes
    known.set_inference_dtype(torch.float32, None)
    model = known.get_model({}, "")
    model.diffusion_model.load_state_dict(weights)  # as many names, the same and of the same shapes, or it raises
    return ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


@torch.inference_mode()
def output_in_comfy(model, unet):
    """What the MODEL computes of `unet`'s inputs."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model], force_patch_weights=True)
    inputs, y = make_inputs(unet), None
    if added := inputs.get("added_cond_kwargs"):
        times = unet.add_time_proj(added["time_ids"].flatten()).reshape(2, -1)
        y = torch.cat([added["text_embeds"], times], 1)
    text = inputs["encoder_hidden_states"]
    return model.model.diffusion_model(inputs["sample"], inputs["timestep"], context=text, y=y)


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("targets", TARGETS)
def test_a_lora_has_the_effect_that_it_has_in_training(kind, targets, tmp_path, caplog):
    import comfy.sd
    import comfy.utils

    unet, file = make_unet(kind), tmp_path / "lora.safetensors"
    model = in_comfy(kind, unet_ldm_state_dict(unet))
    plain = output_in_comfy(model, unet)
    save_lora(with_lora(unet, targets=TARGETS[targets], rank=4, alpha=14), file)
    caplog.clear()
    patched, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(file)), 1.0, 0)
    assert not warnings_of(caplog)
    assert len(patched.patches) == sum(hasattr(module, "lora_A") for module in unet.modules())
    assert apart(output_in_comfy(patched, unet), output(unet)) < CALL < 1e-2 < apart(plain, output(unet))


@pytest.mark.parametrize("options", [PATTERNS, {"use_rslora": True, **PATTERNS}], ids=["patterns", "rslora"])
def test_each_layer_may_have_a_rank_and_an_alpha_of_its_own(options, caplog):
    import comfy.lora
    from realigndiff.lora_files.state_dicts import lora_state_dict

    unet = make_unet("sdxl")
    model = in_comfy("sdxl", unet_ldm_state_dict(unet))
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(lora_state_dict(with_lora(unet, **options)), keys)
    assert not warnings_of(caplog)
    patched = model.clone()
    assert set(patched.add_patches(patches)) == set(patches)
    assert_close(output_in_comfy(patched, unet), output(unet))


@pytest.mark.parametrize("kind", SHAPES)
def test_half_precision_has_the_effect_but_for_rounding(kind, tmp_path):
    import comfy.sd
    import comfy.utils

    unet, file = make_unet(kind), tmp_path / "lora.safetensors"
    model = in_comfy(kind, unet_ldm_state_dict(unet))
    save_lora(with_lora(unet), file, dtype=torch.float16)
    patched, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(file)), 1.0, 0)
    assert_close(output_in_comfy(patched, unet), output(unet), 5e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers_per_block": 1},
        {"layers_per_block": (1, 3, 2)},
        {"block_out_channels": (32,), "levels": 1},
        {"block_out_channels": (32, 64), "levels": 2, "layers_per_block": 3},
        {"block_out_channels": (32, 64, 32, 64, 32), "levels": 5, "layers_per_block": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", SHAPES)
def test_all_of_a_unet_computes_the_same_at_any_depth(kind, changes):
    changes = dict(changes)
    if levels := changes.pop("levels", None):
        changes |= {
            "down_block_types": ("CrossAttnDownBlock2D",) * levels,
            "up_block_types": ("CrossAttnUpBlock2D",) * levels,
            "transformer_layers_per_block": 1,
            "attention_head_dim": 8 if kind == "sd1" else tuple(n // 16 for n in changes["block_out_channels"]),
        }
    elif kind != "sdxl" and isinstance(changes.get("layers_per_block"), tuple):
        changes["layers_per_block"] = (1, 3, 2, 1)
    unet = make_unet(kind, **changes)
    assert_close(output_in_comfy(in_comfy(kind, unet_ldm_state_dict(unet)), unet), output(unet))


@pytest.mark.parametrize("kind", SHAPES)
def test_a_merged_unet_computes_what_the_adapter_does(kind):
    unet = with_lora(make_unet(kind), **PATTERNS)
    model = in_comfy(kind, unet_ldm_state_dict(merge_lora(unet)))
    assert_close(output_in_comfy(model, unet), output(unet))


@pytest.mark.parametrize("kind", TRUE_SIZES)
def test_names_are_those_of_comfyuis_own_map(kind):
    import comfy.utils
    from comfy.model_detection import detect_unet_config

    unet = true_size(kind)
    host = comfy.utils.unet_to_diffusers(detect_unet_config(unet_ldm_state_dict(unet), ""))
    names = ldm_names(unet.config, unet.state_dict())
    assert names == {name: host[name] for name in names} and len(set(names.values())) == len(names)


@pytest.mark.parametrize(("kind", "known"), [("sd1", "SD15"), ("sd2", "SD20"), ("sdxl", "SDXL")])
def test_comfyui_knows_the_true_sizes(kind, known, caplog):
    from comfy.model_detection import model_config_from_unet

    weights = unet_ldm_state_dict(true_size(kind))
    found = model_config_from_unet(weights, "")
    assert type(found).__name__ == known
    found.set_inference_dtype(torch.float16, None)
    built = found.get_model({}, device="meta").diffusion_model.state_dict()
    assert {name: tensor.shape for name, tensor in built.items()} == {n: t.shape for n, t in weights.items()}
    assert not warnings_of(caplog)


def test_unetloader_takes_a_full_stable_diffusion_1_file(comfy, caplog):
    import comfy.sd

    caplog.set_level(logging.INFO)
    weights = {  # zeros take no memory until they are written to
        name: torch.zeros(tensor.shape, dtype=torch.float16)
        for name, tensor in unet_ldm_state_dict(true_size("sd1")).items()
    }
    model = comfy.sd.load_diffusion_model_state_dict(weights)
    assert type(model.model.model_config).__name__ == "SD15"
    assert model.model.diffusion_model.dtype in (torch.float16, torch.float32)
    assert not warnings_of(caplog) and "left over" not in caplog.text and "missing" not in caplog.text


def test_unetloader_reads_a_file_of_ours(tmp_path, caplog):
    """One level, one layer: the least that ComfyUI takes for Stable Diffusion 1."""
    import comfy.sd

    unet = make_unet(
        block_out_channels=(320,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    file = tmp_path / "unet.safetensors"
    save_unet(unet, file, {"modelspec.title": "shapes"}, dtype=torch.float32)
    caplog.set_level(logging.INFO)
    model = comfy.sd.load_diffusion_model(str(file), {"dtype": torch.float32})
    assert not warnings_of(caplog) and "left over" not in caplog.text and "missing" not in caplog.text
    assert_close(output_in_comfy(model, unet), output(unet))
