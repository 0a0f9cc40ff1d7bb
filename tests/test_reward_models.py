"""The rewards that are one network: CLIP, NegCLIP, BLIP, ImageReward; and how rewards are read by name.

`golden/originals.json` holds what open_clip and the published code of ImageReward say of the weights and pictures that
`published_rewards` makes; `golden/originals.py` makes them again.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from realigndiff.checkpoints import open_clip
from realigndiff.checkpoints.folders import pillow_processor
from realigndiff.checkpoints.image_reward import text_config, vision_config
from realigndiff.core.embedded import WEIGHTS
from realigndiff.core.errors import RealignError
from realigndiff.rewards.blip import Blip, BlipItcReward, BlipItmReward
from realigndiff.rewards.clip import ClipReward
from realigndiff.rewards.image_reward import ImageReward
from realigndiff.rewards.loading import load_rewards
from realigndiff.rewards.preprocessing import Preprocessing
from realigndiff.rewards.registry import REWARDS, RewardEntry
from realigndiff.tests.close import NETWORK, assert_close
from realigndiff.tests.published import rewards as published_rewards
from realigndiff.tests.published.layouts import picture
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
)

EXPECTED = json.loads((Path(__file__).parent / "golden" / "originals.json").read_text(encoding="utf-8"))
PROMPTS = list(published_rewards.PROMPTS)
CLIP_TOKENIZER = WEIGHTS / "stable_diffusion" / "tokenizer"
BERT_TOKENIZER = WEIGHTS / "grounding_dino"
ClipImageProcessor, BlipImageProcessor = map(pillow_processor, ("CLIPImageProcessor", "BlipImageProcessor"))


def save_clip(folder):
    """A CLIP with few random weights."""
    torch.manual_seed(0)
    half = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": 321, "bos_token_id": 319, "eos_token_id": 320, "pad_token_id": 320}
    vision = {**half, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(vision_config=vision, text_config={**half, **words}, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(CLIP_TOKENIZER).save_pretrained(folder)
    ClipImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_blip(folder):
    """A retrieval BLIP with few random weights, which are large enough to tell one image from another."""
    torch.manual_seed(0)
    half = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**half, "vocab_size": 1030, "encoder_hidden_size": 32, "max_position_embeddings": 64, "pad_token_id": 0}
    vision = {**half, "image_size": 32, "patch_size": 8}
    model = BlipForImageTextRetrieval(BlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=16))
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder)
    BertTokenizerFast.from_pretrained(BERT_TOKENIZER).save_pretrained(folder)
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_negclip(folder, **more):
    """As NegCLIP's training leaves it: in a training state, trained in parallel."""
    tensors = published_rewards.clip_weights(published_rewards.CLIP["small"])
    torch.save({"epoch": 5, "state_dict": {f"module.{k}": v for k, v in (tensors | more).items()}}, folder / "x.pth")
    return folder / "x.pth"


def save_image_reward(folder):
    torch.save(published_rewards.image_reward_weights(published_rewards.IMAGE_REWARD["small"]), folder / "x.pt")
    shutil.copy(BERT_TOKENIZER / "vocab.txt", folder)
    return folder / "x.pt"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = {name: tmp_path_factory.mktemp(name) for name in ("clip", "negclip", "blip", "image_reward")}
    return {
        "clip": save_clip(folder["clip"]),
        "negclip": save_negclip(folder["negclip"]),
        "blip": save_blip(folder["blip"]),
        "image_reward": save_image_reward(folder["image_reward"]),
    }


@pytest.fixture(scope="module")
def rewards(places):
    found = load_rewards(list(REWARDS)[2:], places)
    blip2 = Blip.load(WEIGHTS / "blip2_itm")
    return {**found, "blip2-itm": BlipItmReward(blip2), "blip2-itc": BlipItcReward(blip2)}


each = pytest.mark.parametrize(
    "name", ["clip", "negclip", "blip-itm", "blip-itc", "blip2-itm", "blip2-itc", "image-reward"]
)


def images(count, side=40, seed=0):
    return torch.rand(count, side, side + 8, 3, generator=torch.Generator().manual_seed(seed))


def photo(*size):
    return torch.from_numpy(picture(*size)).float()[None] / 255


def judged(reward, side):
    """Each picture with each prompt, those that need no scaling first: [4, 3]."""
    pairs = [photo(*size).expand(len(PROMPTS), -1, -1, -1) for size in published_rewards.pictures(side)]
    return torch.stack([reward(batch, PROMPTS) for batch in pairs])


# What the originals say


@pytest.mark.parametrize(
    ("name", "golden", "scaled"), [("negclip", "clip", 4e-3), ("image-reward", "image_reward", 0.05)]
)
def test_scores_are_those_of_the_original_code(rewards, name, golden, scaled):
    """Where pictures are scaled, the original rounds them to 8 bits again."""
    found, expected = judged(rewards[name], 48), torch.tensor(EXPECTED[golden])
    assert_close(found[:2], expected[:2], NETWORK)
    assert (found[2:] - expected[2:]).abs().max() < scaled


def test_clip_is_the_cosine_of_the_librarys_own_forward(rewards):
    reward, processor = rewards["clip"], ClipImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    pictures = [picture(seed, 32, 32) for seed in (1, 2, 3)]
    pixels = processor(images=[Image.fromarray(p) for p in pictures], return_tensors="pt").pixel_values
    tokens = reward.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    out = reward.model(pixel_values=pixels, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
    expected = cosine_similarity(out.image_embeds, out.text_embeds)
    seen = torch.from_numpy(np.stack(pictures)).float() / 255
    assert_close(reward(seen, PROMPTS), expected, NETWORK)


def test_blip_is_the_librarys_own_forward(rewards):
    blip = rewards["blip-itm"].blip
    seen = images(3)
    tokens = blip.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    inputs["pixel_values"] = blip.preprocessing(seen)
    match, near = rewards["blip-itm"](seen, PROMPTS), rewards["blip-itc"](seen, PROMPTS)
    for i in range(3):
        ours = {name: value[i : i + 1] for name, value in inputs.items()}
        assert_close(match[i], blip.model(**ours, use_itm_head=True).itm_score.softmax(-1)[0, 1], NETWORK)
        assert_close(near[i], blip.model(**ours, use_itm_head=False).itm_score[0, 0], NETWORK)


def test_blip_2_matches_by_its_head_and_is_near_by_its_best_query(rewards):
    """As the paper says, written out, by the demo world's own model."""
    blip, seen = rewards["blip2-itm"].blip, images(1)
    model, tokens = blip.model, blip.tokenizer(PROMPTS[:1], return_tensors="pt")
    looked = model.vision_model(blip.preprocessing(seen)).last_hidden_state
    queries, text = model.query_tokens, model.embeddings(input_ids=tokens.input_ids)
    asked = model.qformer(query_embeds=queries, encoder_hidden_states=looked).last_hidden_state
    read = model.qformer(query_embeds=text, query_length=0, attention_mask=tokens.attention_mask).last_hidden_state
    near = cosine_similarity(model.vision_projection(asked), model.text_projection(read[:, :1]), dim=-1)
    assert_close(rewards["blip2-itc"](seen, PROMPTS[:1]), near.max(1).values, NETWORK)
    joint = model.embeddings(input_ids=tokens.input_ids, query_embeds=queries)
    mask = torch.cat([torch.ones(1, queries.shape[1], dtype=torch.long), tokens.attention_mask], dim=1)
    both = model.qformer(
        query_embeds=joint, query_length=queries.shape[1], attention_mask=mask, encoder_hidden_states=looked
    ).last_hidden_state
    match = model.itm_head(both[:, : queries.shape[1]]).mean(1).softmax(-1)[:, 1]
    assert_close(rewards["blip2-itm"](seen, PROMPTS[:1]), match, NETWORK)


def test_placeholders_for_queries_that_a_blip_2_folder_names_change_nothing(rewards, tmp_path):
    """Salesforce's folder names one; newer versions of transformers cut as many tokens off as there are queries."""
    folder = shutil.copytree(WEIGHTS / "blip2_itm", tmp_path / "blip2")
    config = json.loads((folder / "config.json").read_text()) | {"image_token_index": 1029}
    (folder / "config.json").write_text(json.dumps(config))
    found = Blip.load(folder)
    assert torch.equal(found.match(images(3), PROMPTS), rewards["blip2-itm"](images(3), PROMPTS))
    assert torch.equal(found.similarity(images(3), PROMPTS), rewards["blip2-itc"](images(3), PROMPTS))


# What all have in common


@each
def test_an_image_has_the_same_score_alone_as_in_a_batch(rewards, name):
    batch = images(3)
    together = rewards[name](batch, PROMPTS)
    alone = torch.cat([rewards[name](batch[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    assert together.shape == (3,) and together.dtype == torch.float32
    assert_close(together, alone, NETWORK)


@each
def test_climbing_its_gradient_raises_the_reward(rewards, name):
    reward = rewards[name]
    assert reward.differentiable
    pixels = images(2).requires_grad_()
    before = reward(pixels, PROMPTS[:2])
    for _ in range(25):
        gradient = torch.autograd.grad(reward(pixels, PROMPTS[:2]).sum(), pixels)[0]
        assert torch.isfinite(gradient).all() and (gradient.flatten(1).norm(dim=1) > 0).all()
        pixels = (pixels + 0.01 * gradient.sign()).clamp(0, 1).detach().requires_grad_()
    assert (reward(pixels, PROMPTS[:2]) > before).all()
    assert not any(weight.requires_grad for network in reward.networks() for weight in network.parameters())


@each
def test_nothing_is_kept_for_a_gradient_that_nobody_asked_for(rewards, name):
    assert not rewards[name](images(1), PROMPTS[:1]).requires_grad


@each
def test_a_prompt_that_is_too_long_is_cut_and_each_image_needs_one(rewards, name):
    assert torch.isfinite(rewards[name](images(2), ["a red circle and " * 60, ""])).all()
    with pytest.raises(RealignError, match="2 images and 1 prompts"):
        rewards[name](images(2), PROMPTS[:1])


@each
def test_half_precision_judges_nearly_the_same(places, rewards, name):
    places = places | {"blip": "demo"} if name.startswith("blip2") else places
    (half,) = load_rewards([name.replace("blip2", "blip")], places, dtype=torch.bfloat16).values()
    found = half(images(3), PROMPTS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, rewards[name](images(3), PROMPTS), atol=0.1, rtol=0.05)


# How images are prepared


@pytest.mark.parametrize(("size", "most"), [((96, 128), 2), ((130, 90), 2), ((40, 40), 6)])
@pytest.mark.parametrize("kind", ["CLIP", "BLIP"])
def test_images_are_prepared_as_the_models_own_processor_does_but_not_rounded(kind, size, most):
    if kind == "CLIP":
        processor = ClipImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 48, "width": 48})
    else:
        processor = BlipImageProcessor(size={"height": 48, "width": 48})
    image = picture(1, *size)
    expected = processor(images=Image.fromarray(image), return_tensors="pt").pixel_values[0]
    ours = Preprocessing.of(processor)(torch.from_numpy(image).float()[None] / 255)[0]
    assert ours.shape == expected.shape == (3, 48, 48)
    difference = 255 * ((ours - expected) * torch.tensor(processor.image_std)[:, None, None]).abs()
    assert difference.max() < most and difference.mean() < 0.5


# Reading by name


def test_rewards_come_in_the_order_asked_for_and_share_what_they_can(places):
    found = load_rewards(["blip-itc", "clip", "blip-itm", "clip"], places)
    assert list(found) == ["blip-itc", "clip", "blip-itm"]
    assert [reward.name for reward in found.values()] == list(found)
    assert load_rewards([], {"negclip": "demo"}) == {}
    assert found["blip-itc"].networks() == found["blip-itm"].networks()


def test_the_caption_and_the_sam_reward_share_the_text_encoder():
    demo = dict.fromkeys(("captioner", "text_encoder", "tagger", "detector", "segmenter"), "demo")
    found = load_rewards(["caption", "sam"], demo, dtype=torch.bfloat16)
    assert found["sam"].language_model.text_encoder is found["caption"].text_encoder
    kept = [*found["sam"].networks(), found["caption"].text_encoder.model]
    assert {weight.dtype for network in kept for weight in network.parameters()} == {torch.float32}
    assert found["caption"].captioner.model.vision_model.dtype == torch.bfloat16

    class Asked:
        pass

    asked = Asked()
    del demo["text_encoder"], demo["captioner"]
    assert load_rewards(["sam"], demo, language_model=asked)["sam"].language_model is asked
    with pytest.raises(RealignError, match="sam needs to know where text_encoder is: give its path, or demo"):
        load_rewards(["sam"], demo)


@pytest.mark.parametrize(
    ("names", "given", "told"),
    [
        (["beauty"], {}, "no reward 'beauty': choose among caption, sam, clip"),
        (["clip"], {}, "clip needs to know where clip is: give its path, or demo for the embedded one"),
        (["image-reward"], {}, r"image-reward needs to know where image_reward is: give its path\."),
        (["image-reward"], {"image_reward": "demo"}, "demo world has no image_reward: give the path of one, or leave"),
        (["negclip"], {"negclip": "demo"}, "demo world has no negclip"),
        (["clip"], {"CLIP": "x"}, "'CLIP' is no model that a reward needs: they need captioner"),
        (["clip"], {"clip": "/nowhere"}, "no model folder '/nowhere'"),
        (["blip-itm"], {"blip": "/nowhere"}, "no model folder '/nowhere'"),
        (["image-reward"], {"image_reward": "/nowhere.pt"}, "'/nowhere.pt' cannot be read"),
        (["negclip"], {"negclip": "/nowhere.pth"}, "'/nowhere.pth' cannot be read"),
    ],
)
def test_what_is_missing_is_told_in_one_sentence(names, given, told):
    with pytest.raises(RealignError, match=told) as error:
        load_rewards(names, given)
    assert "\n" not in str(error.value)


# Files that are something else


def test_a_clip_of_open_clip_is_read_from_safetensors_and_from_its_folder_alone(places, rewards, tmp_path):
    shutil.copytree(CLIP_TOKENIZER, tmp_path, dirs_exist_ok=True)
    tensors = published_rewards.clip_weights(published_rewards.CLIP["small"])
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    found = ClipReward.load(tmp_path)
    assert torch.equal(found(images(3), PROMPTS), rewards["negclip"](images(3), PROMPTS))
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    quick = ClipReward.load(tmp_path)(images(3), PROMPTS)
    assert 1e-5 < (quick - found(images(3), PROMPTS)).abs().max() < 0.1
    (tmp_path / "open_clip_config.json").write_text("[]")
    with pytest.raises(RealignError, match=r"open_clip_config.json' is no JSON object"):
        ClipReward.load(tmp_path)


def test_a_clip_without_a_tokenizer_or_with_another_ones_is_refused(tmp_path):
    file = save_negclip(tmp_path)
    with pytest.raises(RealignError, match=r"put the vocab.json and merges.txt, or the tokenizer.json, of a CLIP"):
        ClipReward.load(file)
    with pytest.raises(RealignError, match=r"knows 1030 words, but the model .* 321"):
        ClipReward.load(file, tokenizer=BERT_TOKENIZER)


SAM = {"image_encoder.blocks.0.x": 0, "prompt_encoder.x": 0, "mask_decoder.x": 0}


@pytest.mark.parametrize(
    ("read", "content", "told"),
    [
        (ImageReward.load, SAM, "looks like a SAM segmenter, but an ImageReward is wanted"),
        (ImageReward.load, {"visual_encoder.blocks.0.x": 0, "text_encoder.x": 0}, "looks like a BLIP of its authors"),
        (ClipReward.load, SAM, "looks like a SAM segmenter, but a CLIP of open_clip"),
        (ClipReward.load, {"visual.layer1.0.x": 0, "token_embedding.weight": 0}, "a CLIP with a ResNet"),
        (
            ClipReward.load,
            {"vision_model.x": 0, "text_model.x": 0, "visual_projection.weight": 0},
            "looks like a CLIP of transformers, which needs its folder",
        ),
        (
            ClipReward.load,
            {"blip.visual_encoder.x": 0, "blip.text_encoder.x": 0, "mlp.layers.0.x": 0},
            "looks like an ImageReward",
        ),
    ],
)
def test_the_file_of_another_model_is_named(read, content, told, tmp_path):
    torch.save({name: torch.zeros(1) for name in content}, tmp_path / "x.pth")
    with pytest.raises(RealignError, match=told) as error:
        read(tmp_path / "x.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("read", "size", "weights"),
    [
        (ImageReward.load, published_rewards.IMAGE_REWARD["small"], published_rewards.image_reward_weights),
        (ClipReward.load, published_rewards.CLIP["small"], published_rewards.clip_weights),
    ],
    ids=["ImageReward", "CLIP"],
)
def test_a_file_that_lacks_a_tensor_or_has_one_more_is_refused(read, size, weights, tmp_path):
    tensors = weights(size)
    several = [
        name for name in tensors if name.endswith(("norm.weight", "ln_final.bias", "7.weight", "cls_token", ".proj"))
    ]
    lacking = [{other: tensor for other, tensor in tensors.items() if other != name} for name in several]
    more = [tensors | {name: torch.zeros(1)} for name in (several[0], several[0] + "s", "blip.more")]
    for content in (*lacking, *more):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(RealignError, match="of a known size") as error:
            read(tmp_path / "x.pth")
        assert "\n" not in str(error.value)


def test_a_folder_of_another_kind_of_model_is_no_blip(places, tmp_path):
    sam = tmp_path / "sam.pth"
    torch.save({name: torch.zeros(1) for name in SAM}, sam)
    with pytest.raises(RealignError, match="holds a model of type clip: choose the folder of a retrieval BLIP"):
        Blip.load(places["clip"])
    with pytest.raises(RealignError, match="looks like a SAM segmenter, but the Hugging Face folder"):
        Blip.load(sam)
    with pytest.raises(RealignError, match="There is no ImageReward in"):
        ImageReward.load(places["clip"])


def test_the_sizes_of_the_published_files_follow_from_their_shapes():
    shapes = published_rewards.clip_layout(published_rewards.CLIP["ViT-B-32"])
    config = open_clip.config_of({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_attention_heads, vision.image_size, vision.patch_size) == (768, 12, 224, 32)
    assert (text.hidden_size, text.num_attention_heads, text.vocab_size, text.eos_token_id) == (512, 8, 49408, 49407)
    assert config.projection_dim == 512 and vision.hidden_act == text.hidden_act == "gelu"

    shapes = published_rewards.image_reward_layout(published_rewards.IMAGE_REWARD["ImageReward"])
    looks, reads = (
        {name.removeprefix(half): torch.empty(shape, device="meta") for name, shape in shapes.items() if half in name}
        for half in ("blip.visual_encoder.", "blip.text_encoder.")
    )
    vision, text = vision_config(looks), text_config(reads)
    assert (vision.hidden_size, vision.num_attention_heads, vision.num_hidden_layers) == (1024, 16, 24)
    assert (vision.image_size, vision.patch_size) == (224, 16)
    assert (text.hidden_size, text.num_attention_heads, text.vocab_size, text.encoder_hidden_size) == (
        768,
        12,
        30524,
        1024,
    )


# One more reward


MADE_UP = """
from realigndiff.rewards.reward import Judgement, Reward


class Brightness(Reward):
    name, differentiable = "brightness", True

    def judge(self, images, prompts):
        return Judgement(images.mean((1, 2, 3)), ("Prompts do not matter.",))

    def networks(self):
        return ()


def load(models):
    return Brightness()
"""


def test_one_file_and_one_registry_line_make_a_reward(tmp_path, monkeypatch):
    from realigndiff.evaluation import metrics
    from realigndiff.evaluation.evaluate import add_arguments

    (tmp_path / "made_up_reward.py").write_text(MADE_UP, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    entry = RewardEntry("how bright the image is", {"lamp": "a lamp"}, "made_up_reward:load")
    monkeypatch.setitem(REWARDS, "brightness", entry)
    reward = load_rewards(["brightness"], {"lamp": "a/lamp"})["brightness"]
    assert reward(torch.full((2, 8, 8, 3), 0.5), PROMPTS[:2]).tolist() == [0.5, 0.5]
    assert reward.judge(torch.zeros(1, 8, 8, 3), PROMPTS[:1]).notes == ("Prompts do not matter.",)
    with pytest.raises(RealignError, match="brightness needs to know where lamp is"):
        load_rewards(["brightness"], {})
    with pytest.raises(RealignError, match=r"choose among caption, .*, brightness"):
        load_rewards(["beauty"], {})
    assert "brightness" in metrics.metric_names() and metrics.reward_models()["lamp"] == "a lamp"
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = parser.parse_args(["--lamp", "a/lamp", "--metric", "brightness"])
    assert options.lamp == "a/lamp" and options.metric == ["brightness"]


def test_the_registry_names_each_reward_as_it_names_itself_and_the_docs_list_it(places):
    demo = dict.fromkeys(("captioner", "text_encoder", "tagger", "detector", "segmenter"), "demo")
    found = load_rewards(list(REWARDS), {**demo, **places})
    assert [reward.name for reward in found.values()] == list(REWARDS)
    page = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text(encoding="utf-8")
    for name, entry in REWARDS.items():
        assert f"`{name}`" in page and all(f"`{model}`" in page for model in entry.models)
