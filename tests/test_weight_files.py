"""A single file of weights is read safely, and what is wrong with one is said in one sentence."""

import pickle
import random
import shutil
import zipfile

import pytest
import torch
from realigndiff.checkpoints.files import read_tensors
from realigndiff.checkpoints.filling import empty_weights, fill
from realigndiff.checkpoints.kinds import looks_like
from realigndiff.core.embedded import WEIGHTS
from realigndiff.core.errors import RealignError
from realigndiff.perception.captioner import Captioner
from realigndiff.perception.detector import Detector
from realigndiff.perception.segmenter import Segmenter
from realigndiff.perception.tagger import Tagger
from realigndiff.perception.text_encoder import TextEncoder
from safetensors.torch import save_file

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(3)}


class Trace:
    """A pickle of it makes a file when it is loaded carelessly."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def same(found):
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize(
    "wrapped",
    [
        TENSORS,
        {"model": TENSORS, "epoch": 3},
        {"state_dict": {f"module.{name}": value for name, value in TENSORS.items()}},
    ],
    ids=["bare", "in a training state", "trained in parallel"],
)
@pytest.mark.parametrize("new", [True, False], ids=["zip", "before torch 1.6"])
def test_a_pickle_of_tensors_is_read(tmp_path, wrapped, new):
    torch.save(wrapped, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    same(read_tensors(tmp_path / "x.pth"))


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_safetensors_are_read_whatever_their_name(tmp_path, name):
    save_file(TENSORS, tmp_path / name)
    same(read_tensors(tmp_path / name))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("how", ["torch", "plain pickle", "before torch 1.6"])
def test_a_pickle_with_code_is_refused_by_name_and_nothing_runs(tmp_path, how, protocol):
    trace, file = tmp_path / "ran", tmp_path / "x.pth"
    content = {**TENSORS, "code": Trace(trace)}
    if how == "plain pickle":
        file.write_bytes(pickle.dumps(content["code"], protocol=protocol))
    else:
        zipped = how == "torch"
        torch.save(content, file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    with pytest.raises(RealignError, match=r"nothing in it ran.*\(\S*open\)"):
        read_tensors(file)
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["sam", "blip2_captioner", "blip2_itm", "grounding_dino"])
def test_a_folders_pickle_with_code_is_refused_by_name_too(tmp_path, kind):
    folder = shutil.copytree(WEIGHTS / kind, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({**TENSORS, "code": Trace(tmp_path / "ran")}, folder / "pytorch_model.bin")
    reader = {"sam": Segmenter, "blip2_captioner": Captioner, "blip2_itm": TextEncoder, "grounding_dino": Detector}
    with pytest.raises(RealignError, match=r"pytorch_model.bin' was not read, and nothing in it ran.*\(\S*open\)"):
        reader[kind].load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_damaged_file_is_told_wherever_it_is_damaged(tmp_path, zipped):
    file, chance = tmp_path / "x.pth", random.Random(4)
    torch.save({"model": TENSORS}, file, _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        file.write_bytes(damaged)
        try:
            read_tensors(file)
        except RealignError:
            refused += 1
    assert 0 < refused < 200  # some bytes do not matter


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"\n <html></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git LFS"),
        (b"weights", "no file of weights"),
        (b"PK\x03\x04 and nothing more", "cut off"),
        ((99).to_bytes(8, "little") + b'{"a":', "cut off"),
    ],
    ids=["empty", "page", "page with space", "LFS", "text", "half a zip", "half a header"],
)
def test_what_holds_no_weights_is_told(tmp_path, content, message):
    file = tmp_path / "x.pth"
    file.write_bytes(content)
    with pytest.raises(RealignError, match=message) as error:
        read_tensors(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("save", [save_file, torch.save], ids=["safetensors", "pickle"])
def test_a_file_that_is_cut_off_is_told(tmp_path, save):
    file = tmp_path / "x.bin"
    save(TENSORS, file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(RealignError, match="cut off"):
        read_tensors(file)


def test_a_file_without_tensors_is_told(tmp_path):
    torch.save({"model": {}, "epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(RealignError, match="holds no tensors"):
        read_tensors(tmp_path / "x.pth")


def test_a_zip_of_something_else_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(RealignError, match="no file of weights"):
        read_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("reader", [Detector, Segmenter, Tagger], ids=lambda reader: reader.__name__)
def test_whoever_reads_a_single_file_tells_what_is_wrong_with_it(tmp_path, reader):
    file = tmp_path / "weights.pth"
    torch.save(TENSORS, file)
    whole = file.read_bytes()
    contents = {whole[: len(whole) // 2]: "cut off", b"<!doctype html>": "a web page", whole: "looks like an unknown"}
    for content, message in contents.items():
        file.write_bytes(content)
        with pytest.raises(RealignError, match=message):
            reader.load(file)
    with pytest.raises(RealignError, match="cannot be read"):
        reader.load(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("name", ["", "nowhere.pth"])
def test_a_path_that_is_no_file_is_told(tmp_path, name):
    with pytest.raises(RealignError, match="cannot be read"):
        read_tensors(tmp_path / name)


def test_a_model_is_filled_without_being_initialised_first():
    with empty_weights():
        model = torch.nn.Linear(3, 2)
    assert model.weight.is_meta
    fill(model, {"weight": TENSORS["a.weight"], "bias": torch.ones(2)}, "x.pth", "a layer", torch.bfloat16)
    assert model.weight.dtype == torch.bfloat16
    assert model(torch.ones(1, 3).bfloat16()).tolist() == [[4.0, 13.0]]
    assert not torch.nn.Linear(3, 2).weight.is_meta


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": TENSORS["a.weight"]}, "1 tensors are missing, 0 unknown and 0 of another shape, 'bias' first"),
        ({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, "1 of another shape, 'weight' first"),
        ({"weight": TENSORS["a.weight"], "bias": torch.ones(2), "x": torch.ones(1)}, "1 unknown"),
    ],
)
def test_no_tensor_is_left_out_in_silence(tensors, message):
    with pytest.raises(RealignError, match=f"x.pth' is not a layer of a known size: .*{message}"):
        fill(torch.nn.Linear(3, 2), tensors, "x.pth", "a layer", torch.float32)


def test_a_model_is_known_by_its_tensors():
    sam = ["image_encoder.blocks.0.norm1.weight", "prompt_encoder.x", "mask_decoder.y"]
    assert looks_like(sam) == "a SAM segmenter"
    assert looks_like(["label_embed", "tagging_head.x", "reweight_scale"]) == "a RAM++ tagger"
    assert looks_like(["x"]) == "an unknown model (its first tensor is 'x')"
    assert looks_like([]) == "nothing"


OTHER_MODELS = {
    "a GroundingDINO detector": ("transformer.level_embed", "bert.x", "backbone.x"),
    "a GroundingDINO detector of transformers": ("model.backbone.x", "model.text_backbone.x"),
    "a HQ-SAM segmenter": ("image_encoder.blocks.x", "prompt_encoder.x", "mask_decoder.hf_token.weight"),
    "a MobileSAM segmenter": ("image_encoder.layers.x", "prompt_encoder.x", "mask_decoder.x"),
    "a SAM 2 segmenter": ("image_encoder.trunk.x", "memory_encoder.x"),
    "a SAM segmenter": ("image_encoder.blocks.x", "prompt_encoder.x", "mask_decoder.x"),
    "a SAM segmenter of transformers": ("vision_encoder.x", "prompt_encoder.x", "mask_decoder.x"),
    "a RAM tagger": ("label_embed", "tagging_head.x"),
    "a Stable Diffusion checkpoint": ("model.diffusion_model.x",),
}
WANTED = {
    Detector: ("a GroundingDINO detector", "a GroundingDINO detector of its authors"),
    Segmenter: ("a SAM segmenter", "a SAM segmenter of segment-anything"),
    Tagger: ("a RAM tagger", "a RAM or RAM\\+\\+ tagger"),
}


@pytest.mark.parametrize(
    ("reader", "kind"), [(reader, kind) for reader in WANTED for kind in OTHER_MODELS if kind != WANTED[reader][0]]
)
def test_the_file_of_another_model_is_named(reader, kind, tmp_path):
    right, wanted = WANTED[reader]
    torch.save({name: torch.zeros(1) for name in OTHER_MODELS[kind]}, tmp_path / "x.pth")
    message = "which needs its folder" if kind == f"{right} of transformers" else f"but {wanted}"
    with pytest.raises(RealignError, match=rf"x.pth' looks like {kind}, {message}"):
        reader.load(tmp_path / "x.pth")
