"""The script that makes label embeddings for free tags."""

import json
import sys

import pytest
import torch
from realigndiff.core.embedded import WEIGHTS
from realigndiff.perception.labels import read_labels, read_lines
from realigndiff.scripts import label_embeddings
from realigndiff.tests.close import NETWORK, assert_close
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

DESCRIBED = {"cat": ["a small cat", "it says meow"], "red_panda": ["a red thing", "it is no bear"]}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A whole CLIP with few random weights, which reads with the demo model's tokenizer."""
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": 321, "bos_token_id": 319, "eos_token_id": 320, "pad_token_id": 320}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**small, "image_size": 32}, projection_dim=512))
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    CLIPTokenizer.from_pretrained(WEIGHTS / "stable_diffusion" / "tokenizer").save_pretrained(folder)
    return model.eval(), folder


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["label_embeddings", *map(str, arguments)])
    label_embeddings.main()
    return read_labels(arguments[0].with_suffix(".safetensors"))


@torch.inference_mode()
def features(clip, texts):
    """CLIP's row text features of unit length, one text at a time, so that nothing is padded."""
    model, folder = clip
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    pixels = torch.zeros(1, 3, 32, 32)
    tokens = [tokenizer([text], truncation=True, max_length=77, return_tensors="pt") for text in texts]
    return torch.cat([model(**row, pixel_values=pixels).text_embeds for row in tokens])


def test_a_tag_is_the_mean_of_clips_features_of_its_sentences(tmp_path, monkeypatch, clip):
    (tmp_path / "pets.txt").write_text("cat\n\nred_panda\n", encoding="utf-8")
    found = run(monkeypatch, tmp_path / "pets.txt", "--clip", clip[1])
    means = torch.stack([features(clip, label_embeddings.sentences(tag)).mean(dim=0) for tag in DESCRIBED])
    expected = torch.nn.functional.normalize(means, dim=-1)[:, None]
    assert found.tags == ["cat", "red_panda"]
    assert_close(found.embed, expected, NETWORK)


def test_descriptions_stay_apart(tmp_path, monkeypatch, clip):
    (tmp_path / "pets.json").write_text(
        json.dumps([{tag: texts} for tag, texts in DESCRIBED.items()]), encoding="utf-8"
    )
    found = run(monkeypatch, tmp_path / "pets.json", "--clip", clip[1])
    expected = torch.stack([features(clip, texts) for texts in DESCRIBED.values()])
    assert found.tags == list(DESCRIBED)
    assert_close(found.embed, expected, NETWORK)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[{"cat": ["a"]}, {"dog": ["a", "b"]}]', "different numbers"),
        ("cat", "no list"),
        ('["cat"]', "no list"),
        ("[]", "no tag in"),
        ('[{"cat": []}]', "'cat' in .* has no list of descriptions"),
        ('[{"cat": [1, 2]}]', "'cat' in .* has no list of descriptions"),
        ('[{"cat": "a small animal"}]', "'cat' in .* has no list of descriptions"),
        ('[{" ": ["a"]}]', "'' in .* has no list of descriptions"),
    ],
)
def test_descriptions_that_are_none_are_told(tmp_path, monkeypatch, text, told):
    (tmp_path / "pets.json").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match=told):
        run(monkeypatch, tmp_path / "pets.json", "--clip", tmp_path)


@pytest.mark.parametrize(
    ("tags", "options", "told"),
    [
        ("\n\n", [], "no tag in"),
        ("cat", ["--out", "nowhere/pets.safetensors"], "no folder"),
        ("cat", ["--out", "pets2.txt"], r"does not end in \.safetensors"),
        ("cat", ["--device", "gpu"], "cannot compute on 'gpu'"),
        ("cat", [], "no model folder"),
    ],
)
def test_bad_arguments_are_told_in_one_sentence(tmp_path, monkeypatch, tags, options, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets.txt").write_text(tags, encoding="utf-8")
    with pytest.raises(SystemExit, match=told):
        run(monkeypatch, tmp_path / "pets.txt", "--clip", tmp_path / "absent", *options)


def test_a_text_of_something_else_is_never_overwritten(tmp_path, monkeypatch, clip):
    (tmp_path / "pets.json").write_text(json.dumps([DESCRIBED]), encoding="utf-8")
    (tmp_path / "pets.txt").write_text("my notes", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"pets\.txt' holds something else"):
        run(monkeypatch, tmp_path / "pets.json", "--clip", clip[1])
    assert (tmp_path / "pets.txt").read_text(encoding="utf-8") == "my notes"
    (tmp_path / "pets.txt").write_text("cat\n\ncat\nred_panda", encoding="utf-8")  # its tags, and one of them twice
    assert run(monkeypatch, tmp_path / "pets.json", "--clip", clip[1]).tags == list(DESCRIBED)


def test_the_sentences_are_those_of_ram():
    sentences = label_embeddings.sentences("Ice_cream/Sorbet.")
    assert len(sentences) == len(set(sentences)) == 63
    assert {
        "There is an ice cream or sorbet in the scene.",
        "itap of my ice cream or sorbet.",
        "This is a close-up photo of an ice cream or sorbet.",
        "This is a photo of the hard to see ice cream or sorbet.",
    } <= set(sentences)


@pytest.mark.parametrize("letter", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_only_line_feeds_and_carriage_returns_part_tags(letter, tmp_path):
    (tmp_path / "tags.txt").write_bytes(f"cat{letter}fish\r\ndog\rbird\n".encode())
    assert read_lines(tmp_path / "tags.txt", "The tags") == [f"cat{letter}fish", "dog", "bird"]
