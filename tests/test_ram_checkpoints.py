"""RAM and RAM++ from their published files say what the published code says.

The expected logits are in `golden/originals.json`: those of the code of github.com/xinyu1205/recognize-anything on the
weights and images that `published_ram` makes. `python tests/golden/originals.py --ram-checkout PATH` makes them again.
"""

import json
import os
import shutil
from pathlib import Path

import PIL
import pytest
import torch
from realigndiff.checkpoints.networks.ram import RamPlus
from realigndiff.checkpoints.ram import convert
from realigndiff.core.embedded import WEIGHTS
from realigndiff.core.errors import RealignError
from realigndiff.perception import labels
from realigndiff.perception.tagger import Tagger
from realigndiff.tests import half
from realigndiff.tests.close import NETWORK, assert_close
from realigndiff.tests.published import ram as published_ram
from safetensors.torch import save_file

ORIGINALS = json.loads((Path(__file__).parent / "golden" / "originals.json").read_text(encoding="utf-8"))["ram"]
LOGITS = {(name, kind == "RAM++"): logits[kind] for name, logits in ORIGINALS.items() for kind in logits}
TAGS = ["apple", "Boat", "cat", "dog", "elm"]
OTHER_PIXELS = 0 if int(PIL.__version__.partition(".")[0]) >= 13 else 0.02
"""What Pillow below 13 adds to the second size's distance: it scales that picture to pixels that differ by 1 of 255."""
both = pytest.mark.parametrize("plus", [False, True], ids=["RAM", "RAM++"])


def publish(folder, plus, sizes=published_ram.SMALL["window 4"], thresholds=True):
    """A file as the authors' training leaves it, and the two lists beside it."""
    file = folder / f"ram{'_plus' * plus}.pth"
    torch.save({"model": published_ram.tensors(sizes, plus), "config": {"vit": "swin_l"}, "epoch": 4}, file)
    (folder / "ram_tag_list.txt").write_text("\n".join(TAGS) + "\n", encoding="utf-8")
    if thresholds:
        (folder / "ram_tag_list_threshold.txt").write_text("0.3\n0.2\n0.4\n0.3\n0.99\n", encoding="utf-8")
    return file


def assert_as_published(tagger, name, plus, within=NETWORK, tags=slice(None)):
    """Fails where the logits of `tags` are not those of the published code, for the pictures of either size."""
    expected = torch.tensor(LOGITS[name, plus]).split([count for *_, count in published_ram.PICTURES])
    for size, more, published in zip(published_ram.PICTURES, (0, OTHER_PIXELS), expected, strict=True):
        assert_close(tagger.logits(published_ram.images(*size))[:, tags], published, within + more)


@both
@pytest.mark.parametrize("name", published_ram.SMALL)
def test_the_logits_are_those_of_the_published_code(tmp_path, name, plus):
    assert_as_published(Tagger.load(publish(tmp_path, plus, published_ram.SMALL[name])), name, plus)


@pytest.mark.skipif(not os.environ.get("REALIGN_BIG"), reason="minutes and gigabytes; REALIGN_BIG=1 runs it")
@both
@pytest.mark.parametrize("name", published_ram.TRUE)
def test_the_logits_at_true_size_are_those_of_the_published_code(tmp_path, name, plus):
    sizes = published_ram.TRUE[name]
    file = publish(tmp_path, plus, sizes)
    (tmp_path / "ram_tag_list.txt").write_text("\n".join(map(str, range(sizes["tags"]))), encoding="utf-8")
    (tmp_path / "ram_tag_list_threshold.txt").unlink()
    every = slice(None, None, published_ram.EVERY[sizes["tags"]])
    assert_as_published(Tagger.load(file), name, plus, tags=every)
    file.unlink()


@both
def test_each_published_tensor_is_used_or_known_to_be_of_no_use(plus):
    published = published_ram.shapes(plus=plus, **published_ram.SMALL["window 4"])
    left = {name.replace("tagging_head.encoder.layer.", "tagging_head.") for name in published} - set(
        convert(published)
    )
    captions = {name for name in left if name.startswith(("tag_encoder.", "text_decoder."))}
    assert {name.rsplit(".", 1)[1] for name in left - captions} == {"relative_position_index", "attn_mask"}
    assert bool(captions) != plus


@both
def test_a_folder_with_the_file_alone_and_safetensors_are_read_too(tmp_path, plus):
    file = publish(tmp_path, plus)
    assert Tagger.load(tmp_path).tags == TAGS
    save_file(torch.load(file)["model"], file.with_suffix(".safetensors"))
    file.unlink()
    assert_as_published(Tagger.load(tmp_path), "window 4", plus)


@pytest.mark.parametrize("dtype", [half.fp16])
@both
def test_half_precision_says_the_same(tmp_path, plus, dtype):
    tagger = Tagger.load(publish(tmp_path, plus), dtype=dtype)
    assert {p.dtype for p in tagger.model.parameters()} == {dtype}
    assert_as_published(tagger, "window 4", plus, within=0.03)


@both
def test_each_tag_has_its_own_threshold_and_denied_tags_are_never_told(tmp_path, plus):
    tagger = Tagger.load(publish(tmp_path, plus))
    images = published_ram.images(48, 80, 2)
    assert [{tag.name for tag in tags} for tags in tagger.tag(images)] == [{"apple", "Boat", "dog"}] * 2
    assert {tag.name for tag in tagger.tag(images, threshold=0.2, deny=["boat ", "ELM"])[0]} == {"apple", "cat", "dog"}
    assert tagger.tag(images, threshold=0.9) == [[], []]
    assert tagger.notes == ()


def test_without_thresholds_the_published_default_holds_and_it_is_told(tmp_path):
    tagger = Tagger.load(publish(tmp_path, plus=False, thresholds=False))
    assert tagger.thresholds.tolist() == pytest.approx([0.68] * 5)
    assert "0.68" in tagger.notes[0]


def test_without_a_tag_list_it_is_said_where_to_get_one(tmp_path):
    file = publish(tmp_path, plus=False)
    (tmp_path / "ram_tag_list.txt").unlink()
    with pytest.raises(RealignError, match=r"5 tags.*put ram_tag_list.txt .*xinyu1205/recognize-anything"):
        Tagger.load(file)


@pytest.mark.parametrize(
    ("text", "told"), [("0.3\n", "5 tags, but its files list 5 tags and 1 thresholds"), ("high\n", "more than numbers")]
)
def test_thresholds_of_something_else_are_told(tmp_path, text, told):
    file = publish(tmp_path, plus=False)
    (tmp_path / "ram_tag_list_threshold.txt").write_text(text, encoding="utf-8")
    with pytest.raises(RealignError, match=told):
        Tagger.load(file)


def damaged(**change):
    """A RAM's tensors, some replaced, or left out where the change is None."""
    tensors = published_ram.tensors(published_ram.SMALL["window 4"], plus=False) | change
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


WRONG = {
    "SAM": (
        {"image_encoder.blocks.0.norm1.weight": 0, "prompt_encoder.x": 0, "mask_decoder.y": 0},
        r"looks like a SAM segmenter, but a RAM or RAM\+\+ tagger is wanted",
    ),
    "Tag2Text": ({"vision_multi.x": 0, "visual_encoder.x": 0}, r"looks like a Tag2Text tagger"),
    "something": ({"x": 0}, r"an unknown model \(its first tensor is 'x'\)"),
    "labels": ({"label_embed": 0}, r"an unknown model \(its first tensor is 'label_embed'\)"),
    "RAM of a ViT": ({"label_embed": 0, "tagging_head.encoder.layer.0.x": 0}, r"a RAM tagger, but not .* with a Swin"),
    "no blocks": (
        {name: tensor for name, tensor in damaged().items() if ".blocks." not in name},
        r"a RAM tagger, but not .* or not whole",
    ),
    "a part": (damaged(**{"fc.weight": None}), r"not a RAM tagger of a known size: 1 tensors are missing.*'fc.weight'"),
    "more": (damaged(extra=torch.ones(1)), r"1 unknown.*'extra'"),
    "other sizes": (damaged(**{"fc.weight": torch.ones(1, 9)}), r"1 of another shape, 'fc.weight'"),
}


@pytest.mark.parametrize(("content", "told"), WRONG.values(), ids=WRONG)
def test_another_model_is_told_apart(tmp_path, content, told):
    content = {name: torch.zeros(1) if isinstance(value, int) else value for name, value in content.items()}
    torch.save(content, tmp_path / "ram.pth")
    with pytest.raises(RealignError, match=told) as error:
        Tagger.load(tmp_path / "ram.pth")
    assert str(tmp_path / "ram.pth") in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_weights_or_with_several_is_told(tmp_path):
    with pytest.raises(RealignError, match="no file of weights"):
        Tagger.load(tmp_path)
    for name in ("a.pth", "b.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(RealignError, match=r"several files of weights \(a.pth, b.safetensors\)"):
        Tagger.load(tmp_path)


def test_our_own_layout_is_read_by_its_folder_or_its_file(tmp_path):
    folder = shutil.copytree(WEIGHTS / "ram", tmp_path / "ram")
    sizes = {Tagger.load(path).model.config.image_size for path in (folder, folder / "model.safetensors")}
    assert sizes == {64}


class TestLabels:
    """Free tags in place of those of the file."""

    @pytest.fixture
    def words(self):
        return torch.nn.functional.normalize(torch.randn(3, 512, generator=torch.Generator().manual_seed(1)), dim=-1)

    @both
    def test_the_models_own_labels_as_free_tags_change_nothing(self, tmp_path, plus):
        file = publish(tmp_path, plus)
        labels.save_labels(tmp_path / "own.safetensors", TAGS, torch.load(file)["model"]["label_embed"])
        tagger = Tagger.load(file, labels=tmp_path / "own.safetensors")
        assert_as_published(tagger, "window 4", plus)
        assert tagger.thresholds.tolist() == [0.5] * 5

    @both
    def test_they_need_no_tag_list_and_any_length_will_do(self, tmp_path, plus, words):
        file = publish(tmp_path, plus)
        (tmp_path / "ram_tag_list.txt").unlink()
        for name, scale in (("unit", 1), ("long", 30)):
            labels.save_labels(tmp_path / f"{name}.safetensors", ["Ufo", "yeti", "kraken"], scale * words)
        unit, long = (Tagger.load(file, labels=tmp_path / f"{name}.safetensors") for name in ("unit", "long"))
        images = published_ram.images(48, 80, 1)
        assert_close(unit.logits(images), long.logits(images), NETWORK)
        found = unit.tag(images, threshold=0.0, deny=["ufo"])[0]
        assert {tag.name for tag in found} == {"yeti", "kraken"}

    def test_several_descriptions_a_tag_are_for_ram_plus_only(self, tmp_path, words):
        file = tmp_path / "two.safetensors"
        labels.save_labels(file, ["Ufo", "yeti", "kraken"], words[:, None].expand(3, 2, 512))
        two = Tagger.load(publish(tmp_path, plus=True), labels=file)
        labels.save_labels(tmp_path / "one.safetensors", ["Ufo", "yeti", "kraken"], words)
        one = Tagger.load(publish(tmp_path, plus=True), labels=tmp_path / "one.safetensors")
        assert isinstance(two.model, RamPlus)
        images = published_ram.images(48, 80, 2)
        assert_close(two.logits(images), one.logits(images), NETWORK)  # both say the same twice
        with pytest.raises(RealignError, match=r"2 descriptions per tag, which only a RAM\+\+ can read"):
            Tagger.load(publish(tmp_path, plus=False), labels=file)

    def test_thresholds_of_their_own_are_used(self, tmp_path, words):
        save_file({"label_embed": words, "thresholds": torch.tensor([0.0, 1.0, 1.0])}, tmp_path / "x.safetensors")
        (tmp_path / "x.txt").write_text("Ufo\nyeti\nkraken\n", encoding="utf-8")
        tagger = Tagger.load(publish(tmp_path, plus=False), labels=tmp_path / "x.safetensors")
        assert [tag.name for tag in tagger.tag(published_ram.images(48, 80, 1))[0]] == ["Ufo"]

    @pytest.mark.parametrize(
        ("tensors", "names", "told"),
        [
            ({"x": torch.ones(3, 512)}, 3, "holds no label_embed"),
            ({"label_embed": torch.ones(3, 512)}, 2, "3 label embeddings, but 'x.txt' names 2 tags"),
            ({"label_embed": torch.ones(3, 512)}, 0, "names 0 tags"),
            ({"label_embed": torch.ones(3, 512)}, None, "names of the tags in 'x.safetensors' cannot be read"),
            ({"label_embed": torch.ones(3, 768)}, 3, "are 768 wide, and the tagger's 512"),
            ({"label_embed": torch.full((3, 512), float("nan"))}, 3, "not numbers"),
            ({"label_embed": torch.ones(3, 512), "thresholds": torch.ones(2)}, 3, "2 thresholds for 3 tags"),
        ],
    )
    def test_what_does_not_fit_is_told(self, tmp_path, tensors, names, told):
        save_file(tensors, tmp_path / "x.safetensors")
        if names is not None:
            (tmp_path / "x.txt").write_text("\n".join(["Ufo", "yeti", "kraken"][:names]), encoding="utf-8")
        with pytest.raises(RealignError, match=told):
            Tagger.load(publish(tmp_path, plus=False), labels=tmp_path / "x.safetensors")
