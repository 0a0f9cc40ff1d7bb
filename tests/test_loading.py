"""What is wrong with a model folder is said in one sentence."""

import shutil

import pytest
from realigndiff.core.embedded import WEIGHTS
from realigndiff.core.errors import RealignError
from realigndiff.perception.captioner import Captioner
from realigndiff.perception.detector import Detector
from realigndiff.perception.segmenter import Segmenter
from realigndiff.perception.tagger import Tagger
from realigndiff.perception.text_encoder import TextEncoder
from realigndiff.sampling.sampler import DiffusersSampler

FOLDERS = {
    Captioner: "blip2_captioner",
    Detector: "grounding_dino",
    Segmenter: "sam",
    Tagger: "ram",
    TextEncoder: "blip2_itm",
    DiffusersSampler: "stable_diffusion",
}
kinds = pytest.mark.parametrize("kind", FOLDERS, ids=lambda kind: kind.__name__)


@pytest.fixture
def copy(kind, tmp_path):
    return shutil.copytree(WEIGHTS / FOLDERS[kind], tmp_path / "model")


def weights(folder):
    return next(folder.rglob("unet/*.safetensors"), next(folder.rglob("*.safetensors")))


@kinds
def test_an_unknown_folder_is_named(kind, tmp_path):
    with pytest.raises(RealignError, match=r"no model folder .*nowhere"):
        kind.load(tmp_path / "nowhere")


@kinds
def test_a_missing_weight_file_is_told(kind, copy):
    weights(copy).unlink()
    with pytest.raises(RealignError, match=r"could not be read|no file of weights"):
        kind.load(copy)


@kinds
def test_a_truncated_weight_file_is_told(kind, copy):
    file = weights(copy)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(RealignError, match="again"):
        kind.load(copy)


@pytest.mark.parametrize("kind", [Captioner, Detector, Segmenter, TextEncoder], ids=lambda kind: kind.__name__)
def test_weights_of_another_model_are_refused(kind, copy):
    other = WEIGHTS / FOLDERS[Segmenter if kind is not Segmenter else Detector]
    shutil.copyfile(other / "model.safetensors", copy / "model.safetensors")
    with pytest.raises(RealignError, match="not those of"):
        kind.load(copy)


@pytest.mark.parametrize("kind", [Tagger])
def test_a_tagger_with_another_tag_list_is_refused(kind, copy):
    (copy / "ram_tag_list.txt").write_text("one\ntwo\n", encoding="utf-8")
    with pytest.raises(RealignError, match="2 tags"):
        kind.load(copy)
