"""Files without bounds end in a sentence at once, and torch's unsafe versions read no pickle."""

import json
import pickle
import re
import shutil
import zipfile

import pytest
import torch
import transformers
from realigndiff.checkpoints import folder_checks, pickle_scan, unpickling, values
from realigndiff.checkpoints.files import read_tensors, weights_file
from realigndiff.checkpoints.sam import load_sam
from realigndiff.core.embedded import WEIGHTS
from realigndiff.core.errors import RealignError, first_line
from realigndiff.language.logit_scorer import LogitScorer
from realigndiff.perception.captioner import Captioner
from realigndiff.perception.detector import Detector
from realigndiff.perception.segmenter import Segmenter
from realigndiff.perception.tagger import Tagger
from realigndiff.perception.text_encoder import TextEncoder
from realigndiff.sampling.sampler import DiffusersSampler
from realigndiff.tests.published import layouts as published_layouts
from safetensors.torch import load_file, save_file

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(3)}


def saved(folder, content):
    torch.save(content, folder / "x.pth")
    return folder / "x.pth"


def nested(depth, make):
    value = make(())
    for _ in range(depth):
        value = make(value)
    return value


def test_a_pickle_that_refers_to_itself_is_read(tmp_path):
    inside = {}
    inside["model"] = inside
    with pytest.raises(RealignError, match="holds no tensors"):
        read_tensors(saved(tmp_path, inside))
    inside["state_dict"] = {"model": inside, **TENSORS}
    assert read_tensors(saved(tmp_path, inside)).keys() == TENSORS.keys()


def test_mappings_in_mappings_are_followed_only_so_far(tmp_path):
    with pytest.raises(RealignError, match="holds no tensors"):
        read_tensors(saved(tmp_path, nested(200, lambda value: {"model": value or TENSORS})))


def test_tuples_that_double_with_each_instruction_are_refused(tmp_path):
    with pytest.raises(RealignError, match="a tuple of more than 10,000 values"):
        read_tensors(saved(tmp_path, {"a": nested(60, lambda value: (value, value))}))


def test_a_pickle_of_too_many_instructions_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_scan, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(RealignError, match="a pickle of more than 1,000 instructions"):
        read_tensors(saved(tmp_path, {**TENSORS, "numbers": list(range(1000))}))


def test_many_pickles_in_one_file_are_not_followed(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"N." * 2**20)
    with pytest.raises(RealignError, match="no file of weights"):
        read_tensors(tmp_path / "x.pth")


def test_an_archive_that_grows_when_it_is_unpacked_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(30 * 2**20))
    with pytest.raises(RealignError, match="times its size when it is unpacked"):
        read_tensors(tmp_path / "x.pth")


def test_a_file_of_more_tensors_than_any_model_has_is_refused(tmp_path):
    assert values.MAX_TENSORS == 20_000
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"image_encoder.blocks.{i}.x": empty for i in range(30_000)}).encode()
    (tmp_path / "x.pth").write_bytes(len(header).to_bytes(8, "little") + header)
    for read in (read_tensors, load_sam):
        with pytest.raises(RealignError, match="holds 30,000 tensors"):
            read(tmp_path / "x.pth")
    folder = shutil.copytree(WEIGHTS / "sam", tmp_path / "model")
    shutil.copy(tmp_path / "x.pth", folder / "model.safetensors")
    with pytest.raises(RealignError, match="holds 30,000 tensors"):
        Segmenter.load(folder)


def test_a_header_that_is_longer_than_any_is_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes((2**26).to_bytes(8, "little") + b"{")
    with file.open("r+b") as opened:
        opened.truncate(2**27)
    with pytest.raises(RealignError, match="its header has 67,108,864 bytes"):
        read_tensors(file)


def test_a_file_with_more_layers_than_any_model_has_is_refused_before_a_model_is_built(tmp_path):
    tensors = published_layouts.sam_weights(published_layouts.SAM["small"])
    first = {name: tensor for name, tensor in tensors.items() if ".blocks.0." in name}
    for i in range(4, 400):
        tensors |= {name.replace(".blocks.0.", f".blocks.{i}."): tensor for name, tensor in first.items()}
    with pytest.raises(RealignError, match=r"not a SAM segmenter of a known size \(it has 399 layers"):
        load_sam(saved(tmp_path, tensors))


def changed(folder, change):
    """The demo model's folder with another config.json."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    change(config)
    file.write_text(json.dumps(config), encoding="utf-8")
    return folder


FOLDERS = {Captioner: "blip2_captioner", TextEncoder: "blip2_itm", Detector: "grounding_dino", Segmenter: "sam"}
HUGE = {
    "a million layers": (Captioner, lambda c: c["text_config"].update(num_hidden_layers=10**6)),
    "a million layers in the image half": (Captioner, lambda c: c["vision_config"].update(num_hidden_layers=10**6)),
    "a list of a million stages": (Detector, lambda c: c["backbone_config"].update(depths=[1] * 10**5)),
    "a million decoder layers": (Detector, lambda c: c.update(decoder_layers=10**6)),
    "wide": (TextEncoder, lambda c: c["qformer_config"].update(hidden_size=10**6, intermediate_size=10**6)),
    "a vocabulary of billions": (Captioner, lambda c: c["text_config"].update(vocab_size=10**10)),
    "a large image": (Segmenter, lambda c: c["vision_config"].update(image_size=10**6)),
}


@pytest.mark.parametrize("how", HUGE)
def test_a_config_of_a_model_that_its_weights_are_not_of_is_refused_before_it_is_built(how, tmp_path, monkeypatch):
    kind, change = HUGE[how]
    folder = changed(shutil.copytree(WEIGHTS / FOLDERS[kind], tmp_path / "model"), change)
    monkeypatch.setattr(transformers.PreTrainedModel, "__init__", lambda *_, **__: pytest.fail("it was built"))
    with pytest.raises(RealignError, match=r"config.json in '.*model' .*download the folder again"):
        kind.load(folder)


def test_a_unet_of_a_million_layers_is_refused(tmp_path):
    folder = shutil.copytree(WEIGHTS / "stable_diffusion", tmp_path / "model")
    changed(folder / "unet", lambda config: config.update(layers_per_block=10**6))
    with pytest.raises(RealignError, match="layers_per_block is 1,000,000"):
        DiffusersSampler.load(folder)


def test_our_own_ram_is_bounded_too(tmp_path):
    folder = shutil.copytree(WEIGHTS / "ram", tmp_path / "model")
    changed(folder, lambda config: config["depths"].__setitem__(0, 10**6))
    with pytest.raises(RealignError, match="depths is 1,000,000"):
        Tagger.load(folder)


@pytest.mark.parametrize("content", ["[" * 100_000, "[1]", "{", "\ud83d"], ids=["deep", "a list", "cut off", "no text"])
def test_a_config_that_is_no_object_is_told(content, tmp_path):
    folder = shutil.copytree(WEIGHTS / "sam", tmp_path / "model")
    (folder / "config.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(RealignError, match=r"config.json' (cannot be read as JSON|is no JSON object)"):
        Segmenter.load(folder)


def test_a_text_file_that_is_larger_than_any_is_refused(tmp_path):
    folder = shutil.copytree(WEIGHTS / "blip2_itm", tmp_path / "model")
    with (folder / "vocab.txt").open("ab") as opened:
        opened.truncate(2**28 + 2**20)
    with pytest.raises(RealignError, match="has 257 MiB, and no such file needs more than 256"):
        TextEncoder.load(folder)


def scattered(config, value):
    """The value under every name by which transformers takes an attention, at every level."""
    for inner in [config, *(inner for inner in config.values() if isinstance(inner, dict))]:
        for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
            inner[key] = value


@pytest.mark.parametrize("kind", FOLDERS, ids=lambda kind: kind.__name__)
def test_an_attention_that_a_folder_names_is_not_obeyed(kind, tmp_path):
    plain = kind.load(WEIGHTS / FOLDERS[kind]).model
    folder = shutil.copytree(WEIGHTS / FOLDERS[kind], tmp_path / "model")
    model = kind.load(changed(folder, lambda config: scattered(config, "somebody/kernel"))).model
    found, expected = (
        [getattr(module.config, "_attn_implementation", None) for module in one.modules() if hasattr(module, "config")]
        for one in (model, plain)
    )
    assert found == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_a_language_model_may_not_name_an_attention_either(tmp_path):
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=300
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (WEIGHTS / "blip2_captioner" / name).exists():
            shutil.copy(WEIGHTS / "blip2_captioner" / name, tmp_path)
    changed(tmp_path, lambda config: scattered(config, "flash_attention_2"))
    assert LogitScorer.load(tmp_path).model.config._attn_implementation in ("sdpa", "eager")


@pytest.mark.parametrize(
    "named", [{"backbone": "somebody/swin"}, {"backbone": "hf-hub:x/y", "use_timm_backbone": True}]
)
def test_a_backbone_to_fetch_is_refused(named, tmp_path):
    folder = shutil.copytree(WEIGHTS / "grounding_dino", tmp_path / "model")
    with pytest.raises(RealignError, match="names a backbone to fetch"):
        Detector.load(changed(folder, lambda config: config.update(named)))


def test_nan_in_a_folders_weights_is_named(tmp_path):
    folder = shutil.copytree(WEIGHTS / "sam", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.ndim > 1 and tensor.is_floating_point())
    tensors[name].view(-1)[0] = float("inf")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RealignError, match=r"model' holds values that are not finite .* first in '\S+'"):
        Segmenter.load(folder)


OLD = "2.5.1+cu124"


@pytest.fixture
def old_torch(monkeypatch):
    monkeypatch.setattr(unpickling, "SAFE_TORCH", (2, 6))
    monkeypatch.setattr(torch, "__version__", OLD)


@pytest.mark.parametrize("load", [read_tensors, load_sam, Segmenter.load, Detector.load, Tagger.load])
def test_a_torch_that_may_run_code_reads_no_pickle(load, tmp_path, old_torch):
    message = "is a pickle, from which torch 2.5.1.* may run code .*update torch to 2.6 or newer, or get .* safetensors"
    with pytest.raises(RealignError, match=message):
        load(saved(tmp_path, TENSORS))


def test_a_torch_that_may_run_code_reads_safetensors(tmp_path, old_torch):
    save_file(TENSORS, tmp_path / "x.pth")
    assert read_tensors(tmp_path / "x.pth").keys() == TENSORS.keys()
    assert Segmenter.load(WEIGHTS / "sam")


@pytest.mark.parametrize("kind", FOLDERS, ids=lambda kind: kind.__name__)
def test_a_torch_that_may_run_code_reads_no_pickle_of_a_folder(kind, tmp_path, old_torch):
    folder = shutil.copytree(WEIGHTS / FOLDERS[kind], tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    kind.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(RealignError, match=r"pytorch_model.bin' is a pickle, from which torch 2.5.1"):
        kind.load(folder)


def test_a_torch_that_may_run_code_reads_no_pickle_that_an_index_of_safetensors_names(tmp_path, old_torch):
    folder = shutil.copytree(WEIGHTS / "sam", tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    torch.save(TENSORS, folder / "shard.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(TENSORS, "shard.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(RealignError, match=r"shard.bin' is a pickle, from which torch 2.5.1"):
        Segmenter.load(folder)


@pytest.mark.parametrize(("version", "safe"), [("2.6.0", True), ("2.10.0+cpu", True), ("3.0", True), ("2.5.9", False)])
def test_versions_are_compared_by_their_numbers(version, safe, tmp_path, monkeypatch):
    monkeypatch.setattr(unpickling, "SAFE_TORCH", (2, 6))
    monkeypatch.setattr(torch, "__version__", version)
    file = saved(tmp_path, TENSORS)
    if safe:
        read_tensors(file)
    else:
        with pytest.raises(RealignError, match=re.escape(version)):
            read_tensors(file)


def test_no_sentence_advises_to_read_a_file_with_its_code(tmp_path):
    file = tmp_path / "x.pth"
    file.write_bytes(pickle.dumps({"a": 10**700}, protocol=2))
    torch.save(TENSORS, tmp_path / "tar.pth")
    with pytest.raises(RealignError) as error:
        read_tensors(file)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("message", ["", "\n", "  \n\n"])
def test_an_error_without_text_is_named_by_its_class(message, tmp_path, monkeypatch):
    assert first_line(ValueError(message)) == "ValueError"

    def fail(*_, **__):
        raise OSError(message)

    monkeypatch.setattr("realigndiff.checkpoints.ram.load_file", fail)
    with pytest.raises(RealignError, match=r"damaged or not a RAM \(OSError\)"):
        Tagger.load(WEIGHTS / "ram")


@pytest.mark.parametrize("name", ["x.ckpt", "x.PTH", "x.SafeTensors", "x.Bin"])
def test_a_file_of_weights_is_known_by_its_ending_in_capitals_or_not(name, tmp_path):
    file = saved(tmp_path, TENSORS).rename(tmp_path / name)
    assert weights_file(tmp_path) == file
    assert weights_file(tmp_path / "elsewhere" / name) is not None


def test_the_limits_of_the_checks_are_those_of_the_docs():
    text = (WEIGHTS.parents[1] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    for limit in (values.MAX_TENSORS, folder_checks.MAX_LAYERS, pickle_scan.MAX_INSTRUCTIONS, pickle_scan.MAX_TUPLE):
        assert f"{limit:,}" in text
