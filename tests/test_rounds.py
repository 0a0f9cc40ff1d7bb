"""A round's images: kept for the same models, whatever their path, and drawn again for others."""

import shutil
from pathlib import Path

import pytest
import torch
from realigndiff.core.embedded import WEIGHTS
from realigndiff.training.data import candidates
from realigndiff.training.loop.models import load_models
from realigndiff.training.settings.arl import ArlConfig
from realigndiff.training.settings.files import load as settings_of

CONFIG = settings_of(ArlConfig, Path(__file__).parents[1] / "training" / "configs" / "arl-demo.toml").replace(
    rounds=1,
    prompts_per_round=1,
    images_per_prompt=2,
    rollout_steps=1,
    reward="clip",
)
TEXTS = ["a red circle and a blue square"]


@pytest.fixture(scope="module")
def trained():
    return load_models(CONFIG, torch.device("cpu"))


@pytest.mark.parametrize("name", ["model", "clip"])
def test_a_round_of_other_weights_behind_the_same_path_is_drawn_again(trained, tmp_path, monkeypatch, name):
    folder = shutil.copytree(WEIGHTS / {"model": "stable_diffusion"}.get(name, name), tmp_path / "model")
    config = CONFIG.replace(output=str(tmp_path / "out"), **{name: str(folder)})
    draw, drawn = candidates.draw_file, []
    monkeypatch.setattr(candidates, "draw_file", lambda *given: drawn.append(given) or draw(*given))

    def drawn_with(config):
        drawn.clear()
        candidates.draw_round(config, trained, TEXTS, 0, "weights")
        assert candidates.read_round(config, trained, TEXTS, 0, "weights").prompts == TEXTS
        return bool(drawn)

    assert drawn_with(config) and not drawn_with(config)
    assert not drawn_with(config.replace(**{name: "demo"}))  # the same by another path
    (weights,) = folder.glob("unet/*.safetensors" if name == "model" else "*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert drawn_with(config) and not drawn_with(config)
    (file,) = (tmp_path / "out" / "rounds").rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 64
    file.write_bytes(content)
    assert drawn_with(config)
