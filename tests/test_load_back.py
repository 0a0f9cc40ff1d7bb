"""A trained file goes back into the model as it was trained."""

import peft
import pytest
import torch
from realigndiff.core.errors import RealignError
from realigndiff.demo.models import COARSE_WEIGHTS, FOLDER
from realigndiff.pipeline.sampler import DiffusersSampler
from realigndiff.tests.close import assert_close
from realigndiff.training.export import merged, save_lora, save_unet
from realigndiff.training.load_back import load_back
from safetensors.torch import save_file


@pytest.fixture
def unet():
    return DiffusersSampler.load(FOLDER / "stable_diffusion").unet


def trained(unet):
    """With a LoRA on attention, feed-forward and a convolution, whose rank is not its alpha."""
    torch.manual_seed(0)
    targets = ["to_q", "to_out.0", "ff.net.2", "conv1"]
    unet.add_adapter(peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False))
    return unet


@pytest.mark.parametrize("kind", ["lora", "unet"])
def test_it_has_the_weights_that_were_trained(kind, unet, tmp_path):
    whole = merged(trained(unet))
    if kind == "lora":
        save_lora(unet, tmp_path / "file.safetensors")
    else:
        save_unet(whole, tmp_path / "file.safetensors", dtype=torch.float32)
    fresh = DiffusersSampler.load(FOLDER / "stable_diffusion").unet
    assert not torch.equal(fresh.mid_block.resnets[0].conv1.weight, whole.mid_block.resnets[0].conv1.weight)
    load_back(fresh, tmp_path / "file.safetensors")
    for name, weight in whole.state_dict().items():
        assert_close(fresh.state_dict()[name], weight)


def test_a_file_of_another_model_is_one_sentence(unet, tmp_path):
    lora = {f"lora_unet_elsewhere.{part}": torch.ones(2, 2) for part in ("lora_down.weight", "lora_up.weight", "alpha")}
    for name, tensors, told in (("a", lora, "LoRA of another model"), ("b", {"x": torch.ones(1)}, "no UNet of this")):
        save_file(tensors, tmp_path / name)
        with pytest.raises(RealignError, match=told):
            load_back(unet, tmp_path / name)
    (tmp_path / "c").write_text("<html>")
    with pytest.raises(RealignError, match="cannot be read as safetensors"):
        load_back(unet, tmp_path / "c")


def test_the_shipped_lora_fits_the_demo_model(unet):
    before = unet.mid_block.resnets[0].conv1.weight.clone()
    load_back(unet, COARSE_WEIGHTS)
    assert not torch.equal(unet.mid_block.resnets[0].conv1.weight, before)
