"""Prompts from the files that people have: faults are reported by file and line, and held-out prompts stay held out."""

import json
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from realigndiff.core.errors import RealignError
from realigndiff.core.fingerprint import fingerprint_of_texts as fingerprint
from realigndiff.core.prompt_files import MAX_LENGTH, Prompts, read_prompts
from realigndiff.demo.prompts import two_object_prompts
from realigndiff.training.data.prompts import load_prompts, split
from realigndiff.training.settings.refl import ReflConfig

TEXTS = ("a red circle", "ein grüner Ring, groß", "a “quoted” cat")
words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=8)


def write(tmp_path, name: str, data: str | bytes):
    file = tmp_path / name
    file.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    return file


def as_csv(texts, separator=",", column="caption") -> str:
    return f"id{separator}{column}\n" + "".join(f'{i}{separator}"{text}"\n' for i, text in enumerate(texts))


def as_jsonl(texts, column="caption") -> str:
    return "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(texts))


FORMS = {
    "prompts.txt": "# a comment\n\n" + "\n".join(TEXTS) + "\n   \n# another\n",
    "PROMPTS.CSV": as_csv(TEXTS),
    "prompts.tsv": as_csv(TEXTS, "\t"),
    "my prompts.jsonl": as_jsonl(TEXTS) + "\n",
}


# The forms


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_prompts(name, newline, bom, tmp_path):
    file = write(tmp_path, name, bom + FORMS[name].replace("\n", newline).encode())
    prompts = read_prompts(file, strict=True)
    assert prompts == Prompts(TEXTS)
    assert fingerprint(prompts.texts) == fingerprint(TEXTS)


def test_the_last_line_needs_no_end(tmp_path):
    assert read_prompts(write(tmp_path, "a.txt", "one\ntwo")).texts == ("one", "two")


@pytest.mark.parametrize("form", [as_csv, as_jsonl])
@pytest.mark.parametrize("column", ["caption", "prompt", "text", "Prompt", " TEXT "])
def test_the_usual_columns_are_found_in_any_case(form, column, tmp_path):
    name = "a.csv" if form is as_csv else "a.jsonl"
    assert read_prompts(write(tmp_path, name, form(["a cat"], column=column))).texts == ("a cat",)


def test_of_the_usual_columns_the_first_of_the_list_is_taken(tmp_path):
    assert read_prompts(write(tmp_path, "a.csv", "text,caption\nno,yes\n")).texts == ("yes",)
    assert read_prompts(write(tmp_path, "a.jsonl", '{"text": "no", "prompt": "yes"}')).texts == ("yes",)


def test_a_named_column_wins(tmp_path):
    file = write(tmp_path, "a.csv", "caption,Words,words\nno,no,yes\n")
    assert read_prompts(file, "words").texts == ("yes",)
    assert read_prompts(file, "caption").texts == ("no",)


def test_a_comma_a_quotation_mark_and_a_line_break_may_stand_in_a_csv_cell(tmp_path):
    file = write(tmp_path, "a.csv", 'caption\n"a cat, a ""dog"""\n"two\nlines"\nthree\n')
    assert read_prompts(file, strict=True).texts == ('a cat, a "dog"', "two\nlines", "three")


def test_a_folder_of_captions_is_read_in_the_order_of_names(tmp_path):
    write(tmp_path, "b.txt", "a dog\r\non grass\n")
    write(tmp_path, "a.txt", b"\xef\xbb\xbfa cat")
    write(tmp_path, "a.png", b"no text")
    (tmp_path / "more").mkdir()
    write(tmp_path / "more", "c.txt", "a bird")
    assert read_prompts(tmp_path, strict=True).texts == ("a cat", "a dog on grass", "a bird")


def test_a_broken_caption_of_a_folder_is_named(tmp_path):
    write(tmp_path, "a.txt", "a cat")
    write(tmp_path, "b.txt", "")
    write(tmp_path, "c.txt", "a dog".encode("utf-16"))
    prompts = read_prompts(tmp_path)
    assert prompts.texts == ("a cat",)
    assert prompts.problems[0] == "b.txt: the text is empty."
    assert "c.txt" in prompts.problems[1]
    assert "UTF-16" in prompts.problems[1]


@pytest.mark.parametrize(("name", "form"), [("metadata.csv", as_csv), ("metadata.jsonl", as_jsonl)])
def test_the_metadata_of_an_image_folder_is_read(name, form, tmp_path):
    write(tmp_path, name, form(["a cat"], column="text"))
    assert read_prompts(tmp_path).texts == ("a cat",)


def test_a_folder_without_prompts_is_told(tmp_path):
    with pytest.raises(RealignError, match=r"holds no \.txt captions"):
        read_prompts(tmp_path)


# Saved datasets


@pytest.fixture
def saved(tmp_path):
    write(tmp_path, "state.json", "{}")
    write(tmp_path, "dataset_info.json", "{}")
    return tmp_path


class Table:
    """As much of `datasets.Dataset` as is used."""

    def __init__(self, **columns):
        self.columns, self.column_names = columns, list(columns)

    def select_columns(self, names):
        return [dict.fromkeys(names, value) for value in self.columns[names[0]]]


def stub(monkeypatch, loaded):
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_from_disk=lambda path: loaded))


def test_a_saved_dataset_without_its_package_names_the_mend(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RealignError, match=r"pip install datasets, or save the prompts as \.jsonl"):
        read_prompts(saved)


def test_a_saved_dataset_is_read_by_row(saved, monkeypatch):
    stub(monkeypatch, Table(image=[0, 0], text=["a cat", None]))
    prompts = read_prompts(saved)
    assert prompts.texts == ("a cat",)
    assert prompts.problems == (f"{saved.name}, row 2: there is no text.",)


def test_of_a_saved_datasets_splits_train_is_taken(saved, monkeypatch):
    stub(monkeypatch, {"test": Table(text=["no"]), "train": Table(text=["yes"])})
    assert read_prompts(saved).texts == ("yes",)
    stub(monkeypatch, {"a": Table(text=["no"]), "b": Table(text=["no"])})
    with pytest.raises(RealignError, match="the splits a, b; give the folder of one"):
        read_prompts(saved)


def test_a_saved_dataset_that_cannot_be_read_is_told(saved, monkeypatch):
    def broken(path):
        raise OSError("no arrow file")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_from_disk=broken))
    with pytest.raises(RealignError, match="could not be read as a saved dataset: no arrow file"):
        read_prompts(saved)


# What is broken


BROKEN = [
    ("a.txt", b"one\n\xff\xfe bytes\nthree\n", 2, "not UTF-8"),
    ("a.txt", b"one\n" + b"x" * (MAX_LENGTH + 1) + b"\nthree", 2, f"{MAX_LENGTH + 1} characters"),
    ("a.txt", b"one\r\nt\0wo\r\nthree", 2, "NUL"),
    ("a.csv", b"id,caption\n1,one\n\n2\n3,three\n", 4, "column 'caption' is missing"),
    ("a.csv", b"id,caption\n1,one\n2,  \n3,three\n", 3, "empty"),
    ("a.csv", b'id,caption\n1,"one"\n2,\xe4\n3,three\n', 3, "not UTF-8"),
    ("a.csv", b'caption\none\n"two" and more\nthree\n', 3, "quotation marks"),
    ("a.csv", b'caption,id\none,1\nthree,2\n"two,3\nfour,4\n', 4, "quotation marks"),
    ("a.csv", b'caption\none\nthree\n"' + b"x\n" * MAX_LENGTH + b'"\n', 4, "is a closing quotation mark missing"),
    (
        "a.csv",
        b'caption\none\nthree\n"' + b"x" * 200_000 + b'"',
        4,
        "quotation marks do not fit together (field larger",
    ),
    ("a.tsv", b"id\ttext\n1\tone\n2\t\n3\tthree", 3, "empty"),
    ("a.jsonl", b'{"text": "one"}\n{"text": \n{"text": "three"}', 2, "not JSON"),
    ("a.jsonl", b'{"text": "one"}\n' + b"[" * 100_000 + b'\n{"text": "three"}', 2, "not JSON"),
    ("a.jsonl", b'{"text": "one"}\n["two"]\n{"text": "three"}', 2, "not a JSON object"),
    ("a.jsonl", b'{"text": "one"}\n{"words": "two"}\n{"text": "three"}', 2, "no caption or prompt or text"),
    ("a.jsonl", b'{"text": "one"}\n{"text": null}\n{"text": "three"}', 2, "no text"),
    ("a.jsonl", b'{"text": "one"}\n{"text": 3}\n{"text": "three"}', 2, "not text but 3"),
    ("a.jsonl", b'{"text": "one"}\n{"text": "\\ud800"}\n{"text": "three"}', 2, "not UTF-8"),
    ("a.jsonl", b'{"text": "one"}\n{"text": ""}\n\n{"text": "three"}', 2, "empty"),
]


@pytest.mark.parametrize(
    ("name", "data", "line", "what"), BROKEN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_broken_row_is_reported_with_its_line_and_skipped(name, data, line, what, tmp_path):
    prompts = read_prompts(write(tmp_path, name, data))
    assert {"one", "three"} <= set(prompts.texts)
    assert prompts.problems[0].startswith(f"{name}, line {line}: ")
    assert what in prompts.problems[0]
    assert len(prompts.problems) == 1


@pytest.mark.parametrize(
    ("name", "data", "line", "what"), BROKEN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_strict_refuses_a_broken_row(name, data, line, what, tmp_path):
    with pytest.raises(RealignError, match=rf"{name}, line {line}: .*Mend it, or leave out --strict"):
        read_prompts(write(tmp_path, name, data), strict=True)


def test_a_text_of_the_greatest_length_is_a_prompt(tmp_path):
    assert len(read_prompts(write(tmp_path, "a.txt", "ä" * MAX_LENGTH), strict=True).texts[0]) == MAX_LENGTH


@pytest.mark.parametrize(
    ("name", "data"), [("a.txt", "# nothing\n\n"), ("a.txt", ""), ("a.csv", "text\n"), ("a.jsonl", "{}")]
)
def test_no_prompt_at_all_is_an_error(name, data, tmp_path):
    with pytest.raises(RealignError, match=f"no prompt in .*{name}"):
        read_prompts(write(tmp_path, name, data))


@pytest.mark.parametrize("data", ["", "words,id\na cat,1\n", "prompt;id\na cat;1\n"])
def test_a_missing_column_names_those_that_are_there(data, tmp_path):
    with pytest.raises(RealignError, match=r"a\.csv has no column caption or prompt or text, only .*prompt_column"):
        read_prompts(write(tmp_path, "a.csv", data))
    with pytest.raises(RealignError, match=r"no column 'label'"):
        read_prompts(write(tmp_path, "a.csv", data), "label")


@pytest.mark.parametrize("name", ["a.parquet", "a"])
def test_another_kind_of_file_is_refused_by_name(name, tmp_path):
    with pytest.raises(RealignError, match=r"give \.txt, \.csv, \.tsv, \.jsonl, \.json or a folder"):
        read_prompts(write(tmp_path, name, "a cat"))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(RealignError, match=r"no file or folder .*nowhere\.txt"):
        read_prompts(tmp_path / "nowhere.txt")


def test_utf_16_is_told(tmp_path):
    with pytest.raises(RealignError, match="UTF-16; save it as UTF-8"):
        read_prompts(write(tmp_path, "a.txt", "a cat".encode("utf-16")))


@given(st.binary(max_size=200), st.sampled_from([".txt", ".csv", ".tsv", ".jsonl"]))
def test_whatever_the_bytes_only_clean_texts_come_out(tmp_path_factory, data, suffix):
    file = write(tmp_path_factory.getbasetemp(), "fuzz" + suffix, b"text\n" + data)
    try:
        prompts = read_prompts(file)
    except RealignError:
        return
    assert all(text.strip() == text != "" and text.encode("utf-8") for text in prompts.texts)


# Duplicates and the hash


def test_duplicates_are_kept_and_counted(tmp_path):
    prompts = read_prompts(write(tmp_path, "a.txt", "one\ntwo\none\none\n"))
    assert prompts.texts == ("one", "two", "one", "one")
    assert prompts.duplicates == 2


def test_the_hash_tells_texts_and_their_order_apart():
    sets = [("a", "b"), ("b", "a"), ("ab",), ("a\nb",), ("a", "b", "b"), ("a",)]
    assert len({fingerprint(texts) for texts in sets}) == len(sets)


# Held-out prompts


MANY = tuple(f"prompt {i}" for i in range(2000))


def test_a_share_holds_out_about_so_many():
    training, held_out = split(Prompts(MANY), 0.1, seed=0)
    assert len(held_out.texts) == pytest.approx(200, abs=60)  # more than 4 standard deviations
    assert sorted(training.texts + held_out.texts) == sorted(MANY)


def test_a_number_holds_out_exactly_so_many_different_prompts():
    assert len(split(Prompts(MANY), 64, seed=0)[1].texts) == 64


@given(st.sets(words, min_size=2), st.sets(words), st.floats(0, 0.99), st.integers(0, 5))
def test_adding_prompts_never_moves_one_from_held_out_to_training(texts, added, share, seed):
    try:
        before, after = split(Prompts(tuple(texts)), share, seed), split(Prompts((*added, *texts)), share, seed)
    except RealignError:
        return
    assert set(before[1].texts) <= set(after[1].texts)
    assert set(before[0].texts) <= set(after[0].texts)


def test_the_split_does_not_depend_on_the_order_but_on_the_seed():
    held_out = split(Prompts(MANY), 0.1, seed=0)[1]
    assert set(split(Prompts(MANY[::-1]), 0.1, seed=0)[1].texts) == set(held_out.texts)
    assert set(split(Prompts(MANY), 0.1, seed=1)[1].texts) != set(held_out.texts)


def test_the_split_is_the_same_on_every_machine():
    assert split(Prompts(MANY[:20]), 3, seed=42)[1].texts == ("prompt 2", "prompt 15", "prompt 18")


@pytest.mark.parametrize("held_out", [0.3, 5])
def test_one_text_is_never_on_both_sides(held_out):
    texts = tuple(f(text) for text in MANY[:50] for f in (str, str.upper, lambda t: t.replace(" ", "  "), str))
    training, out = split(Prompts(texts), held_out, seed=3)
    assert out.texts
    assert not {text.lower().replace("  ", " ") for text in training.texts} & {
        text.lower().replace("  ", " ") for text in out.texts
    }


def test_no_held_out_prompt_is_wanted_with_0():
    assert split(Prompts(MANY), 0, seed=0) == (Prompts(MANY), Prompts(()))


@pytest.mark.parametrize(
    ("held_out", "side"), [(0.0001, "held out"), (3, "left for training"), (99, "left for training")]
)
def test_an_empty_side_is_told(held_out, side):
    with pytest.raises(RealignError, match=rf"of 3 different prompts, so none is {side}"):
        split(Prompts(("a", "b", "c", "A")), held_out, seed=0)


# A run's prompts


def test_a_run_splits_its_file(tmp_path):
    file = write(tmp_path, "a.txt", "\n".join(MANY))
    config = ReflConfig(prompts=str(file), held_out=100)
    assert load_prompts(config) == split(Prompts(MANY), 100, config.run.seed)


def test_a_run_does_not_train_on_what_its_held_out_file_holds(tmp_path):
    training = write(tmp_path, "a.csv", "words\na cat\nA  Dog\na bird\n")
    held_out = write(tmp_path, "b.jsonl", '{"words": "a dog"}\n')
    config = ReflConfig(prompts=str(training), held_out_prompts=str(held_out), prompt_column="words")
    got = load_prompts(config)
    assert (got[0].texts, got[1].texts) == (("a cat", "a bird"), ("a dog",))
    assert "not trained on, because also in" in got[0].problems[0]


def test_a_run_with_nothing_left_to_train_on_is_refused(tmp_path):
    one, two = write(tmp_path, "a.txt", "a cat"), write(tmp_path, "b.txt", "A cat")
    with pytest.raises(RealignError, match="Every prompt in"):
        load_prompts(ReflConfig(prompts=str(one), held_out_prompts=str(two)))


def test_the_demo_trains_on_seen_pairs_and_holds_out_the_reported_ones():
    training, held_out = load_prompts(ReflConfig(prompts="demo", held_out_prompts="demo"))
    assert (len(training.texts), len(held_out.texts)) == (1064, 448)
    assert set(held_out.texts) == {text for text, _ in two_object_prompts(held_out=True)}
    assert not set(training.texts) & set(held_out.texts)
