"""The headless scripts, on the demo models: what they write, what they pass over, and what they say."""

import json
import sys

import pytest
import torch
from PIL import Image
from realigndiff.demo.models import FOLDER
from realigndiff.demo.train.data import draw_scenes
from realigndiff.perception.images import to_pil
from realigndiff.pipeline.settings import SamplingSettings
from realigndiff.scripts import caption, realign
from realigndiff.tests.llm_server import LlmServer, Reply
from realigndiff.tests.tiny_llm import save_language_model

DEMO = [f"--{name.replace('_', '-')}=demo" for name in realign.MODELS]
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
        return call(caption, photos, "--captioner", FOLDER / "blip2_captioner", *options)

    def texts(self, photos):
        return {file.name: file.read_text(encoding="utf-8").strip() for file in photos.rglob("*.txt")}

    def test_each_image_gets_what_the_captioner_says_of_it(self, call, photos, models):
        assert self.run(call, photos, "--batch-size=2") == 0
        told = self.texts(photos)
        assert set(told) == {"1.txt", "2.txt", "3.txt"}
        upright = draw_scenes(4, seed=5, objects=2, held_out=True).images[2].permute(1, 2, 0)[None].float() / 255
        assert told["3.txt"] == models.reward.captioner.caption(upright)[0]
        assert self.run(call, photos, "--recursive") == 0
        assert {**told, "4.txt": self.texts(photos)["4.txt"]} == self.texts(photos)

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
        told = capsys.readouterr()
        assert set(self.texts(photos)) == {"1.txt", "2.txt", "3.txt"}
        assert "0.png' was left out" in told.err and "5.jpg' was left out" in told.err
        assert "2 images could not be read" in told.out

    def test_a_stopped_run_leaves_whole_texts_and_goes_on(self, call, photos, monkeypatch):
        write, written = caption.write_whole, []

        def stopped(file, text):
            if written:
                raise KeyboardInterrupt
            written.append(file)
            write(file, text)

        monkeypatch.setattr(caption, "write_whole", stopped)
        assert "goes on where it was" in self.run(call, photos)
        assert len(self.texts(photos)) == 1
        monkeypatch.setattr(caption, "write_whole", write)
        assert self.run(call, photos) == 0 and len(self.texts(photos)) == 3

    def test_two_images_of_one_name_are_refused(self, call, photos):
        (photos / "1.jpg").write_bytes(b"")
        assert "would both get '1.txt'" in self.run(call, photos)

    @pytest.mark.parametrize(("folder", "told"), [("nowhere", "no folder"), ("empty", "no images")])
    def test_a_folder_without_images_is_told(self, call, tmp_path, folder, told):
        (tmp_path / "empty").mkdir()
        assert told in self.run(call, tmp_path / folder)


class TestRealign:
    PROMPT = "a red circle and a blue square"

    def test_each_image_gets_a_folder_and_is_made_once(self, call, tmp_path, capsys):
        (tmp_path / "prompts.txt").write_text(f"\n{self.PROMPT}\n\n", encoding="utf-8")
        arguments = [*QUICK, "--prompts", tmp_path / "prompts.txt", "--count=2", "--seed=3", "--out", tmp_path / "out"]
        assert call(realign, *arguments) == 0
        folders = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert folders == ["a-red-circle-and-a-blue-square-3", "a-red-circle-and-a-blue-square-4"]
        made = tmp_path / "out" / folders[0]
        assert {file.name for file in made.iterdir()} == {"before.png", "after.png", "panel.png", "report.json"}
        told = json.loads((made / "report.json").read_text(encoding="utf-8"))
        assert (told["prompt"], told["seed"], told["models"]["tagger"]) == (self.PROMPT, 3, "demo")
        capsys.readouterr()
        assert call(realign, *arguments) == 0
        assert "2 images, 2 of them done" in capsys.readouterr().out

    def test_other_settings_make_an_image_again(self, call, tmp_path, capsys):
        for power in (5, 2):
            assert call(realign, *QUICK, "--prompt", self.PROMPT, f"--power={power}", "--out", tmp_path) == 0
            assert "0 of them done" in capsys.readouterr().out

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
        told = json.loads(report.read_text(encoding="utf-8"))
        assert [region["phrase"] for region in told["regions"] if region["phrase"]] == self.PROMPT.split(" and ")
        assert bool(server.asked) == (kind == "server")
        assert all("authorization" not in asked.headers for asked in server.asked)

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            ([], "no prompt"),
            (["--prompt", "x", "--llm=http://127.0.0.1:9/v1"], "No model is named"),
            (["--prompts", "nowhere.txt"], "cannot be read"),
            (["--prompt", "x", "--steps=0"], "steps is 0"),
            (["--prompt", "x", "--tagger=nowhere"], "nowhere"),
        ],
    )
    def test_bad_arguments_are_told_in_one_sentence(self, call, tmp_path, arguments, told):
        said = call(realign, *QUICK, "--out", tmp_path, *arguments)
        assert told in said and said.startswith("realign: ")
