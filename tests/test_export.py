"""What is exported is what was trained: the same tensors and strength, the same output, in files that are whole."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch
from PIL import Image

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from realigndiff.core.errors import RealignError
from realigndiff.lora_files import export
from realigndiff.lora_files.export import save_lora, save_unet
from realigndiff.lora_files.metadata import base_model, run_metadata
from realigndiff.lora_files.state_dicts import lora_state_dict, merge_lora, unet_ldm_state_dict
from realigndiff.tests.close import CALL, apart, assert_close
from safetensors import safe_open
from safetensors.torch import load_file

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
FEED_FORWARD = ["ff.net.0.proj", "ff.net.2"]
CONVOLUTIONS = ["proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"]
ALL = [*ATTENTION, *FEED_FORWARD, *CONVOLUTIONS, "time_emb_proj", "conv_in", "conv_out"]
PATTERNS = {"rank_pattern": {"to_k": 2}, "alpha_pattern": {"conv1": 3}}
RUN = {"steps": 50, "learning_rate": 1e-5, "config": {"margin": 0.8}, "prompts": ["a red circle", "a blue square"]}

SHAPES = {
    "sd1": {
        "block_out_channels": (32, 64, 96, 96),
        "cross_attention_dim": 24,
        "attention_head_dim": 8,
    },
    "sd2": {
        "block_out_channels": (32, 64, 96, 96),
        "cross_attention_dim": 24,
        "attention_head_dim": (2, 4, 6, 6),
        "use_linear_projection": True,
    },
    "sdxl": {
        "block_out_channels": (32, 64, 96),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3),
        "cross_attention_dim": 24,
        "attention_head_dim": (2, 4, 6),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    },
}
"""The block layouts of Stable Diffusion 1, 2 and XL, narrow; diffusers calls the number of heads attention_head_dim."""
layouts_and_strengths = pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("sd1", {}),
        ("sd1", {"use_rslora": True}),
        ("sd2", PATTERNS),
        ("sdxl", {"use_rslora": True, **PATTERNS}),
    ],
    ids=["sd1 plain", "sd1 rslora", "sd2 patterns", "sdxl rslora and patterns"],
)
"""A name follows from the layout alone, a strength from the options alone: each is met, not each with each."""
SMALL = {
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24,
}
"""Where the layout does not matter."""


def make_unet(kind: str | None = None, **changes):
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(**{**(SHAPES[kind] if kind else SMALL), **changes}).eval()


def with_lora(unet, targets=ALL, rank=4, alpha=16, **options):
    """An adapter as after training: peft's own begins without effect."""
    unet.add_adapter(peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, **options))
    torch.manual_seed(1)
    for name, parameter in unet.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.05 * torch.randn_like(parameter)
    return unet


def make_inputs(unet) -> dict:
    """One call's arguments: 2 × 3 pixels at the lowest level, for over fewer a norm makes much of rounding."""
    torch.manual_seed(2)
    scale = 2 ** (len(unet.config.block_out_channels) - 1)
    inputs = {
        "sample": torch.randn(2, 4, 2 * scale, 3 * scale),
        "timestep": torch.tensor([500, 20]),
        "encoder_hidden_states": torch.randn(2, 5, unet.config.cross_attention_dim),
    }
    if unet.config.addition_embed_type:
        added = {"text_embeds": torch.randn(2, 16), "time_ids": torch.randint(0, 1024, (2, 6)).float()}
        inputs["added_cond_kwargs"] = added
    return inputs


@torch.no_grad()
def output(unet) -> torch.Tensor:
    return unet(**make_inputs(unet)).sample


def header(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


@layouts_and_strengths
def test_each_tensor_of_the_adapter_is_exported_at_its_strength(kind, options):
    unet = with_lora(make_unet(kind, layers_per_block=1), **options)
    tensors = lora_state_dict(unet)
    trained = {name: parameter for name, parameter in unet.named_parameters() if ".lora_" in name}
    assert len(tensors) == len(trained) * 3 // 2 > 200
    for name, parameter in trained.items():
        path, _, matrix = name.removesuffix(".default.weight").rpartition(".")
        exported = "lora_unet_" + path.replace(".", "_")
        side = {"lora_A": "lora_down", "lora_B": "lora_up"}[matrix]
        assert torch.equal(tensors[f"{exported}.{side}.weight"], parameter)
        down, up = tensors[f"{exported}.lora_down.weight"], tensors[f"{exported}.lora_up.weight"]
        change = tensors[f"{exported}.alpha"] / len(down) * (up.flatten(1) @ down.flatten(1))
        wanted = unet.get_submodule(path).get_delta_weight("default")
        assert_close(change.reshape(wanted.shape), wanted)
        assert down.dim() == up.dim() == wanted.dim()


def test_alphas_are_those_asked_for():
    tensors = lora_state_dict(with_lora(make_unet(), **PATTERNS))
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1"
    assert tensors[f"{block}_to_q.alpha"] == 16 and len(tensors[f"{block}_to_q.lora_down.weight"]) == 4
    assert tensors[f"{block}_to_k.alpha"] == 16 and len(tensors[f"{block}_to_k.lora_down.weight"]) == 2
    assert tensors["lora_unet_mid_block_resnets_0_conv1.alpha"] == 3


@pytest.mark.parametrize(
    ("kind", "options"),
    [("sd1", {}), ("sd2", {"use_rslora": True}), ("sdxl", PATTERNS)],  # diffusers mixes up alphas of both together
    ids=["sd1 plain", "sd2 rslora", "sdxl patterns"],
)
def test_diffusers_reads_it_back(kind, options, tmp_path):
    unet = with_lora(make_unet(kind, layers_per_block=1), **options)
    file = tmp_path / "lora.safetensors"
    save_lora(unet, file)
    loader = StableDiffusionXLLoraLoaderMixin if kind == "sdxl" else StableDiffusionLoraLoaderMixin
    fresh = make_unet(kind, layers_per_block=1)
    tensors, alphas = loader.lora_state_dict(str(file), unet_config=fresh.config)
    assert len(alphas) == len(load_file(file)) // 3
    plain = output(fresh)
    loader.load_lora_into_unet(tensors, alphas, fresh)
    assert apart(output(fresh), output(unet)) < CALL < 1e-2 < apart(plain, output(unet))


def test_the_file_holds_the_adapter_as_trained_whatever_its_present_strength():
    unet = with_lora(make_unet())
    trained = lora_state_dict(unet)
    unet.set_adapters("default", 0.25)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in lora_state_dict(unet).items())
    quarter = output(unet)
    assert apart(output(merge_lora(unet)), quarter) > 1e-2
    unet.set_adapters("default", 1.0)
    assert_close(output(merge_lora(unet)), output(unet))


@pytest.mark.parametrize("linear", [False, True], ids=["convolutions", "linear"])
def test_merging_leaves_the_unet_as_it_was(linear):
    unet = with_lora(make_unet(use_linear_projection=linear), use_rslora=True, **PATTERNS)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    copy = merge_lora(unet)
    assert set(copy.state_dict()) == set(make_unet().state_dict())
    assert_close(output(copy), output(unet))
    after = unet.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_a_compiled_unet_has_the_names_of_a_plain_one():
    unet = with_lora(make_unet(), targets=ATTENTION)
    compiled = torch.compile(unet)
    assert set(lora_state_dict(compiled)) == set(lora_state_dict(unet))
    assert set(unet_ldm_state_dict(torch.compile(merge_lora(compiled)))) == set(unet_ldm_state_dict(make_unet()))


def test_one_of_two_adapters_is_exported():
    unet = with_lora(make_unet(), targets=ATTENTION)
    unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=["conv1"]), "other")
    assert len(lora_state_dict(unet, "other")) == 3 * 8
    assert not any("conv1" in name for name in lora_state_dict(unet))


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("layers", [2, 1])
def test_diffusers_own_reader_of_ldm_files_gives_the_unet_back(kind, layers):
    unet = make_unet(kind, layers_per_block=layers)
    weights = unet_ldm_state_dict(unet)
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in weights.items()}
    back = convert_ldm_unet_checkpoint(prefixed, unet.config)
    assert set(back) == set(unet.state_dict())
    assert all(torch.equal(tensor, back[name]) for name, tensor in unet.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_file_of_the_whole_unet(dtype, tmp_path):
    unet, file = make_unet("sdxl"), tmp_path / "new folder" / "unet.safetensors"
    save_unet(unet, file, run_metadata("shapes", **RUN), dtype=dtype)
    weights, about = load_file(file), header(file)
    assert weights["input_blocks.0.0.weight"].dtype == dtype
    assert torch.equal(weights["out.2.weight"], unet.conv_out.weight.to(dtype))
    assert about["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert about["ss_output_name"] == about["modelspec.title"] == "shapes"
    assert "ss_network_module" not in about


def test_the_header_tells_of_the_run(tmp_path):
    date = datetime(2025, 3, 4, 5, 6, 7, 8, timezone.utc)
    config = {"prompts": Path("/home/somebody/prompts.txt"), "learning_rate": 1e-5, "targets": ("to_q", "to_k")}
    about = run_metadata(
        "shapes",
        steps=50,
        learning_rate=1e-5,
        config=config,
        prompts=RUN["prompts"],
        description="Circles and squares in their colours.",
        reward_before=0.5,
        reward_after=0.75,
        resolution=512,
        prediction_type="v_prediction",
        thumbnail=Image.effect_noise((900, 700), 90),
        date=date,
    )
    file = tmp_path / "lora.safetensors"
    save_lora(with_lora(make_unet()), file, about)
    written = header(file)
    assert written.pop("modelspec.thumbnail") == about["modelspec.thumbnail"]
    assert written.pop("modelspec.hash_sha256").startswith("0x")
    assert json.loads(written.pop("realigndiff.config")) == {
        "prompts": "prompts.txt",
        "learning_rate": 1e-5,
        "targets": ["to_q", "to_k"],
    }
    assert written == {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "16",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_steps": "50",
        "ss_learning_rate": "1e-05",
        "ss_output_name": "shapes",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "shapes",
        "modelspec.description": "Circles and squares in their colours.",
        "modelspec.date": "2025-03-04T05:06:07+00:00",
        "modelspec.resolution": "512x512",
        "modelspec.prediction_type": "v",
        "realigndiff.prompts_sha256": hashlib.sha256(b'["a red circle", "a blue square"]').hexdigest(),
        "realigndiff.reward_before": "0.5",
        "realigndiff.reward_after": "0.75",
    }


def test_what_is_not_known_is_not_told_and_the_caller_knows_better(tmp_path):
    about = run_metadata("shapes", **RUN)
    assert not {key for key in about if "reward" in key or key.endswith(("thumbnail", "resolution", "description"))}
    file = tmp_path / "lora.safetensors"
    save_lora(with_lora(make_unet("sd2"), **PATTERNS), file, {**about, "ss_base_model_version": "sd_v2_v"})
    about = header(file)
    assert about["ss_base_model_version"] == "sd_v2_v"
    assert about["modelspec.architecture"] == "stable-diffusion-v2-512/lora"
    assert about["ss_v2"] == "True"
    assert about["ss_network_dim"] == about["ss_network_alpha"] == "Dynamic"


def test_the_large_stable_diffusion_2_is_named_as_the_one_that_predicts_v():
    assert base_model(make_unet("sd2", sample_size=96).config) == ("sd_v2_v", "stable-diffusion-v2-768-v")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_thumbnail_is_a_jpeg_of_at_most_256_pixels_and_32_kb(mode):
    noise = Image.effect_noise((2000, 1500), 120).convert(mode)
    address = run_metadata("shapes", **RUN, thumbnail=noise)["modelspec.thumbnail"]
    kind, _, content = address.partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
    assert kind == "data:image/jpeg;base64" and len(address) <= 32 * 1024
    assert picture.format == "JPEG" and 256 >= picture.width > picture.height > 80
    assert noise.size == (2000, 1500)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_hash_is_of_all_that_follows_the_header(dtype, tmp_path):
    file = tmp_path / "lora.safetensors"
    save_lora(with_lora(make_unet()), file, run_metadata("shapes", **RUN), dtype=dtype)
    content = file.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert header(file)["modelspec.hash_sha256"] == f"0x{hashlib.sha256(data).hexdigest()}"


def test_half_precision_keeps_the_alphas(tmp_path):
    file = tmp_path / "lora.safetensors"
    unet = with_lora(make_unet(), use_rslora=True, rank=5)
    save_lora(unet, file, dtype=torch.float16)
    tensors, exact = load_file(file), lora_state_dict(unet)
    assert set(tensors) == set(exact)
    for name, tensor in tensors.items():
        assert tensor.dtype == (torch.float32 if name.endswith(".alpha") else torch.float16)
        assert torch.equal(tensor, exact[name].to(tensor.dtype))


def test_values_that_half_precision_cannot_hold_are_told(tmp_path):
    unet = with_lora(make_unet(), targets=ATTENTION)
    next(p for name, p in unet.named_parameters() if "lora_B" in name).data.fill_(1e5)
    with pytest.raises(RealignError, match="not finite as float16"):
        save_lora(unet, tmp_path / "lora.safetensors", dtype=torch.float16)
    assert not list(tmp_path.iterdir())
    save_lora(unet, tmp_path / "lora.safetensors")


@pytest.mark.parametrize("failing", ["save_file", "os.fsync", "os.replace"])
@pytest.mark.parametrize(
    "error", [OSError("No space left on device"), KeyboardInterrupt()], ids=["full", "interrupted"]
)
def test_a_write_that_fails_leaves_the_old_file(failing, error, tmp_path, monkeypatch):
    unet, file = with_lora(make_unet(), targets=ATTENTION), tmp_path / "lora.safetensors"
    save_lora(unet, file, {"modelspec.title": "old"})
    old = file.read_bytes()

    def fail(*arguments):
        for path in arguments:
            if isinstance(path, Path) and path.suffix == ".partial":
                path.write_bytes(b"half")
        raise error

    place, _, name = failing.rpartition(".")
    monkeypatch.setattr(getattr(export, place) if place else export, name, fail)
    with pytest.raises(RealignError if isinstance(error, OSError) else KeyboardInterrupt):
        save_lora(unet, file, {"modelspec.title": "new"})
    assert file.read_bytes() == old and os.listdir(tmp_path) == ["lora.safetensors"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "loras").write_text("a file")
    with pytest.raises(RealignError, match="cannot be written"):
        save_lora(with_lora(make_unet(), targets=ATTENTION), tmp_path / "loras" / "lora.safetensors")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_a_new_file_can_be_read_by_whom_new_files_can_be_read(tmp_path):
    (tmp_path / "any").touch()
    save_lora(with_lora(make_unet(), targets=ATTENTION), tmp_path / "lora.safetensors")
    assert (tmp_path / "lora.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.parametrize(
    ("options", "about"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"modules_to_save": ["conv_out"]}, "modules_to_save"),
    ],
)
def test_an_adapter_that_a_lora_file_cannot_hold_is_refused(options, about):
    unet = make_unet()
    unet.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q"], **options))
    for export_it in (lora_state_dict, merge_lora):
        with pytest.raises(RealignError, match=about):
            export_it(unet)


def test_an_adapter_that_is_not_there_is_told():
    with pytest.raises(RealignError, match=r"no LoRA 'default' \(its adapters: none\)"):
        lora_state_dict(make_unet())
    with pytest.raises(RealignError, match=r"no LoRA 'shapes' \(its adapters: 'default'\)"):
        merge_lora(with_lora(make_unet(), targets=ATTENTION), "shapes")


def test_a_fused_adapter_is_not_merged_twice():
    unet = with_lora(make_unet(), targets=ATTENTION)
    unet.fuse_lora()
    with pytest.raises(RealignError, match="unfuse_lora"):
        merge_lora(unet)


def test_a_unet_with_an_adapter_is_not_written_whole(tmp_path):
    with pytest.raises(RealignError, match=r"merge_lora\(unet\)"):
        save_unet(with_lora(make_unet(), targets=ATTENTION), tmp_path / "unet.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "AttnUpBlock2D")},
        {"num_class_embeds": 10},
        {"dual_cross_attention": True},
        {"encoder_hid_dim": 8},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_blocks_that_ldm_does_not_have_are_told(changes):
    with pytest.raises(RealignError, match="save_pretrained"):
        unet_ldm_state_dict(make_unet(**changes))
