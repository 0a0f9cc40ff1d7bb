"""A trained file made ready for other people."""

import json

import pytest
import torch
from realigndiff.core.errors import RealignError
from realigndiff.training.config import METADATA_KEY
from realigndiff.training.publish import publish
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def test_it_is_halved_renamed_and_tells_no_folder(tmp_path):
    settings = {"model": r"C:\Users\me\sd15", "prompts": "/home/me/my prompts.txt", "prior": "frozen", "steps": 3}
    tensors = {"lora_unet_x.lora_down.weight": torch.rand(2, 3), "lora_unet_x.alpha": torch.tensor(2.0)}
    told = {METADATA_KEY: json.dumps(settings), "modelspec.title": "mine-best", "ss_steps": "3"}
    save_file(tensors, tmp_path / "best.safetensors", told)
    publish(tmp_path / "best.safetensors", tmp_path / "things.safetensors", "Things")

    halved = load_file(tmp_path / "things.safetensors")
    assert halved["lora_unet_x.lora_down.weight"].dtype == torch.float16
    assert halved["lora_unet_x.alpha"].dtype == torch.float32
    assert torch.equal(halved["lora_unet_x.lora_down.weight"], tensors["lora_unet_x.lora_down.weight"].half())
    with safe_open(tmp_path / "things.safetensors", "pt") as opened:
        header = opened.metadata()
    assert (header["modelspec.title"], header["ss_output_name"], header["ss_steps"]) == ("Things", "things", "3")
    assert header["modelspec.hash_sha256"].strip("0x")
    assert json.loads(header[METADATA_KEY]) == {
        "model": "sd15",
        "prompts": "my prompts.txt",
        "prior": "frozen",
        "steps": 3,
    }


def test_what_is_no_such_file_is_one_sentence(tmp_path):
    (tmp_path / "page.safetensors").write_text("<html>")
    with pytest.raises(RealignError, match="cannot be read as safetensors"):
        publish(tmp_path / "page.safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
