"""BLIP-2 folders of every kind, and how captions are written."""

import importlib.util
import json
import shutil

import pytest
import torch
from realigndiff.core.embedded import WEIGHTS
from realigndiff.core.errors import RealignError
from realigndiff.core.images import to_pil
from realigndiff.perception.captioner import Captioner
from realigndiff.tests import half
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    OPTConfig,
    T5Config,
)

DEMO = WEIGHTS / "blip2_captioner"
IMAGES = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(3))
COMMON = {"vocab_size": 47, "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
LANGUAGE = {
    "OPT": OPTConfig(
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        **COMMON,
    ),
    "T5": T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=1, **COMMON),
}


@pytest.fixture(scope="module", params=LANGUAGE)
def folder(request, tmp_path_factory):
    """A BLIP-2 with this language model and random weights that say something."""
    folder = tmp_path_factory.mktemp("blip2") / request.param
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "generation*"))
    parts = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    parts["vision_config"]["initializer_range"] = 0.3
    config = Blip2Config(
        vision_config=parts["vision_config"],
        qformer_config=parts["qformer_config"],
        text_config=LANGUAGE[request.param].to_dict(),
        num_query_tokens=8,
        image_token_index=4,
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)
    for parameter in model.parameters():
        parameter.data.mul_(3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def captioner(folder):
    return Captioner.load(folder)


@pytest.fixture(scope="module")
def greedy(captioner):
    """Its captions by greedy search."""
    return captions(captioner)


def captions(captioner, **options):
    return captioner.caption(IMAGES, max_tokens=6, **options)


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_are_those_of_the_library(folder, captioner, beams):
    model = Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder)(images=to_pil(IMAGES), return_tensors="pt").pixel_values
    ids = model.generate(pixel_values=pixels, max_new_tokens=6, num_beams=beams, do_sample=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [[token for token in row if token != 4] for row in ids.tolist()]
    expected = [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
    assert captions(captioner, num_beams=beams) == expected
    assert all(expected) and len(set(expected)) > 1


def test_a_folder_from_before_image_tokens_says_the_same(folder, greedy, tmp_path):
    old = shutil.copytree(folder, tmp_path / "old")
    config = json.loads((old / "config.json").read_text(encoding="utf-8"))
    config["image_token_index"] = None
    (old / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert captions(Captioner.load(old)) == greedy


def test_weights_in_several_files_are_read(folder, greedy, tmp_path):
    many = shutil.copytree(folder, tmp_path / "many", ignore=shutil.ignore_patterns("*.safetensors"))
    Blip2ForConditionalGeneration.from_pretrained(folder).save_pretrained(many, max_shard_size="200KB")
    assert len(list(many.glob("*.safetensors"))) > 1
    assert captions(Captioner.load(many)) == greedy
    next(many.glob("*-00002-*.safetensors")).unlink()
    with pytest.raises(RealignError, match="00002"):
        Captioner.load(many)


@pytest.mark.parametrize("dtype", [half.fp16, half.bf16])
def test_half_precision_sees_nearly_the_same(models, dtype):
    whole, reduced = models.reward.captioner, Captioner.load(DEMO, dtype=dtype)
    assert reduced.model.language_projection.weight.dtype == dtype
    if dtype == torch.float16:
        assert reduced.model.qformer.layernorm.weight.dtype == torch.float32
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        exact = whole.encode_images(pixels)
        assert (reduced.encode_images(pixels).float() - exact).norm() / exact.norm() < 0.05
    assert len(reduced.caption(IMAGES)) == 3


def test_drawn_captions_follow_from_their_seed_and_leave_the_generator_alone(captioner):
    before = torch.random.get_rng_state()
    one, same, other = (captioner.caption(IMAGES, max_tokens=6, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_tokens", 0),
        ("num_beams", 0),
        ("temperature", -1.0),
        ("temperature", 1e-40),
        ("temperature", float("inf")),
        ("seed", 2**64),
    ],
)
def test_an_option_out_of_its_range_is_told(models, option, value):
    with pytest.raises(RealignError, match=f"^{option} is .*; give"):
        models.reward.captioner.caption(IMAGES, **{option: value})


def test_a_low_temperature_draws_the_surest_words(captioner, greedy):
    assert captions(captioner, temperature=1e-3) == greedy


def test_each_token_is_told_and_may_interrupt(captioner):
    class Interrupt(Exception):
        pass

    progress = []

    def on_token(done, most):
        progress.append((done, most))
        if done == 2:
            raise Interrupt

    with pytest.raises(Interrupt):
        captioner.caption(IMAGES, max_tokens=6, on_token=on_token)
    assert progress == [(1, 6), (2, 6)]


def test_eight_bits_are_read_or_what_is_missing_is_named(folder, monkeypatch):
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(RealignError, match="pip install bitsandbytes"):
            Captioner.load(folder, eight_bit=True)
        return
    eight = Captioner.load(folder, eight_bit=True)
    assert any(parameter.dtype == torch.int8 for parameter in eight.model.parameters())
    assert eight.model.qformer.layernorm.weight.dtype == torch.float32
    assert eight.caption(IMAGES, max_tokens=3)
