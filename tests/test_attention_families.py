"""A model family is one entry of `FAMILIES`: a made-up one is recognised, its words are found, and it is listed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from realigndiff.attention.comfy import families
from realigndiff.attention.comfy.encoded_text import EncodedText
from realigndiff.attention.comfy.families import Family, Segment, TextEncoders
from realigndiff.core.errors import RealignError

ROOT = Path(__file__).parents[1]
MADE_UP = Family(
    ("Aurora",),
    "comfy.ldm.aurora.Network",
    (TextEncoders(("letters",), (Segment("Letters", ("letters",), from_end=True),)),),
    joint=True,
    note="as in no other",
)


@pytest.fixture
def aurora(monkeypatch):
    """The network of a MODEL of the made-up family, as a subclass of its class."""
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, MADE_UP))
    network = type("Network", (), {"__module__": "comfy.ldm.aurora"})
    return type("Finetuned", (network,), {})()


def model_of(network):
    return SimpleNamespace(get_model_object=lambda name: network)


class Letters:
    """A tokenizer with a token per letter, between a start (0) and an end (1)."""

    start_token, end_token, pad_token = 0, 1, 1

    @property
    def tokenizer(self):
        return SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)))

    def tokenize(self, text):
        return {"letters": [[(0, 1.0), *((ord(letter), 1.0) for letter in text), (1, 1.0)]]}


CLIP = SimpleNamespace(tokenizer=SimpleNamespace(letters=Letters()), tokenize=Letters().tokenize)


def test_its_network_is_recognised_and_others_are_refused(aurora):
    assert families.family_of(aurora) is MADE_UP
    families.check_architecture(model_of(aurora), "Re-aligning")
    with pytest.raises(RealignError, match=r"architecture SimpleNamespace; it works with .*Wan, .* and Aurora\."):
        families.check_architecture(model_of(SimpleNamespace()), "Re-aligning")


def test_the_words_of_its_prompts_are_found(aurora):
    encoded = EncodedText(CLIP, "a red ring")
    tokens = [token for token, _ in encoded.windows["letters"][0]]
    found = encoded.find([("red", 0), ("ring", 0)])
    assert ["".join(chr(tokens[position]) for position in word) for word in found] == ["red", "ring"]
    assert all(position < 0 for word in found for position in word)
    assert encoded.text_tokens(20) == range(20 - len("a red ring") - 1, 20)


def test_without_its_entry_its_text_encoder_is_unknown():
    with pytest.raises(RealignError, match=r"this text encoder \(letters\) .* or Cosmos-Predict2\.$"):
        EncodedText(CLIP, "a red ring").find([("red", 0)])


def test_it_is_in_every_list(aurora):
    assert families.family_names()[-1] == "Aurora"
    assert families.list_families().endswith("Cosmos-Predict2 or Aurora")
    assert families.family_table()[-1] == ("Aurora", "one softmax; as in no other", "Letters")


def test_the_list_of_families_reads_as_a_sentence():
    assert families.list_families() == (
        "Stable Diffusion 1, 2, XL or 3, Flux, Chroma, Qwen-Image, Lumina 2, Z-Image, Wan or Cosmos-Predict2"
    )
    assert families.list_families("and", [families.UNET]) == "Stable Diffusion 1, 2 and XL"


def test_documentation_can_list_them_without_torch_or_comfyui():
    code = f"""
import runpy, sys
runpy.run_path({str(ROOT / "standalone.py")!r})["load_pack"]()
from realigndiff.attention.comfy.families import family_table
assert family_table()
assert not {{"torch", "comfy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_table_of_the_architecture_page_is_the_registrys():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = "\n".join(f"| {' | '.join(row)} |" for row in families.family_table())
    assert f"|---|---|---|\n{rows}\n\n" in page, f"write these rows into it:\n{rows}"
