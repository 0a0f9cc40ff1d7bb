"""L_pre: the images that the untrained model draws, which of them are learnt from, and at which noise levels."""

import math
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from realigndiff.core.embedded import WEIGHTS
from realigndiff.core.errors import RealignError
from realigndiff.perception.captioner import Captioner
from realigndiff.sampling.sampler import DiffusersSampler
from realigndiff.tests.close import NETWORK, assert_close
from realigndiff.tests.miniatures import PREDICTIONS, predicting
from realigndiff.training.data.pairs import Pairs
from realigndiff.training.data.prior import FrozenImages, folder_prior, frozen_prior
from realigndiff.training.loop.models import load_models
from realigndiff.training.settings.refl import ReflConfig
from safetensors.torch import save_file

PROMPTS = ["a red circle and a blue square", "a green ring"]


@pytest.fixture(scope="module")
def sampler():
    return DiffusersSampler.load(WEIGHTS / "stable_diffusion")


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_prior_loss_is_the_distance_to_what_the_model_was_trained_to_say(sampler, kind):
    sampler, signal, spread = predicting(sampler, kind)
    latents, calls = sampler.noise([5]), []

    def silent(x, t, *_, **__):
        calls.append((x, t))
        return SimpleNamespace(sample=torch.zeros_like(x))

    loss = Pairs(latents, ["a green ring"]).loss(sampler, silent, range(4))
    x, t = calls[0]
    noise = (x - signal[t] * latents) / spread[t]
    v = signal[t] * noise - spread[t] * latents
    expected = {"epsilon": noise, "v_prediction": v, "sample": latents.expand(4, -1, -1, -1)}[kind]
    assert_close(loss, expected.square().mean(), NETWORK)


def test_the_prior_learns_at_the_noise_levels_asked_for(sampler):
    prior = Pairs(sampler.noise([5]), ["a green ring"], min_timestep=990)
    drawn = {int(prior.draw(torch.Generator().manual_seed(seed), 1000)[2]) for seed in range(200)}
    assert drawn == set(range(990, 1000))


def test_a_level_that_the_model_does_not_have_is_one_sentence(monkeypatch):
    demo = {"model": "demo", "captioner": "demo", "text_encoder": "demo", "precision": "fp32"}
    read = DiffusersSampler.load

    def with_few_levels(*args):
        sampler = read(*args)
        sampler.scheduler.register_to_config(num_train_timesteps=100)
        return sampler

    monkeypatch.setattr(DiffusersSampler, "load", with_few_levels)
    with pytest.raises(RealignError, match="prior_min_timestep is 400, but this model's noise levels are 0 to 99"):
        load_models(ReflConfig(**demo, prior_min_timestep=400), torch.device("cpu"))


def test_the_likeliest_pairs_are_kept_in_their_order():
    drawn = FrozenImages(
        torch.arange(4.0).view(4, 1, 1, 1), ["a", "b", "c", "d"], torch.tensor([-2.0, -0.1, -3.0, -0.2])
    )
    latents, captions = drawn.select_likeliest(0.5)
    assert captions == ["b", "d"] and latents.flatten().tolist() == [1, 3]
    assert drawn.select_likeliest(0.01)[1] == ["b"]
    assert drawn.select_likeliest(1.0)[1] == drawn.captions
    assert drawn._replace(likelihoods=torch.tensor([-2.0, math.nan, -3.0, -0.2])).select_likeliest(0.5)[1] == ["a", "d"]


def test_what_was_drawn_is_drawn_once(sampler, tmp_path):
    captioner, made = Captioner.load(WEIGHTS / "blip2_captioner"), []

    def prior(**changed):
        settings = {"prior_images": 4, "prior_steps": 2, "cfg": 3.0, "prior_captions": "captioner", **changed}
        made.clear()
        return frozen_prior(sampler, captioner, PROMPTS, ReflConfig(output=str(tmp_path), **settings), made.append)

    every = prior()
    assert made == [4] and len(every.captions) == 4
    half = prior(prior_keep=0.5, prior_min_timestep=300)  # what was drawn before was not scored
    assert made == [4] and len(half.captions) == 2 and half.min_timestep == 300
    assert torch.equal(prior(prior_keep=0.5).latents, half.latents) and not made
    assert torch.equal(prior().latents, every.latents) and not made


def test_images_of_other_weights_behind_the_same_path_are_drawn_again(sampler, tmp_path):
    model, made = shutil.copytree(WEIGHTS / "stable_diffusion", tmp_path / "model"), []

    def drawn_with(folder):
        settings = {"model": str(folder), "prior_images": 1, "prior_steps": 1, "cfg": 1.0}
        made.clear()
        frozen_prior(sampler, None, PROMPTS, ReflConfig(output=str(tmp_path / "out"), **settings), made.append)
        return bool(made)

    assert drawn_with(model)
    assert not drawn_with(model)
    assert not drawn_with(shutil.copytree(model, tmp_path / "copy"))
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    content, state = bytearray(weights.read_bytes()), weights.stat()
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert drawn_with(model)
    assert not drawn_with(model)


def test_another_captioner_draws_again_only_what_it_was_asked_of(sampler, tmp_path):
    captioner, made = Captioner.load(WEIGHTS / "blip2_captioner"), []

    def drawn(**changed):
        made.clear()
        settings = {"prior_images": 1, "prior_steps": 1, "cfg": 1.0, "captioner": "one", **changed}
        frozen_prior(sampler, captioner, PROMPTS, ReflConfig(output=str(tmp_path / "out"), **settings), made.append)
        return bool(made)

    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"x")
    assert drawn() and not drawn(captioner=str(other))
    asked = {"prior_captions": "captioner"}
    assert drawn(**asked) and not drawn(**asked) and drawn(captioner=str(other), **asked)


def _cut(file):
    file.write_bytes(file.read_bytes()[:-10])


def _flipped(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 64
    file.write_bytes(content)


def _other_captions(file):
    file.write_bytes(file.read_bytes().replace(b"green", b"brown"))


DAMAGES = {
    "cut off": _cut,
    "a flipped bit": _flipped,
    "empty": lambda file: file.write_bytes(b""),
    "other captions": _other_captions,
    "no header": lambda file: save_file({"latents": torch.zeros(2, 4, 16, 16)}, file),
    "a header of an older version": lambda file: save_file(
        {"latents": torch.zeros(2, 4, 16, 16)}, file, {"captions": '["a", "b"]', "made_of": "{}"}
    ),
    "another file": lambda file: file.write_text("{}", encoding="utf-8"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_images_are_drawn_again(sampler, tmp_path, damage):
    made = []
    config = ReflConfig(output=str(tmp_path), prior_images=2, prior_steps=1, cfg=1.0)
    first = frozen_prior(sampler, None, PROMPTS, config)
    damage(tmp_path / "prior.safetensors")
    again = frozen_prior(sampler, None, PROMPTS, config, made.append)
    assert made == [2] and torch.equal(again.latents, first.latents) and again.captions == first.captions
    frozen_prior(sampler, None, PROMPTS, config, made.append)
    assert made == [2]


def test_images_that_cannot_be_kept_are_learnt_from_all_the_same(sampler, tmp_path, caplog):
    (tmp_path / "file").touch()
    config = ReflConfig(output=str(tmp_path / "file"), prior_images=1, prior_steps=1, cfg=1.0)
    assert len(frozen_prior(sampler, None, PROMPTS, config).captions) == 1
    assert "cannot be written" in caplog.text and "has to sample its images again" in caplog.text


def test_a_folders_pairs_are_learnt_from_at_the_same_levels(sampler, tmp_path):
    Image.new("RGB", (80, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(" a red thing\n", encoding="utf-8")
    prior = folder_prior(tmp_path, sampler, 64, 300)
    assert (prior.captions, prior.min_timestep, prior.latents.shape) == (["a red thing"], 300, (1, 4, 16, 16))


class TestFolder:
    """A folder of images with captions."""

    @pytest.fixture
    def picture(self):
        """A scene that looks different when it is turned."""
        picture = Image.new("RGB", (64, 64), "white")
        picture.paste("red", (0, 0, 20, 40))
        picture.paste("blue", (30, 50, 64, 64))
        return picture

    def latents(self, sampler, folder, report=lambda sentence: None):
        return folder_prior(folder, sampler, 64, report=report).latents

    def save(self, folder, name, picture, **options):
        folder.mkdir(exist_ok=True)
        picture.save(folder / name, **options)
        (folder / name).with_suffix(".txt").write_text("a picture", encoding="utf-8")

    @pytest.mark.parametrize("kind", ["turned", "transparent", "palette", "CMYK", "tif", "animated", "16 bits"])
    def test_images_are_learnt_from_as_they_are_captioned(self, sampler, picture, tmp_path, kind):
        plain, options, name = picture, {}, "a.png"
        if kind == "turned":
            exif = Image.Exif()
            exif[0x0112] = 6
            saved, options = picture.transpose(Image.Transpose.ROTATE_90), {"exif": exif}
        elif kind == "transparent":
            plain = Image.new("RGB", picture.size, "white")
            plain.paste(picture.crop((0, 0, 32, 64)), (0, 0))
            saved = picture.copy()
            alpha = Image.new("L", picture.size, 0)
            alpha.paste(255, (0, 0, 32, 64))
            saved.putalpha(alpha)
        elif kind == "palette":
            saved, options = picture.quantize(8), {}
        elif kind == "CMYK":
            saved, name = picture.convert("CMYK"), "a.tif"
        elif kind == "tif":
            saved, name = picture, "a.TIFF"
        elif kind == "animated":
            saved, name = picture, "a.gif"
            options = {"save_all": True, "append_images": [Image.new("RGB", picture.size, "green")]}
        else:
            grey = np.asarray(picture.convert("L"))
            plain, saved = Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 257)
        self.save(tmp_path / "plain", "a.png", plain)
        self.save(tmp_path / "other", name, saved, **options)
        expected = self.latents(sampler, tmp_path / "plain")
        torch.testing.assert_close(self.latents(sampler, tmp_path / "other"), expected, rtol=1e-4, atol=1e-4)

    def test_what_is_skipped_is_counted_and_named(self, sampler, picture, tmp_path):
        self.save(tmp_path, "good.png", picture)
        picture.save(tmp_path / "alone.jpg")
        for name in ("twice.png", "twice.jpg", "cut.png"):
            self.save(tmp_path, name, picture)
        (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:100])
        self.save(tmp_path, "silent.png", picture)
        (tmp_path / "silent.txt").write_text(" ", encoding="utf-8")
        for name in ("iphone.heic", "raw.nef", "._good.png"):
            (tmp_path / name).write_bytes(b"x")
        sentences = []
        assert len(self.latents(sampler, tmp_path, sentences.append)) == 1
        message = "\n".join(sentences)
        assert "1 image without a .txt file beside it ('alone.jpg')" in message
        assert "2 images that share a .txt file with another ('twice.jpg', 'twice.png')" in message
        assert "1 image that cannot be read ('cut.png')" in message
        assert "1 image whose .txt file is empty or not UTF-8 ('silent.png')" in message
        assert "2 pictures of kinds that are not read (1 .heic, 1 .nef)" in message
        assert "1 hidden file ('._good.png')" in message

    @pytest.mark.parametrize(("folder", "message"), [("nowhere", "no folder"), ("empty", "no image that can be read")])
    def test_a_folder_without_pairs_is_one_sentence(self, sampler, tmp_path, folder, message):
        (tmp_path / "empty").mkdir()
        with pytest.raises(RealignError, match=message):
            folder_prior(tmp_path / folder, sampler, 64)
