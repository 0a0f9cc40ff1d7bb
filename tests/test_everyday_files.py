"""Files of weights as training scripts leave them: wrapped, prefixed, with other things beside the weights."""

import argparse
import collections
import datetime
import pathlib

import numpy as np
import pytest
import torch
from realigndiff.checkpoints import grounding_dino, image_reward, open_clip, ram, sam, unpickling
from realigndiff.checkpoints.files import read_tensors
from realigndiff.checkpoints.grounding_dino import load_grounding_dino
from realigndiff.checkpoints.image_reward import load_image_reward
from realigndiff.checkpoints.open_clip import load_open_clip
from realigndiff.checkpoints.ram import load_ram
from realigndiff.checkpoints.sam import load_sam
from realigndiff.core.errors import RealignError
from realigndiff.perception.detector import Detector
from realigndiff.tests.published import layouts as published_layouts
from realigndiff.tests.published import ram as published_ram
from realigndiff.tests.published import rewards as published_rewards
from safetensors.torch import save_file

needs_new_torch = pytest.mark.skipif(
    unpickling.version_of_torch() < (2, 6),
    reason="older torch, by which no pickle is read, knows no stand-ins and writes no float8",
)
TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(3)}
OTHER = {"z.weight": torch.ones(2)}


class Settings:
    """A class of a training script, which is not there where the file is read."""

    def __init__(self):
        self.rate = 0.1


class Attributes(dict):
    """As Lightning's AttributeDict and yacs' CfgNode."""


def named(prefix, tensors=TENSORS):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def same(found, expected=TENSORS):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def saved(folder, content, name="x.pth"):
    torch.save(content, folder / name)
    return folder / name


WRAPPED = {
    "compiled": named("_orig_mod."),
    "compiled in parallel": named("module._orig_mod."),
    "in parallel, then compiled": named("_orig_mod.module."),
    "a compiled part": {"a._orig_mod.weight": TENSORS["a.weight"], "a._orig_mod.bias": TENSORS["a.bias"]},
    "FSDP": {
        "_fsdp_wrapped_module.a._checkpoint_wrapped_module.weight": TENSORS["a.weight"],
        "a.bias": TENSORS["a.bias"],
    },
    "Lightning": {"state_dict": named("model."), "epoch": 1, "pytorch-lightning_version": "2.4"},
    "net of Lightning": {"state_dict": named("net.module.")},
    "one in parallel, one not": {"module.a.weight": TENSORS["a.weight"], "a.bias": TENSORS["a.bias"]},
    "prefixes mixed": {"module.a.weight": TENSORS["a.weight"], "model._orig_mod.a.bias": TENSORS["a.bias"]},
    "ema": {"ema": TENSORS, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "model_ema": {"model_ema": named("module.")},
    "params_ema": {"params_ema": TENSORS},
    "shadow": {"shadow": named("shadow.")},
    "model and ema": {"model": TENSORS, "ema": OTHER},
    "ema before model": {"ema": OTHER, "model": TENSORS},
    "nested": {"checkpoint": {"model_state_dict": {"module": TENSORS}}},
    "unknown key": {"backbone": TENSORS, "epoch": 3},
    "a name as model": {"model": "vit_b", "state_dict": TENSORS},
    "the model is None": {"model": None, "net": TENSORS},
    "mixed with other values": {**TENSORS, "epoch": 3, "model": "vit_b", "best": 0.5},
    "numbers as tensors beside": {"model": TENSORS, "step": torch.tensor(3)},
    "averaged by torch": {"model": named("module."), "n_averaged": torch.tensor(7)},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_weights_are_found_in_what_training_scripts_wrap_around_them(how, tmp_path):
    same(read_tensors(saved(tmp_path, WRAPPED[how])))


BESIDE = {
    "Namespace": argparse.Namespace(rate=0.1, things=[1, (2, 3)], device=torch.device("cpu")),
    "numpy scalar": np.float64(0.5),
    "numpy array": np.arange(6).reshape(2, 3),
    "array of objects": np.array([1, "x"], dtype=object),
    "numpy dtype": np.dtype("float32"),
    "random state": np.random.get_state(),
    "random generator": np.random.default_rng(0),
    "path": pathlib.PurePosixPath("a/b"),
    "date": datetime.datetime(2024, 1, 1),
    "defaultdict": collections.defaultdict(list, x=[1]),
    "deque": collections.deque([1, 2], maxlen=3),
    "own class": Settings(),
    "own dict": Attributes(rate=0.1),
    "torch's version": torch.__version__,
    "optimizer": torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]),
    "model": torch.nn.Linear(2, 2),
}


@needs_new_torch
@pytest.mark.parametrize("new", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("kind", list(BESIDE))
def test_what_stands_beside_the_weights_is_skipped_and_named(kind, new, tmp_path, caplog):
    if kind == "model" and not new:
        pytest.skip("torch keeps the source of a model's class in such files")
    file = tmp_path / "x.pth"
    torch.save({"model": TENSORS, "extra": BESIDE[kind]}, file, _use_new_zipfile_serialization=new)
    same(read_tensors(file))
    assert "'model'" not in caplog.text
    assert f"'{file}': the weights under model were read, and the rest was skipped: extra" in caplog.text


@needs_new_torch
def test_weights_in_a_scripts_own_kind_of_dict_are_read(tmp_path):
    same(read_tensors(saved(tmp_path, Attributes(model=Attributes(TENSORS)))))


@needs_new_torch
def test_no_class_that_a_file_names_is_made_or_imported(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(Settings, "__setstate__", lambda self, state: made.append(state), raising=False)
    monkeypatch.setattr(Settings, "__new__", lambda cls: made.append(cls))
    content = object.__new__(Settings)
    content.rate = 1
    same(read_tensors(saved(tmp_path, {"model": TENSORS, "settings": content})))
    assert made == []


def test_averages_are_taken_only_where_there_is_nothing_else_and_that_is_said(tmp_path, caplog):
    same(read_tensors(saved(tmp_path, {"model": TENSORS, "model_ema": OTHER})))
    assert "the weights under model were read, and the rest was skipped: model_ema" in caplog.text


@needs_new_torch
def test_a_model_that_is_pickled_as_a_whole_is_told_from_damage(tmp_path):
    for content in (torch.nn.Linear(2, 2), {"model": torch.nn.Linear(2, 2), "epoch": 3}):
        with pytest.raises(RealignError, match=r"an object \(torch.nn.modules.linear.Linear\).*get its state_dict"):
            read_tensors(saved(tmp_path, content))


def test_a_protocol_that_torch_does_not_read_safely_is_named(tmp_path):
    torch.save(TENSORS, tmp_path / "x.pth", pickle_protocol=4)
    with pytest.raises(RealignError, match=r"a pickle of protocol 4.*safetensors"):
        read_tensors(tmp_path / "x.pth")


READERS = {
    "SAM": (load_sam, sam, lambda: published_layouts.sam_weights(published_layouts.SAM["small"])),
    "GroundingDINO": (
        load_grounding_dino,
        grounding_dino,
        lambda: published_layouts.dino_weights(published_layouts.DINO["small"]),
    ),
    "RAM": (load_ram, ram, lambda: published_ram.tensors(published_ram.SMALL["window 7"], plus=False)),
    "CLIP": (load_open_clip, open_clip, lambda: published_rewards.clip_weights(published_rewards.CLIP["small"])),
    "ImageReward": (
        lambda file: load_image_reward(file).vision,
        image_reward,
        lambda: published_rewards.image_reward_weights(published_rewards.IMAGE_REWARD["small"]),
    ),
}


@pytest.mark.parametrize("kind", READERS)
def test_every_reader_takes_prefixes_off_and_leaves_out_what_is_not_the_models(kind, tmp_path):
    load, reader, weights = READERS[kind]
    tensors = weights()
    mixed = {
        f"{('module.', '_orig_mod.', '')[i % 3]}{name}": tensor for i, (name, tensor) in enumerate(tensors.items())
    }
    contents = (
        mixed,
        {"state_dict": {**named("model.", tensors), "criterion.weight": torch.ones(3)}, "epoch": 3},
        {"state_dict": named("wrapped_thing.", tensors)},
        {"generator": OTHER, "model": OTHER, "detector": tensors},
        {"state_dict": {**named("model.", tensors), **named("ema_model.", {k: v + 1 for k, v in tensors.items()})}},
    )
    for i, content in enumerate(contents):  # a file each, as they are mapped into memory
        same(read_tensors(saved(tmp_path, content, f"{i}.pth"), reader.ROOTS), tensors)
    assert load(tmp_path / "1.pth")


def test_names_that_truly_begin_with_model_are_left_as_they_are(tmp_path):
    tensors = {"model.backbone.x": torch.ones(1), "model.text_backbone.y": torch.ones(1)}
    same(read_tensors(saved(tmp_path, tensors)), tensors)
    with pytest.raises(
        RealignError, match="looks like a GroundingDINO detector of transformers, which needs its folder"
    ):
        Detector.load(saved(tmp_path, tensors))


@needs_new_torch
@pytest.mark.parametrize("scale", [None, torch.tensor(2.0), torch.tensor([2.0, 2.0])], ids=["none", "one", "rows"])
@pytest.mark.parametrize("save", [save_file, torch.save], ids=["safetensors", "pickle"])
def test_float8_is_read_with_its_scale(save, scale, tmp_path):
    weight = torch.tensor([[0.5, 1.0], [1.5, 2.0]])
    tensors = {"a.weight": weight.to(torch.float8_e4m3fn), "a.bias": torch.ones(2)}
    if scale is not None:
        tensors |= {"a.scale_weight": scale, "a.scale_input": torch.ones(1)}
    tensors["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    save(tensors, tmp_path / "x.pth")
    same(read_tensors(tmp_path / "x.pth"), {"a.weight": weight * (1 if scale is None else 2), "a.bias": torch.ones(2)})


def broken(tensors, change):
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.ndim > 1)
    return {**tensors, name: change(tensors[name].clone())}, name


def nan(tensor):
    tensor.view(-1)[-1] = float("nan")
    return tensor


@pytest.mark.parametrize("kind", READERS)
def test_weights_that_are_no_numbers_are_named_when_they_are_read(kind, tmp_path):
    load, _, weights = READERS[kind]
    tensors, name = broken(weights(), nan)
    with pytest.raises(RealignError, match=f"x.pth' holds values that are not finite .* first in '{name}'"):
        load(saved(tmp_path, tensors))


@pytest.mark.parametrize("change", [torch.Tensor.int, torch.Tensor.cfloat, torch.Tensor.bool])
@pytest.mark.parametrize("kind", ["SAM", "RAM"])
def test_weights_of_another_kind_of_number_are_refused(kind, change, tmp_path):
    load, _, weights = READERS[kind]
    tensors, _ = broken(weights(), change)
    with pytest.raises(RealignError, match=r"where floating point numbers are wanted"):
        load(saved(tmp_path, tensors))


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        pytest.param(
            torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), "quantised", marks=needs_new_torch
        ),
        (torch.ones(2, device="meta"), "without data"),
        (torch.ones(1).expand(10**12), "larger than what the file holds"),
    ],
    ids=["sparse", "quantised", "meta", "expanded"],
)
def test_a_tensor_that_is_not_just_numbers_is_named(tensor, told, tmp_path):
    with pytest.raises(RealignError, match=f"'b' in '.*x.pth' is {told}"):
        read_tensors(saved(tmp_path, {**TENSORS, "b": tensor}))


def test_tensors_that_share_their_memory_are_read(tmp_path):
    both = torch.arange(4.0)
    same(read_tensors(saved(tmp_path, {"a": both, "b": both[1:3]})), {"a": both, "b": both[1:3]})


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="older torch knows no float4")
def test_float4_is_refused_with_the_precisions_to_get(tmp_path):
    save_file({"a.weight": torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, tmp_path / "a.safetensors")
    with pytest.raises(RealignError, match=r"'a.weight' in .* is quantised: get the weights in fp32, fp16 or bf16"):
        read_tensors(tmp_path / "a.safetensors")
