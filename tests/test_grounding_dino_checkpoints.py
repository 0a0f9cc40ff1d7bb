"""GroundingDINO's original files give the boxes and scores that the original implementation gives."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from realigndiff.checkpoints import grounding_dino, tokenizers
from realigndiff.core.embedded import WEIGHTS
from realigndiff.core.errors import RealignError
from realigndiff.perception.detector import Detector, ImageProcessor
from realigndiff.tests.close import NETWORK, assert_close
from realigndiff.tests.published import layouts
from safetensors.torch import save_file

EXPECTED = json.loads((Path(__file__).parent / "golden" / "originals.json").read_text(encoding="utf-8"))
VOCABULARY = WEIGHTS / "grounding_dino" / "vocab.txt"


@pytest.fixture(scope="module")
def tensors():
    return layouts.dino_weights(layouts.DINO["small"])


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    """As its authors save it: in a training state, trained in parallel. A tokenizer is beside it."""
    file = tmp_path_factory.mktemp("dino") / "groundingdino_small.pth"
    torch.save({"model": {f"module.{name}": tensor for name, tensor in tensors.items()}}, file)
    shutil.copy(VOCABULARY, file.parent)
    return file


@pytest.fixture(scope="module")
def detector(file):
    return at_small_size(Detector.load(file))


def at_small_size(detector):
    shortest, longest = layouts.EDGES
    detector.processor = ImageProcessor(size={"shortest_edge": shortest, "longest_edge": longest})
    return detector


def ask(detector, *which, phrases=layouts.PHRASES):
    """The model's boxes and logits while the detector looks for the phrases."""
    images = torch.stack([torch.from_numpy(layouts.picture(*layouts.PICTURES[i])) for i in which]) / 255
    outputs = []
    hook = detector.model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    detector.detect(images, [phrases] * len(which))
    hook.remove()
    return outputs[0].pred_boxes.float(), outputs[0].logits.float()


@pytest.mark.parametrize("which", [(0, 3), (1,), (2,)], ids=["two 96 × 128", "150 × 100", "64 × 64"])
def test_boxes_and_logits_are_those_of_the_original(detector, which):
    for i, boxes, logits in zip(which, *ask(detector, *which), strict=True):
        expected = {name: torch.tensor(values) for name, values in EXPECTED["grounding_dino"][i].items()}
        length = expected["logits"].shape[1]
        assert_close(boxes, expected["boxes"], NETWORK)
        assert_close(logits[:, :length], expected["logits"], NETWORK)
        assert (logits[:, length:] == -torch.inf).all()


@pytest.mark.parametrize("name", ["swint_ogc", "swinb_cogcoor", "small"])
def test_the_size_follows_from_the_shapes(name):
    size = layouts.DINO[name]
    layout = layouts.dino_layout(size)
    config = grounding_dino.config_of({name: torch.empty(shape, device="meta") for name, shape in layout.items()})
    swin, text = config.backbone_config, config.text_config
    assert (swin.embed_dim, tuple(swin.depths), tuple(swin.num_heads)) == (size.swin, size.depths, size.heads)
    assert (swin.window_size, config.num_queries, config.encoder_layers) == (size.window, size.queries, size.layers)
    assert (config.encoder_ffn_dim, config.decoder_n_points, config.num_feature_levels) == (size.mlp, 4, size.levels)
    assert (text.vocab_size, text.num_hidden_layers) == (size.words, size.text_layers)
    assert text.num_attention_heads == size.text // 64


def test_every_tensor_of_the_file_is_used_or_known_to_be_unused(tensors, detector):
    unused = {name for name in tensors if any(re.match(pattern, name) for pattern in grounding_dino.UNUSED)}
    assert {name.split(".")[0] for name in unused} == {"label_enc", "bert", "transformer"}
    fused = [name for name in tensors if "in_proj" in name or ".qkv." in name]
    renamed = grounding_dino.convert(tensors)
    assert len(renamed) == len(tensors) - len(unused) + 2 * len(fused)
    assert sum(value.numel() for value in renamed.values()) == sum(
        value.numel() for name, value in tensors.items() if name not in unused
    )


def test_safetensors_and_the_folder_of_one_file_are_read(tensors, detector, tmp_path):
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "x.safetensors")
    found = at_small_size(Detector.load(tmp_path, tokenizer=VOCABULARY))
    for a, b in zip(ask(found, 2), ask(detector, 2), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("place", ["models/bert-base-uncased", "bert-base-uncased", "models"])
def test_the_tokenizer_is_found_beside_the_file_and_in_a_folder_of_its_name(place, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    shutil.copy(VOCABULARY, tmp_path / place)
    tokenizer = tokenizers.bert_tokenizer(tmp_path / "models" / "groundingdino_swint_ogc.pth", 1030)
    assert tokenizer("Red circle.").input_ids == tokenizer("red circle .").input_ids
    assert tokenizer(".").input_ids == [101, 1012, 102]


def test_the_tokenizer_is_found_where_transformers_keeps_its_downloads(tmp_path, monkeypatch):
    monkeypatch.setattr(
        tokenizers,
        "try_to_load_from_cache",
        lambda model, name: (
            str(VOCABULARY) if (model, name) == ("google-bert/bert-base-uncased", "vocab.txt") else None
        ),
    )
    assert len(tokenizers.bert_tokenizer(tmp_path / "a" / "x.pth", 1030)) == 1030


def test_a_missing_tokenizer_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizers, "try_to_load_from_cache", lambda *_: None)
    file = tmp_path / "models" / "x.pth"
    with pytest.raises(RealignError, match=r"put the vocab.txt or tokenizer.json of bert-base-uncased into '.*models'"):
        tokenizers.bert_tokenizer(file, 30522)
    with pytest.raises(RealignError, match=r"holds no tokenizer.json and no vocab.txt"):
        tokenizers.bert_tokenizer(file, 30522, tmp_path)


def test_the_tokenizer_of_another_model_is_refused(file):
    with pytest.raises(RealignError, match=r"knows 1030 words, but the model .* 30522"):
        tokenizers.bert_tokenizer(file, 30522)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("backbone.0.", r"\(list index out of range\)|it has no"),
        (
            "bert.encoder.layer.0.intermediate.dense.weight",
            "it has no 'bert.encoder.layer.0.intermediate.dense.weight'",
        ),
        ("transformer.decoder.norm.weight", "1 tensors are missing, .*'model.decoder.layer_norm.weight' first"),
    ],
)
def test_a_detector_that_does_not_fit_is_refused(tensors, lost, message, tmp_path):
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(lost)}
    torch.save(rest | {"backbone.0.body.x": torch.zeros(1)} if lost == "backbone.0." else rest, tmp_path / "x.pth")
    with pytest.raises(RealignError, match=f"not a GroundingDINO detector of a known size.*{message}") as error:
        Detector.load(tmp_path / "x.pth", tokenizer=VOCABULARY)
    assert "\n" not in str(error.value)


class Answers(torch.nn.Module):
    """A detector whose two boxes are the tokens at two places of the text."""

    def __init__(self, config, places):
        super().__init__()
        self.config, self.places, self.dtype, self.device = config, places, torch.float32, torch.device("cpu")

    def forward(self, pixel_values, input_ids, **_):
        self.text = input_ids[0]
        out = torch.full((len(pixel_values), len(self.places), self.config.max_text_len), -20.0)
        for box, place in enumerate(self.places):
            out[:, box, place] = 20.0
        corners = torch.tensor([[0.25, 0.5, 0.4, 0.4], [0.75, 0.5, 0.4, 0.4]])
        return type("Out", (), {"logits": out, "pred_boxes": corners.expand(len(out), -1, -1)})


def test_tags_that_share_words_in_one_caption_are_not_mixed_up(detector):
    """`red circle . circle . red`: each tag is read at its own place, not where its words stand first."""
    tags = ["red circle", "circle", "red"]
    circle, red = 4, 6  # the places of the second tag and of the third
    alone = Detector(Answers(detector.model.config, [circle, red]), detector.tokenizer, detector.processor)
    found = alone.detect(torch.zeros(1, 64, 64, 3), [tags])[0]
    words = detector.tokenizer.convert_ids_to_tokens(alone.model.text)
    assert words == ["[CLS]", "red", "circle", ".", "circle", ".", "red", ".", "[SEP]"]
    left, right = found.scores[found.boxes[:, 0].argsort()]
    assert_close(left, torch.tensor([0.0, 1.0, 0.0]))
    assert_close(right, torch.tensor([0.0, 0.0, 1.0]))
