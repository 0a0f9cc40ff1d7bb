"""The human study: a page that ranks images without their methods' names, and the table of what it saves."""

import base64
import csv
import io
import json
import random
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from realigndiff.core.errors import RealignError
from realigndiff.evaluation import ranks
from realigndiff.evaluation.page import write_page

PROMPTS = [
    "a red </script><script>alert(1)</script> cat",
    "\"dogs\" & 'co' {{title}} <!-- \\u003c 🐈‍⬛ \ud83d",
    "قطة حمراء\u2028\u202eand a hen",
]
METHODS = ["Stable <Diffusion>", "Attend", "RealignDiff"]


class Parsed(HTMLParser):
    """A page's data blocks, the addresses in its markup and its title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tag, self.attributes, self.prompts, self.study, self.title, self.addresses = "", {}, [], None, "", []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tag, self.attributes = tag, dict(attributes)
        self.scripts += tag == "script"
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        self.tag = ""

    def handle_data(self, data):
        if self.tag == "title":
            self.title += data
        elif self.attributes.get("class") == "prompt" and self.tag == "script":
            self.prompts.append(json.loads(data))
        elif self.attributes.get("id") == "study" and self.tag == "script":
            self.study = json.loads(data)

    @property
    def key(self) -> dict:
        return json.loads(base64.b64decode(self.study["key"]))


def pictures(prompt: int, method: int, side: int = 8) -> Image.Image:
    """A picture that tells whose it is by its color."""
    return Image.new("RGB", (side, side), (20 * prompt, 20 * method, 99))


def write(folder, prompts=PROMPTS, methods=METHODS, title="Study", side=8, **settings):
    images = {name: [pictures(i, j, side) for i in range(len(prompts))] for j, name in enumerate(methods)}
    return write_page(folder / "new" / "page.html", prompts, images, title=title, **settings)


def opened(image: dict) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image["address"].partition(",")[2])))


def test_each_prompt_has_the_images_of_all_methods_in_the_order_that_the_key_tells(tmp_path):
    parsed = Parsed(write(tmp_path).read_text("utf-8"))
    assert parsed.key["methods"] == METHODS
    for i, (prompt, order) in enumerate(zip(parsed.prompts, parsed.key["orders"], strict=True)):
        assert sorted(order) == [0, 1, 2]
        assert [opened(image).getpixel((0, 0)) for image in prompt["images"]] == [(20 * i, 20 * j, 99) for j in order]


def test_whatever_a_text_holds_is_text(tmp_path):
    title = "</title><script>alert(2)</script> {{data}} \ud83d"
    parsed = Parsed(write(tmp_path, title=title).read_text("utf-8"))
    assert [prompt["text"] for prompt in parsed.prompts] == PROMPTS
    assert parsed.study["title"] == title and parsed.title == title.replace("\ud83d", "?")
    assert parsed.scripts == len(PROMPTS) + 2


def test_no_name_can_be_read_and_no_file_tells_what_made_it(tmp_path):
    picture = Image.new("RGB", (300, 200))
    picture.info["comment"] = b"Attend's seed 1"
    with io.BytesIO() as plain:
        picture.save(plain, "JPEG")
        assert b"Attend" in plain.getvalue()
    images = {"Attend": [picture], "Realign": [Image.new("RGB", (300, 200))]}
    text = write_page(tmp_path / "page.html", ["a"], images, title="").read_text("utf-8")
    assert not [name for name in images if name in text]
    assert not [image for image in Parsed(text).prompts[0]["images"] if "comment" in opened(image).info]


def test_it_asks_the_network_for_nothing(tmp_path):
    text = write(tmp_path).read_text("utf-8")
    assert not Parsed(text).addresses
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|@import|url\(|fetch\(", text)


def test_small_images_keep_their_pixels_and_large_ones_are_reduced(tmp_path):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (90, 160, 3), dtype=np.uint8))
    large = Image.fromarray(rng.integers(0, 255, (300, 700), dtype=np.uint8))
    file = write_page(tmp_path / "p.html", ["a"], {"small": [small], "large": [large]}, title="", largest=350)
    parsed = Parsed(file.read_text("utf-8"))
    shown = dict(zip(parsed.key["orders"][0], parsed.prompts[0]["images"], strict=True))
    assert (np.array(opened(shown[0])) == np.array(small)).all() and shown[0]["small"]
    assert opened(shown[1]).format == "JPEG" and opened(shown[1]).size == (350, 150) and not shown[1]["small"]
    assert all((image["width"], image["height"]) == opened(image).size for image in shown.values())
    assert large.size == (700, 300)


def test_a_seed_changes_the_orders_and_nothing_else(tmp_path):
    prompts = [f"prompt {i}" for i in range(20)]
    first, same, other = (Parsed(write(tmp_path, prompts, seed=seed).read_text("utf-8")) for seed in (0, 0, 1))
    assert first.key == same.key != other.key
    assert first.study["id"] == other.study["id"]
    assert len({tuple(order) for order in first.key["orders"]}) == 6


@pytest.mark.parametrize(
    "changed",
    [{"prompts": ["a", "b", "d"]}, {"methods": ["x", "z"]}, {"side": 9}],
    ids=lambda changed: next(iter(changed)),
)
def test_other_contents_are_another_study(tmp_path, changed):
    ours = {"prompts": ["a", "b", "c"], "methods": ["x", "y"]}
    first, other = (Parsed(write(tmp_path, **made).read_text("utf-8")) for made in (ours, ours | changed))
    assert first.study["id"] != other.study["id"]


def test_images_are_asked_for_once_and_one_after_the_other(tmp_path):
    asked = []

    class Lazy(list):
        def __getitem__(self, index):
            asked.append((index, super().__getitem__(index)))
            return pictures(*asked[-1])

    write_page(tmp_path / "p.html", ["a", "b"], {"x": Lazy([0, 0]), "y": Lazy([1, 1])}, title="")
    assert asked == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ({"x": [1, 1], "y": [1]}, "'y' has no image of prompt 2, 'a hen': make it"),
        ({"x": [1, None], "y": [1, 1]}, "'x' has no image of prompt 2"),
        ({"x": [1, 1, 1], "y": [1, 1]}, "'x' has 3 images for 2 prompts"),
        ({"x": [1, 1]}, "There are 1 methods to compare: give the images of 2 to 9"),
        ({str(i): [1, 1] for i in range(10)}, "There are 10 methods"),
    ],
)
def test_images_that_cannot_be_compared_are_refused(tmp_path, images, told):
    images = {name: [picture and pictures(0, 0) for picture in ours] for name, ours in images.items()}
    with pytest.raises(RealignError, match=told):
        write_page(tmp_path / "p.html", ["a cat", "a hen"], images, title="")
    assert not list(tmp_path.iterdir())


def test_a_study_without_prompts_is_refused(tmp_path):
    with pytest.raises(RealignError, match="no prompt to show"):
        write_page(tmp_path / "p.html", [], {"x": [], "y": []}, title="")


# What raters saved


def saved(folder, answers, name="a", methods=("x", "y", "z"), study="one", rater=""):
    """A file as the page saves it; an answer is the methods' ranks in order, None where there is none."""
    output = [
        {"prompt": prompt, "ranks": {m: rank for m, rank in zip(methods, ours, strict=True) if rank is not None}}
        for prompt, ours in answers.items()
    ]
    results = {"study": study, "page": "A page", "rater": rater, "methods": list(methods), "answers": output}
    file = folder / f"{name}.json"
    file.write_text(json.dumps(results), encoding="utf-8")
    return file


def summed(*files):
    return ranks.summarize([ranks.read_results(file) for file in files])


def test_tied_images_share_the_mean_of_their_places(tmp_path):
    output = summed(saved(tmp_path, {0: (1, 2, 3), 1: (1, 1, 2), 2: (2, 1, 2), 3: (1, 1, 1)}))
    # By hand: 1 2 3; 1.5 1.5 3; 2.5 1 2.5; 2 2 2.
    assert [row["mean_rank"] for row in output["rows"]] == pytest.approx([7 / 4, 6.5 / 4, 10.5 / 4])
    assert [row["first_places"] for row in output["rows"]] == pytest.approx(
        [(1 + 1 / 2 + 0 + 1 / 3) / 4, (0 + 1 / 2 + 1 + 1 / 3) / 4, (1 / 3) / 4]
    )
    assert "difference" not in output["rows"][0]
    assert [row["difference"] for row in output["rows"][1:]] == pytest.approx([-0.5 / 4, 3.5 / 4])


def test_raters_of_a_prompt_are_averaged_before_prompts_are(tmp_path):
    first = saved(tmp_path, {0: (1, 2, 3), 1: (1, 2, 3)}, "a")
    output = summed(first, saved(tmp_path, {0: (3, 2, 1)}, "b"), saved(tmp_path, {0: (3, 2, 1)}, "c"))
    assert (output["raters"], output["prompts"], output["answers"], output["incomplete"]) == (3, 2, 4, 0)
    assert [row["mean_rank"] for row in output["rows"]] == pytest.approx(
        [((1 + 3 + 3) / 3 + 1) / 2, 2, (5 / 3 + 3) / 2]
    )


def test_answers_without_a_rank_for_each_image_are_left_out_and_counted(tmp_path):
    output = summed(saved(tmp_path, {0: (1, 2, 3), 1: (3, 1, None), 2: (1, 2, 3), 5: (None, None, None)}))
    assert (output["prompts"], output["answers"], output["incomplete"]) == (2, 2, 2)
    assert [row["mean_rank"] for row in output["rows"]] == [1, 2, 3]
    assert "2 in which not every image has a rank are left out" in ranks.as_markdown(output)


def test_intervals_are_those_of_the_mean_over_the_prompts(tmp_path):
    draw = random.Random(0)
    answers = {i: draw.sample((1, 2, 3), 3) for i in range(200)}
    ours = np.array(list(answers.values()), float)
    rows = summed(saved(tmp_path, answers))["rows"]
    for i, row in enumerate(rows):
        half = 1.96 * ours[:, i].std() / np.sqrt(200)
        assert row["ci"] == pytest.approx([ours[:, i].mean() - half, ours[:, i].mean() + half], abs=0.02)
    half = 1.96 * (ours[:, 1] - ours[:, 0]).std() / np.sqrt(200)
    assert rows[1]["difference_ci"] == pytest.approx(
        [rows[1]["difference"] - half, rows[1]["difference"] + half], abs=0.03
    )


def test_where_all_prompts_agree_a_share_of_3_in_n_may_still_not(tmp_path):
    first, second = summed(saved(tmp_path, dict.fromkeys(range(100), (1, 2)), methods=("x", "y")))["rows"]
    assert first["ci"] == pytest.approx([1, 1.03]) and second["ci"] == pytest.approx([1.97, 2])
    assert second["difference"] == 1 and second["difference_ci"] == pytest.approx([0.94, 1])


@pytest.mark.parametrize("other", [{"study": "two"}, {"methods": ("x", "z", "y")}])
def test_results_of_different_studies_are_refused_by_their_names(tmp_path, other):
    files = saved(tmp_path, {0: (1, 2, 3)}, "one"), saved(tmp_path, {0: (1, 2, 3)}, "two", **other)
    with pytest.raises(RealignError, match=r"one\.json' and '.*two\.json' are of different studies: give"):
        summed(*files)


def test_two_files_of_one_rater_are_refused(tmp_path):
    files = [saved(tmp_path, {0: (1, 2, 3)}, name, rater="Ann") for name in ("early", "late")]
    with pytest.raises(RealignError, match=r"early\.json' and '.*late\.json' are both of the rater 'Ann'"):
        summed(*files)


def test_one_prompt_is_too_few(tmp_path):
    with pytest.raises(RealignError, match="1 of the prompts have"):
        summed(saved(tmp_path, {0: (1, 2, 3), 1: (1, 2, None)}))


ANSWER = {"prompt": 0, "ranks": {"x": 1, "y": 2}}
RESULTS = {"study": "one", "page": "", "rater": "", "methods": ["x", "y"], "answers": [ANSWER]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"study": "one", "answ',
        "[" * 100_000,
        "[]",
        "null",
        json.dumps({**RESULTS, "methods": "xy"}),
        json.dumps({**RESULTS, "methods": ["x", "x"]}),
        json.dumps({**RESULTS, "rater": None}),
        json.dumps({**RESULTS, "answers": {"0": 1}}),
        json.dumps({**RESULTS, "answers": [ANSWER, ANSWER]}),
        json.dumps({**RESULTS, "answers": [{**ANSWER, "prompt": -1}]}),
        json.dumps({**RESULTS, "answers": [{**ANSWER, "prompt": []}]}),
        *(
            json.dumps({**RESULTS, "answers": [{**ANSWER, "ranks": output}]})
            for output in ([1, 2], {"x": "1", "y": 2}, {"x": 1, "w": 2}, {"x": float("nan"), "y": 1}, {"x": 10**400})
        ),
    ],
    ids=lambda text: text[-60:],
)
def test_a_damaged_file_is_refused(tmp_path, text):
    file = tmp_path / "bad.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RealignError, match=r"bad\.json' is not"):
        ranks.read_results(file)


def test_results_without_an_answer_are_read(tmp_path):
    assert ranks.read_results(saved(tmp_path, {})).answers == {}


def test_the_script_prints_the_table_and_writes_it(tmp_path, monkeypatch, capsys):
    answers = {0: (1, 2), 1: (2, 1), 2: (1, 2)}
    file = saved(tmp_path, answers, methods=("Stable | Diffusion", "Realign, ours"))
    monkeypatch.setattr("sys.argv", ["ranks", str(file), "--out", str(tmp_path / "out")])
    ranks.main()
    printed = capsys.readouterr().out
    assert "3 answers of 1 rater to 3 prompts." in printed
    assert "| Stable \\| Diffusion | 1.33 [1.00, 2.00] | 66.7% |  |" in printed
    assert (tmp_path / "out/ranks.md").read_text("utf-8") == printed
    assert json.loads((tmp_path / "out/ranks.json").read_text("utf-8"))["rows"][1]["mean_rank"] == pytest.approx(5 / 3)
    first, second = csv.DictReader(io.StringIO((tmp_path / "out/ranks.csv").read_text("utf-8")))
    assert first["difference"] == "" and float(second["difference"]) == pytest.approx(1 / 3)
    assert second["method"] == "Realign, ours"


def test_the_script_tells_what_is_wrong_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ranks", str(tmp_path / "nowhere.json")])
    with pytest.raises(SystemExit, match=r"^ranks: '.*nowhere.json' cannot be read"):
        ranks.main()
