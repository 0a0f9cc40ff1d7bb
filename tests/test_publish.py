"""A trained file made ready for other people."""

import json
from typing import get_origin

import pytest
import torch
from realigndiff.core.errors import RealignError
from realigndiff.training.publish import PRIVATE, publish
from realigndiff.training.settings.arl import ArlConfig
from realigndiff.training.settings.files import METADATA_KEY, OF_ONE_RUN, load
from realigndiff.training.settings.refl import ReflConfig
from realigndiff.training.settings.schema import fields
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def test_it_is_halved_renamed_and_tells_no_path(tmp_path):
    run = ReflConfig(
        model=r"C:\\Users\\me\\sd15", captioner="demo", prompts="/home/me/a.txt", output="/home/me/out", steps=3
    )
    weight, output = (
        torch.rand(2, 3),
        {METADATA_KEY: json.dumps(run.to_dict()), "modelspec.title": "mine", "ss_steps": "3"},
    )
    source, target = tmp_path / "best.safetensors", tmp_path / "things.safetensors"
    save_file({"x.lora_down.weight": weight, "x.alpha": torch.tensor(2.0)}, source, output)
    publish(source, target, "Things")

    halved = load_file(target)
    assert torch.equal(halved["x.lora_down.weight"], weight.half()) and halved["x.alpha"].dtype == torch.float32
    with safe_open(target, "pt") as opened:
        header = opened.metadata()
    assert (header["modelspec.title"], header["ss_output_name"], header["ss_steps"]) == ("Things", "things", "3")
    assert header["modelspec.hash_sha256"].strip("0x") and "/home" not in str(header) and "Users" not in str(header)
    again = load(ReflConfig, target)
    assert (again.optimizer.steps, again.model.captioner, again.model.model) == (3, "demo", ReflConfig().model.model)


def test_every_setting_that_may_be_a_path_is_known():
    schemas = {**fields(ReflConfig), **fields(ArlConfig)}
    texts = {
        name for name, field in schemas.items() if field.annotation is str or get_origin(field.annotation) is tuple
    }
    assert texts == {*PRIVATE, *OF_ONE_RUN, "prompt_column", "reward", "targets"} - {"dry_run", "sample_prompts"}


def test_a_file_can_be_put_in_its_own_place(tmp_path):
    file = tmp_path / "best.safetensors"
    save_file({"x.alpha": torch.tensor(2.0)}, file, {METADATA_KEY: json.dumps(ReflConfig().to_dict())})
    publish(file, file)
    assert load_file(file)["x.alpha"] == 2


def test_what_is_no_such_file_is_one_sentence(tmp_path):
    (tmp_path / "page.safetensors").write_text("<html>")
    with pytest.raises(RealignError, match="could not be read as safetensors"):
        publish(tmp_path / "page.safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
