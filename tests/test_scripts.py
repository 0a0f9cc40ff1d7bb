"""The headless scripts, on the demo models: what they write, what they pass over, and what they say."""

import json
import os
import shutil
import sys
from argparse import Namespace
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from realigndiff.cli.models import MODELS
from realigndiff.core import pictures
from realigndiff.core.embedded import WEIGHTS
from realigndiff.core.images import to_pil
from realigndiff.demo.train.data import draw_scenes
from realigndiff.sampling.settings import SamplingSettings
from realigndiff.scripts import caption, realign
from realigndiff.tests.llm_server import LlmServer, Reply
from realigndiff.tests.tiny_llm import save_language_model

DEMO = [f"--{name.replace('_', '-')}=demo" for name in MODELS]
QUICK = [*DEMO, "--steps=2", "--cfg=3"]


@pytest.fixture
def call(monkeypatch):
    """Runs a script's main with these arguments; what it exits with."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        try:
            script.main()
        except SystemExit as end:
            return end.code
        return 0

    return run


class TestCaption:
    @pytest.fixture
    def photos(self, tmp_path):
        """Four scenes, of four kinds and sizes."""
        scenes = draw_scenes(4, seed=5, objects=2, held_out=True).images.permute(0, 2, 3, 1).float() / 255
        first, second, third, fourth = to_pil(scenes)
        first.save(tmp_path / "1.png")
        second.resize((128, 96)).convert("RGBA").save(tmp_path / "2.webp", lossless=True)
        turned = Image.Exif()
        turned[0x0112] = 6  # show it turned by a quarter, clockwise
        third.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "3.PNG", exif=turned)
        (tmp_path / "more").mkdir()
        fourth.save(tmp_path / "more" / "4.bmp")
        return tmp_path

    def run(self, call, photos, *options):
        return call(caption, photos, "--captioner", WEIGHTS / "blip2_captioner", *options)

    def texts(self, photos):
        return {file.name: file.read_text(encoding="utf-8").strip() for file in photos.rglob("*.txt")}

    def test_each_image_gets_what_the_captioner_says_of_it(self, call, photos, models):
        assert self.run(call, photos, "--batch-size=2") == 0
        output = self.texts(photos)
        assert set(output) == {"1.txt", "2.txt", "3.txt"}
        upright = draw_scenes(4, seed=5, objects=2, held_out=True).images[2].permute(1, 2, 0)[None].float() / 255
        assert output["3.txt"] == models.reward.captioner.caption(upright)[0]
        assert self.run(call, photos, "--recursive") == 0
        assert {**output, "4.txt": self.texts(photos)["4.txt"]} == self.texts(photos)

    def test_texts_that_are_there_stay_unless_told_otherwise(self, call, photos, capsys):
        (photos / "1.txt").write_text("mine", encoding="utf-8")
        self.run(call, photos)
        assert self.texts(photos)["1.txt"] == "mine" and "3 images, 1 of them with a caption" in capsys.readouterr().out
        self.run(call, photos)
        assert "3 of them with a caption" in capsys.readouterr().out
        self.run(call, photos, "--overwrite")
        assert self.texts(photos)["1.txt"] != "mine"

    def test_an_image_that_cannot_be_read_is_told_and_the_others_go_on(self, call, photos, capsys):
        whole = (photos / "1.png").read_bytes()
        (photos / "0.png").write_bytes(whole[: len(whole) // 2])
        (photos / "5.jpg").write_text("no image", encoding="utf-8")
        assert self.run(call, photos) == 1
        output = capsys.readouterr()
        assert set(self.texts(photos)) == {"1.txt", "2.txt", "3.txt"}
        assert "0.png' was left out" in output.err and "5.jpg' was left out" in output.err
        assert "2 images could not be read" in output.out

    @pytest.mark.parametrize("error", [SyntaxError, TypeError, IndexError])
    def test_whatever_pillow_raises_is_told(self, call, photos, monkeypatch, capsys, error):
        def broken(file):
            if file.name == "1.png":
                raise error("broken")
            return open_picture(file)

        open_picture = caption.open_picture
        monkeypatch.setattr(caption, "open_picture", broken)
        assert self.run(call, photos) == 1
        assert set(self.texts(photos)) == {"2.txt", "3.txt"} and "1.png' was left out" in capsys.readouterr().err

    def test_an_image_outlives_its_exif(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "hello"
        damaged = exif.tobytes().replace(b"\x01\x0e", b"\x01\x3f")  # text where fractions belong
        Image.new("RGB", (9, 5), "red").save(tmp_path / "bad.jpg", exif=damaged)
        with pytest.raises(TypeError), Image.open(tmp_path / "bad.jpg") as picture:
            ImageOps.exif_transpose(picture)
        assert pictures.open_picture(tmp_path / "bad.jpg").getpixel((0, 0))[0] > 250

    @pytest.mark.parametrize(
        ("kind", "dtype", "white"),
        [
            ("png", np.uint16, 65535),
            ("tif", np.uint16, 65535),
            ("tif", np.int32, 65535),
            ("tif", np.int32, 255),
            ("tif", np.float32, 1),
            ("tif", np.float32, 255),
            ("tif", np.float32, 1e6),
        ],
    )
    def test_grey_of_more_bits_looks_as_in_8(self, tmp_path, kind, dtype, white):
        grey = np.arange(256, dtype=np.float64).reshape(16, 16)
        Image.fromarray((grey / 255 * white).astype(dtype)).save(tmp_path / f"grey.{kind}")
        assert np.array_equal(np.asarray(pictures.open_picture(tmp_path / f"grey.{kind}"))[..., 1], grey)

    @pytest.mark.parametrize(
        ("option", "told"),
        [
            ("--device=gpu", "cannot compute on 'gpu'"),
            ("--device=cuda:99", "cannot compute on 'cuda:99'"),
            ("--num-beams=0", "num_beams is 0"),
            ("--max-tokens=0", "max_tokens is 0"),
            ("--temperature=-1", "temperature is -1.0"),
            ("--temperature=nan", "temperature is nan"),
            ("--seed=-1", "seed is -1"),
        ],
    )
    def test_bad_arguments_are_told_in_one_sentence(self, call, photos, option, told):
        result = self.run(call, photos, option)
        assert told in result and result.startswith("caption: ")
        assert not self.texts(photos)

    def test_a_text_that_cannot_be_written_is_told(self, call, photos):
        (photos / "1.txt").mkdir()
        assert "1.txt' cannot be written" in self.run(call, photos, "--overwrite")
        assert not list(photos.glob("*.partial"))

    def test_a_stopped_run_that_overwrites_says_that_it_starts_over(self, call, photos, monkeypatch):
        def stopped(file, text):
            raise KeyboardInterrupt

        monkeypatch.setattr(caption, "write_whole", stopped)
        assert "captions every image again" in self.run(call, photos, "--overwrite")

    def test_a_stopped_run_leaves_whole_texts_and_goes_on(self, call, photos, monkeypatch):
        write, written = caption.write_whole, []

        def stopped(file, text):
            if written:
                raise KeyboardInterrupt
            written.append(file)
            write(file, text)

        monkeypatch.setattr(caption, "write_whole", stopped)
        assert "continues where it was" in self.run(call, photos)
        assert len(self.texts(photos)) == 1
        monkeypatch.setattr(caption, "write_whole", write)
        assert self.run(call, photos) == 0 and len(self.texts(photos)) == 3

    def test_two_images_of_one_name_are_refused(self, call, photos):
        (photos / "1.jpg").write_bytes(b"")
        assert "would both get '1.txt'" in self.run(call, photos)

    def test_what_other_systems_leave_beside_photos_is_no_failure(self, call, photos, capsys):
        for name in ("._1.png", ".hidden.jpg", "Thumbs.db", "scan.heic"):
            (photos / name).write_bytes(b"\0\5\x16\7")
        assert self.run(call, photos) == 0
        output = capsys.readouterr()
        assert set(self.texts(photos)) == {"1.txt", "2.txt", "3.txt"} and not output.err.count("left out")
        assert (
            "1 picture of kinds that are not read (1 .heic), and 2 hidden files ('._1.png', '.hidden.jpg')"
            in output.out
        )

    def test_further_kinds_are_captioned_and_named_in_the_help(self, call, tmp_path, capsys):
        scene = to_pil(draw_scenes(1, seed=5, objects=2, held_out=True).images.permute(0, 2, 3, 1).float() / 255)[0]
        kinds = [kind for kind in (".gif", ".jfif", ".avif") if kind in caption.SUFFIXES]
        for kind in kinds:
            scene.save(tmp_path / f"{kind[1:]}{kind}", format=Image.registered_extensions()[kind])
        assert self.run(call, tmp_path) == 0
        assert set(self.texts(tmp_path)) == {f"{kind[1:]}.txt" for kind in kinds}
        capsys.readouterr()
        call(caption, "--help")
        shown = capsys.readouterr().out
        assert all(kind in shown for kind in (".gif", ".jfif", ".avif"))

    def test_a_picture_of_very_many_pixels_is_captioned_from_a_smaller_one(self, call, photos, monkeypatch, models):
        monkeypatch.setattr(pictures, "LARGEST", 64 * 64)
        whole = Image.open(photos / "1.png").convert("RGB")
        whole.resize((640, 640), Image.Resampling.NEAREST).save(photos / "1.png")
        sizes, write = [], models.reward.captioner.__class__.caption

        def noted(captioner, images, **options):
            sizes.extend(image.size for image in images)
            return write(captioner, images, **options)

        monkeypatch.setattr(models.reward.captioner.__class__, "caption", noted)
        assert self.run(call, photos) == 0
        assert max(width * height for width, height in sizes) <= 64 * 64
        assert self.texts(photos)["1.txt"] == models.reward.captioner.caption([whole])[0]

    @pytest.mark.parametrize(("folder", "told"), [("nowhere", "no folder"), ("empty", "no images")])
    def test_a_folder_without_images_is_told(self, call, tmp_path, folder, told):
        (tmp_path / "empty").mkdir()
        assert told in self.run(call, tmp_path / folder)


class TestRealign:
    PROMPT = "a red circle and a blue square"

    def test_each_image_gets_a_folder_and_is_made_once(self, call, tmp_path, capsys, monkeypatch):
        (tmp_path / "prompts.txt").write_text(f"\n{self.PROMPT}\n\n", encoding="utf-8")
        arguments = [*QUICK, "--prompts", tmp_path / "prompts.txt", "--count=2", "--seed=3", "--out", tmp_path / "out"]
        assert call(realign, *arguments) == 0
        folders = sorted(path.name for path in (tmp_path / "out").iterdir())
        name = f"a-red-circle-and-a-blue-square-{sha256(self.PROMPT.encode()).hexdigest()[:8]}"
        assert folders == [f"{name}-3", f"{name}-4"]
        made = tmp_path / "out" / folders[0]
        assert {file.name for file in made.iterdir()} == {"before.png", "after.png", "panel.png", "report.json"}
        output = json.loads((made / "report.json").read_text(encoding="utf-8"))
        assert (output["prompt"], output["seed"], output["models"]["device"]) == (self.PROMPT, 3, "cpu")
        capsys.readouterr()
        assert call(realign, *arguments) == 0
        assert "2 images, 2 of them done" in capsys.readouterr().out

        def stopped(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(realign.models, "load_sampler", stopped)
        # What is made stays done with more images and prompts.
        more = ["--count=3", "--prompt", self.PROMPT.upper(), "--prompt", self.PROMPT]
        assert "continues where it was" in call(realign, *arguments, *more)
        assert "6 images, 2 of them done" in capsys.readouterr().out
        (made / "after.png").write_bytes((made / "after.png").read_bytes()[:60])
        assert "continues where it was" in call(realign, *arguments)
        assert "2 images, 1 of them done" in capsys.readouterr().out

    def test_prompts_of_a_file_are_each_drawn_once_and_comments_are_not(self, tmp_path, capsys):
        (tmp_path / "a.txt").write_text("# mine\na cat\u0085here\r\n\ra dog\na dog\n", encoding="utf-8")
        options = Namespace(prompt=[" a bird "], prompts=tmp_path / "a.txt", prompt_column=None, count=1)
        assert realign.read_all_prompts(options) == ["a bird", "a cat\u0085here", "a dog"]
        (tmp_path / "a.csv").write_text("words,id\na cat,1\n,2\n", encoding="utf-8")
        options.prompts, options.prompt_column = tmp_path / "a.csv", "words"
        assert realign.read_all_prompts(options) == ["a bird", "a cat"]
        assert capsys.readouterr().out == "a.csv, line 3: the text is empty.\n"

    def test_prompts_of_the_same_words_have_folders_of_their_own(self, tmp_path):
        prompts = ("a cat", "A cat", "a, cat", "a cat?", "x" * 90, "x" * 91, "?", "!", "犬" * 200)
        folders = {realign.result_folder(tmp_path, prompt, 2**64 - 1).name.lower() for prompt in prompts}
        assert len(folders) == len(prompts) and max(len(name.encode()) for name in folders) < 255

    def test_other_settings_make_an_image_again(self, call, tmp_path, capsys):
        for power in (5, 2):
            assert call(realign, *QUICK, "--prompt", self.PROMPT, f"--power={power}", "--out", tmp_path) == 0
            assert "0 of them done" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "change", ["another file", "another list", "a touched folder", "another precision", "none"]
    )
    def test_what_is_made_of_other_weights_is_made_again(self, tmp_path, monkeypatch, change):
        tagger, detector = tmp_path / "ram.pth", tmp_path / "dino"
        tagger.write_bytes(b"one")
        shutil.copytree(WEIGHTS / "grounding_dino", detector)
        arguments = ["x", *DEMO, "--prompt=x", "--tagger", str(tagger), "--detector", str(detector)]
        made = []
        monkeypatch.setattr(realign, "is_done", lambda *job: made.append(job[-1]) or True)
        monkeypatch.setattr(sys, "argv", arguments)
        realign.main()
        if change == "another file":
            tagger.write_bytes(b"another")
        elif change == "another list":
            (tmp_path / "ram_tag_list.txt").write_text("cat", encoding="utf-8")
        elif change == "a touched folder":
            os.utime(detector / "config.json", (1, 1))
        elif change == "another precision":
            arguments.append("--precision=bf16")
        else:  # the same by another name
            monkeypatch.chdir(tmp_path)
            (tmp_path / "prompts.txt").write_text("x", encoding="utf-8")
            arguments[arguments.index(str(tagger))] = "ram.pth"
        realign.main()
        assert (made[0] == made[1]) == (change == "none")

    def test_the_image_is_the_one_that_the_library_makes(self, call, tmp_path, models):
        call(realign, *QUICK, "--prompt", self.PROMPT, "--out", tmp_path)
        noise = models.sampler.noise([42])
        image = models.sampler.sample([self.PROMPT], noise, SamplingSettings(steps=2, cfg=3.0))
        saved = Image.open(next(tmp_path.glob("*/before.png")))
        assert torch.equal(torch.tensor(list(saved.getdata())), torch.tensor(list(to_pil(image)[0].getdata())))

    @pytest.mark.parametrize("kind", ["server", "folder"])
    def test_a_language_model_may_answer(self, call, tmp_path, monkeypatch, kind):
        monkeypatch.setenv("OPENAI_API_KEY", "sk-for-openai-alone")
        server = LlmServer(Reply('{"circle": "a red circle", "square": 0.5}'))
        where = [server.url, "--llm-model=any"] if kind == "server" else [save_language_model(tmp_path / "llm")]
        code = call(realign, *QUICK, "--prompt", self.PROMPT, "--out", tmp_path / "out", "--llm", *where)
        server.close()
        assert code == 0
        (report,) = (tmp_path / "out").glob("*/report.json")
        output = json.loads(report.read_text(encoding="utf-8"))
        assert [region["phrase"] for region in output["regions"] if region["phrase"]] == self.PROMPT.split(" and ")
        assert bool(server.asked) == (kind == "server")
        assert all("authorization" not in asked.headers for asked in server.asked)

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            ([], "no prompt"),
            (["--prompt", "x", "--llm=http://127.0.0.1:9/v1"], "No model is named"),
            (["--prompts", "nowhere.txt"], "cannot be read: check the path"),
            (["--prompts", __file__], "is not a file of prompts; give .txt"),
            (["--prompt", "x", "--steps=0"], "steps is 0"),
            (["--prompt", "x", "--nms=7"], "nms is 7: give a number from 0 to 1"),
            (["--prompt", "x", "--tagger=nowhere"], "no 'nowhere': check the path at --tagger"),
            (["--prompt", "x", "--text-encoder=nowhere"], "check the path at --text-encoder"),
            (["--prompt", "x", "--lora=nowhere"], "check the path at --lora"),
            (["--prompt", "x", "--llm=nowhere"], "check the path at --llm"),
            (["--prompt", "x", "--out", __file__], "is no folder to write to"),
            (["--prompt", "x", "--device=gpu"], "cannot compute on 'gpu'"),
            (["--prompt", "x", "--count=0"], "--count is 0"),
        ],
    )
    def test_bad_arguments_are_told_before_a_model_is_read(self, call, tmp_path, monkeypatch, arguments, told):
        monkeypatch.setattr(realign.models, "load_sampler", lambda *_: pytest.fail("read"))
        result = call(realign, *QUICK, "--out", tmp_path, *arguments)
        assert told in result and result.startswith("realign: ")
