"""The forms in which prompts are published, read alike by training, evaluation and re-alignment."""

import argparse
import json

import pytest
from realigndiff.core.errors import RealignError
from realigndiff.core.prompt_files import read_prompts
from realigndiff.evaluation.prompt_sets import prompt_set
from realigndiff.scripts import realign
from realigndiff.training.data.prompts import load_prompts
from realigndiff.training.settings.refl import ReflConfig

COCO = {
    "info": {},
    "images": [{"id": 2}],
    "annotations": [
        {"id": 7, "image_id": 2, "caption": "A dog\n runs. "},
        {"id": 3, "image_id": 9, "caption": "A cat."},
        {"id": 5, "image_id": 2, "caption": "Two dogs."},
    ],
}
FORMS = {
    "captions_val.json": (json.dumps(COCO), ("A dog runs.", "A cat.", "Two dogs.")),
    "captions_bare.json": ('{"annotations": [{"caption": "a cat"}, {"caption": "a dog"}]}', ("a cat", "a dog")),
    "refl_data.json": ('[{"text": "a cat"}, {"text": "a dog"}]', ("a cat", "a dog")),
    "texts.json": ('["a cat", "a dog"]', ("a cat", "a dog")),
    "named.json": ('{"prompts": ["a cat", "a dog"], "version": 2}', ("a cat", "a dog")),
    "data.json": ('{"data": [{"prompt": "a cat"}, {"prompt": "a dog"}]}', ("a cat", "a dog")),
    "numbered.json": ('{"0": {"prompt": "a cat"}, "1": {"prompt": "a dog"}}', ("a cat", "a dog")),
    "columns.json": ('{"id": {"0": 5, "1": 6}, "prompt": {"0": "a cat", "1": "a dog"}}', ("a cat", "a dog")),
    "single.json": ('{"prompt": "a cat", "negative": "blurred"}', ("a cat",)),
    "drawbench.csv": ("Prompts,Category\na cat,Animals\na dog,Animals\n", ("a cat", "a dog")),
    "PartiPrompts.tsv": ("Prompt\tCategory\tNote\na cat\tAnimals\t\na dog\tAnimals\t\n", ("a cat", "a dog")),
    "metadata.jsonl": ('{"tag": "x", "prompt": "a cat"}\n"a dog"\n', ("a cat", "a dog")),
    "a.txt": ("# a comment\na cat\n\na dog\n", ("a cat", "a dog")),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
def test_training_evaluation_and_realign_read_each_form_alike(name, bom, tmp_path, capsys):
    content, texts = FORMS[name]
    file = tmp_path / name
    file.write_bytes(bom + content.encode())
    assert read_prompts(file, strict=True).texts == texts
    assert load_prompts(ReflConfig(prompts=str(file), held_out=0, evaluate_every=0))[0].texts == texts
    assert tuple(prompt.text for prompt in prompt_set(str(file), one_caption=False)[0]) == texts
    options = argparse.Namespace(prompt=[], prompts=file, prompt_column=None, count=1)
    assert tuple(realign.read_all_prompts(options)) == texts
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("letter", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_only_line_feeds_and_carriage_returns_end_a_line(letter, tmp_path):
    text = f"a cat{letter}on a mat"
    file = tmp_path / "a.txt"
    file.write_bytes(f"{text}\r\n{text} again\r# no prompt\n".encode())
    assert read_prompts(file).texts == (text, f"{text} again")
    options = argparse.Namespace(prompt=[], prompts=file, prompt_column=None, count=1)
    assert realign.read_all_prompts(options) == [text, f"{text} again"]


def test_one_caption_of_each_image_where_numbers_are_text_too(tmp_path):
    rows = [{"id": str(i), "image_id": str(image), "caption": text} for i, image, text in ((9, 10, "x"), (2, 9, "y"))]
    (tmp_path / "a.json").write_text(json.dumps({"annotations": [*rows, *COCO["annotations"]]}), encoding="utf-8")
    assert read_prompts(tmp_path / "a.json", one_caption=True).texts == ("Two dogs.", "y", "x")


QUESTIONS = {
    "dsg-1k-anns.csv": "item_id,text,proposition_id,question\n"
    + "".join(f'{item},"a {thing}, red",{n},is there?\n' for item, thing in enumerate("abc") for n in range(3)),
    "tifa.json": json.dumps(
        [
            {"id": i, "caption": f"a {thing}, red", "question": f"q{n}"}
            for i, thing in enumerate("abc")
            for n in range(3)
        ]
    ),
    "questions.jsonl": "".join(
        json.dumps({"prompt": f"a {thing}, red", "question": f"q{n}"}) + "\n" for thing in "abc" for n in range(3)
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_prompt_of_several_questions_is_one_prompt_and_that_is_said(name, tmp_path):
    file = tmp_path / name
    file.write_text(QUESTIONS[name], encoding="utf-8")
    prompts = read_prompts(file, strict=True)
    assert prompts.texts == ("a a, red", "a b, red", "a c, red")
    assert "its 9 rows hold 3 different prompts" in prompts.problems[0]
    assert len(read_prompts(file, repeats=True).texts) == 9
    assert len(prompt_set(str(file))[0]) == 3 and len(prompt_set(str(file), repeats=True)[0]) == 9


def test_a_list_of_prompts_keeps_what_it_repeats(tmp_path):
    for name, content in (("a.txt", "x\nx\ny\n"), ("a.csv", "prompt\nx\nx\ny\n"), ("a.json", '["x", "x", "y"]')):
        (tmp_path / name).write_text(content, encoding="utf-8")
        prompts = read_prompts(tmp_path / name)
        assert prompts.texts == ("x", "x", "y") and prompts.duplicates == 1 and not prompts.problems


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a cat", "is no file of JSON"),
        ('{"text": "a"}\n{"text": "b"}', r"call it \.jsonl"),
        ("[" * 100_000, "is no file of JSON"),
        ("3", "is no list of prompts"),
        ('{"version": 2}', "is no list of prompts"),
        ('{"annotations": [{"id": 1, "image_id": 2, "bbox": [0, 0, 1, 1]}]}', "no file of COCO captions"),
        ("[]", "There is no prompt"),
        ("{}", "There is no prompt"),
        ('[{"words": "a"}]', "entry 1: there is no caption or prompt or text"),
    ],
)
def test_what_is_no_list_of_prompts_is_one_sentence(content, told, tmp_path):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(RealignError, match=told):
        read_prompts(tmp_path / "a.json")


def test_a_broken_entry_is_named_and_skipped(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "a"}, {"text": 3}, ["b"], {"text": "\\ud800"}]', encoding="utf-8")
    prompts = read_prompts(tmp_path / "a.json")
    assert prompts.texts == ("a",)
    assert [problem.partition(":")[0] for problem in prompts.problems] == [f"a.json, entry {n}" for n in (2, 3, 4)]
