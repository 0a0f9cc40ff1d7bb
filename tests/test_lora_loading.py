"""A trained file goes back into the model as it was trained."""

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from realigndiff.core.embedded import COARSE_LORA, WEIGHTS
from realigndiff.core.errors import RealignError
from realigndiff.lora_files.export import save_lora, save_unet
from realigndiff.lora_files.ldm_keys import ldm_names
from realigndiff.lora_files.loading import load_into_unet
from realigndiff.lora_files.state_dicts import merge_lora
from realigndiff.tests.close import assert_close
from safetensors.torch import save_file


@pytest.fixture
def unet():
    return UNet2DConditionModel.from_pretrained(WEIGHTS / "stable_diffusion" / "unet")


def trained(unet):
    """With a LoRA on attention, feed-forward and a convolution, whose rank is not its alpha."""
    torch.manual_seed(0)
    targets = ["to_q", "to_out.0", "ff.net.2", "conv1"]
    unet.add_adapter(peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False))
    return unet


@pytest.mark.parametrize("kind", ["lora", "unet"])
def test_it_has_the_weights_that_were_trained(kind, unet, tmp_path):
    whole = merge_lora(trained(unet))
    if kind == "lora":
        save_lora(unet, tmp_path / "file.safetensors")
    else:
        save_unet(whole, tmp_path / "file.safetensors", dtype=torch.float32)
    fresh = UNet2DConditionModel.from_pretrained(WEIGHTS / "stable_diffusion" / "unet")
    assert not torch.equal(fresh.mid_block.resnets[0].conv1.weight, whole.mid_block.resnets[0].conv1.weight)
    load_into_unet(fresh, tmp_path / "file.safetensors")
    for name, weight in whole.state_dict().items():
        assert_close(fresh.state_dict()[name], weight)


def test_a_file_of_another_model_is_one_sentence(unet, tmp_path):
    lora = {f"lora_unet_elsewhere.{part}": torch.ones(2, 2) for part in ("lora_down.weight", "lora_up.weight", "alpha")}
    for name, tensors, why in (
        ("a", lora, "LoRA of another model"),
        ("b", {"x": torch.ones(1)}, "no UNet of this"),
    ):
        save_file(tensors, tmp_path / name)
        with pytest.raises(RealignError, match=why):
            load_into_unet(unet, tmp_path / name)
    (tmp_path / "c").write_text("<html>")
    with pytest.raises(RealignError, match="holds no weights but a web page"):
        load_into_unet(unet, tmp_path / "c")


def test_the_shipped_lora_fits_the_demo_model(unet):
    before = unet.mid_block.resnets[0].conv1.weight.clone()
    load_into_unet(unet, COARSE_LORA)
    assert not torch.equal(unet.mid_block.resnets[0].conv1.weight, before)


LAYERS = {
    "attention": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "output": "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0",
}


def a_lora(unet, naming, alpha=None):
    """Two layers' matrices of rank 2 under the names that `naming` makes of (layer, down or up), and what they add."""
    torch.manual_seed(0)
    tensors, changes = {}, {}
    for path in LAYERS.values():
        weight = unet.get_submodule(path).weight
        down, up = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
        tensors |= {naming(path, "down"): down, naming(path, "up"): up}
        if alpha is not None:
            tensors[naming(path, "down").split(".lora_down")[0] + ".alpha"] = torch.tensor(alpha)
        changes[path] = (1 if alpha is None else alpha / 2) * (up @ down)
    return tensors, changes


def kohya(path, part):
    return f"lora_unet_{path.replace('.', '_')}.lora_{part}.weight"


def peft_name(path, part):
    return f"{path}.lora_{'A' if part == 'down' else 'B'}"


NAMINGS = {
    "kohya": kohya,
    "kohya, wrapped": lambda path, part: f"module.{kohya(path, part)}",
    "peft": lambda path, part: f"base_model.model.{peft_name(path, part)}.weight",
    "peft, with the adapter's name": lambda path, part: f"unet.{peft_name(path, part)}.default.weight",
    "diffusers": lambda path, part: f"unet.{path}.lora.{part}.weight",
    "diffusers before 0.22": lambda path, part: (
        f"unet.{path.replace('.to_', '.processor.to_').removesuffix('.0')}_lora.{part}.weight"
    ),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_lora_without_alpha_is_at_its_rank_whatever_names_it_has(naming, unet, tmp_path):
    tensors, changes = a_lora(unet, NAMINGS[naming])
    save_file(tensors, tmp_path / "lora.safetensors")
    before = {path: unet.get_submodule(path).weight.detach().clone() for path in changes}
    load_into_unet(unet, tmp_path / "lora.safetensors")
    for path, change in changes.items():
        torch.testing.assert_close(unet.get_submodule(path).weight, before[path] + change)


def test_a_lora_with_ldms_names_for_its_layers_is_read(unet, tmp_path):
    ldm = ldm_names(unet.config, unet.state_dict())
    tensors, changes = a_lora(
        unet, lambda path, part: kohya(ldm[f"{path}.weight"].removesuffix(".weight"), part), alpha=3.0
    )
    torch.save(tensors, tmp_path / "lora.pt")
    before = {path: unet.get_submodule(path).weight.detach().clone() for path in changes}
    load_into_unet(unet, tmp_path / "lora.pt")
    for path, change in changes.items():
        torch.testing.assert_close(unet.get_submodule(path).weight, before[path] + change)


def test_a_loras_layers_of_a_text_encoder_are_skipped_and_that_is_said(unet, tmp_path, caplog):
    tensors, _ = a_lora(unet, kohya)
    text = {f"lora_te_text_model.{part}": torch.ones(2, 2) for part in ("lora_down.weight", "lora_up.weight")}
    save_file({**tensors, **text}, tmp_path / "lora.safetensors")
    load_into_unet(unet, tmp_path / "lora.safetensors")
    assert "its 2 tensors for a text encoder were skipped" in caplog.text
    save_file(text, tmp_path / "text.safetensors")
    with pytest.raises(RealignError, match="a LoRA for a text encoder only"):
        load_into_unet(unet, tmp_path / "text.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, tensors: tensors.pop(name), "has no down matrix"),
        (lambda name, tensors: tensors.update({name: tensors[name][:1]}), "LoRA of another model"),
        (lambda name, tensors: tensors[name].view(-1)[:1].fill_(float("nan")), "not finite .* first in"),
        (lambda name, tensors: tensors.update({"lora_unet_x.alpha": torch.ones(2)}), "LoRA of another model"),
        (lambda name, tensors: tensors.update({"lora_unet_x.hada_w1_a": torch.ones(2)}), "no plain LoRA"),
        (lambda name, tensors: tensors.update({"lora_unet_x.dora_scale": torch.ones(2)}), "no plain LoRA"),
    ],
    ids=["no down", "other rank", "NaN", "unknown layer", "LoHa", "DoRA"],
)
def test_a_lora_that_does_not_fit_changes_nothing_and_is_one_sentence(change, message, unet, tmp_path):
    tensors, _ = a_lora(unet, kohya)
    change(kohya(LAYERS["output"], "down"), tensors)
    save_file(tensors, tmp_path / "lora.safetensors")
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    with pytest.raises(RealignError, match=message):
        load_into_unet(unet, tmp_path / "lora.safetensors")
    assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())


@pytest.mark.parametrize("kind", ["a checkpoint", "diffusers", "in parallel"])
def test_a_unet_is_read_out_of_a_checkpoint_and_with_diffusers_names(kind, unet, tmp_path):
    ldm = ldm_names(unet.config, unet.state_dict())
    changed = {name: weight.contiguous() + 1 for name, weight in unet.state_dict().items()}
    if kind == "diffusers":
        tensors = changed
    elif kind == "in parallel":
        tensors = {f"module.{ldm[name]}": weight for name, weight in changed.items()}
    else:
        tensors = {f"model.diffusion_model.{ldm[name]}": weight for name, weight in changed.items()}
        tensors["first_stage_model.x"] = torch.ones(1)
    save_file(tensors, tmp_path / "unet.safetensors")
    load_into_unet(unet, tmp_path / "unet.safetensors")
    assert all(torch.equal(weight, changed[name]) for name, weight in unet.state_dict().items())
