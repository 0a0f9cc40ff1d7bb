"""Load Reward Model: which model is read for which reward, and what is said of the others."""

import gc
import shutil
import weakref
from dataclasses import replace

import pytest
import torch
from realigndiff.core.embedded import WEIGHTS
from realigndiff.tests.published import rewards as published_rewards
from realigndiff.tests.test_reward_models import save_blip, save_clip, save_image_reward, save_negclip

DEMO = "demo (embedded)"
MODELS = {
    "clip": "clip",
    "negclip": "negclip/x.pth",
    "blip-itm": "blip",
    "blip-itc": "blip",
    "image-reward": "image_reward/x.pt",
}
"""The model of each reward under models/rewards."""
WRONG = [
    (kind, model)
    for kind, right in MODELS.items()
    for model in sorted(set(MODELS.values()) - {right})
    if {right, model} != {"clip", "negclip/x.pth"}  # one network; either form may hold either
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """MODELS, small and random."""
    root = tmp_path_factory.mktemp("models") / "rewards"
    for kind, save in (
        ("clip", save_clip),
        ("negclip", save_negclip),
        ("blip", save_blip),
        ("image_reward", save_image_reward),
    ):
        (root / kind).mkdir(parents=True)
        save(root / kind)
    for file in (WEIGHTS / "stable_diffusion" / "tokenizer").iterdir():
        shutil.copy(file, root / "negclip")
    return root


@pytest.fixture
def load(comfy, saved, tmp_path, monkeypatch):
    """The node with these models and a models/blip of the test's own: `load(reward, model)`."""
    import folder_paths
    from realigndiff.nodes.rewards import LoadReward

    folders = {"rewards": saved, "blip": tmp_path / "blip"}
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda key: [str(folders[key])])
    return lambda reward, model, precision="fp32": LoadReward.execute(reward, model, precision).result[0]


def judged(hosted):
    with hosted.loaded() as reward:
        return reward.name, reward(torch.rand(2, 40, 40, 3), ["a red circle", "a blue square"])


@pytest.mark.parametrize("kind", MODELS)
def test_each_reward_is_read_from_its_model_and_judges(load, kind):
    name, scores = judged(load(kind, MODELS[kind]))
    assert name == kind
    assert scores.shape == (2,) and scores.isfinite().all()


@pytest.mark.parametrize("kind", ["clip", "blip-itm", "blip-itc"])
def test_the_demo_models_judge(load, kind):
    assert judged(load(kind, DEMO))[0] == kind


@pytest.mark.parametrize("kind", ["negclip", "image-reward"])
def test_a_reward_without_a_demo_model_is_told(load, kind):
    with pytest.raises(ValueError, match=f"There is no demo model for {kind}: choose a model of yours"):
        load(kind, DEMO)


@pytest.mark.parametrize("kind, model", WRONG)
def test_another_models_files_are_told_in_one_sentence(load, kind, model):
    with pytest.raises(ValueError, match=r"choose|give") as caught:
        load(kind, model)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_both_rewards_of_a_blip_share_one_network_that_goes_with_them(load):
    itm, itc = load("blip-itm", DEMO), load("blip-itc", DEMO)
    assert itm._patchers == itc._patchers
    held = weakref.ref(itm._networks[0])
    del itm
    gc.collect()
    assert held() is not None
    del itc
    gc.collect()
    assert held() is None


def test_a_retrieval_blip_2_among_the_captioners_is_offered_too(load, tmp_path):
    from realigndiff.nodes.rewards import LoadReward

    shutil.copytree(WEIGHTS / "blip2_itm", tmp_path / "blip" / "blip2-itm")
    assert LoadReward.define_schema().inputs[1].options == [DEMO, *sorted(set(MODELS.values())), "blip2-itm"]
    before = LoadReward.fingerprint_inputs("blip-itm", "blip2-itm", "fp32")
    assert judged(load("blip-itm", "blip2-itm"))[0] == "blip-itm"
    (tmp_path / "blip" / "blip2-itm" / "more.txt").write_text("1", encoding="utf-8")
    assert LoadReward.fingerprint_inputs("blip-itm", "blip2-itm", "fp32") != before


def test_a_file_of_open_clip_without_a_tokenizer_gets_comfyuis(load, saved):
    size = replace(published_rewards.CLIP["small"], words=49408)
    (saved / "alone").mkdir()
    torch.save(published_rewards.clip_weights(size), saved / "alone" / "open_clip.pt")
    assert judged(load("clip", "alone/open_clip.pt"))[0] == "clip"


def test_precision_is_as_asked(load):
    (network,) = load("clip", "clip", "bf16")._networks
    assert next(network.parameters()).dtype == torch.bfloat16
    assert judged(load("clip", "clip", "bf16"))[1].dtype == torch.float32
    with pytest.raises(ValueError, match="'8-bit' is no precision: choose one of fp32, fp16, bf16"):
        load("clip", "clip", "8-bit")
