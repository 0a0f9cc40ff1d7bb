"""Text from outside can be printed and written, whatever it holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from realigndiff.core.errors import NoAnswer, RealignError
from realigndiff.core.files import write_whole
from realigndiff.core.regions import Region, RegionSet
from realigndiff.core.text import MOST_MESSAGE, encodable, printable, shorten
from realigndiff.language.binding import bind_tags
from realigndiff.pipeline.realign import RealignSettings

STANDALONE = Path(__file__).parents[1] / "standalone.py"
HALF = "\ud83d"
"""What Python makes of the JSON "\\ud83d"."""
NAME = os.fsdecode(b"caf\xe9.png")
"""The name of a file that is not UTF-8."""


class Answers:
    """A language model."""

    def __init__(self, answer):
        self.bind = self.score = lambda prompt, tags: answer


@pytest.mark.parametrize("text", [HALF, NAME, "\x1b[2J", "\x00", "\x9b"])
def test_what_no_terminal_bears_is_replaced_letter_by_letter(text):
    for kind in (RealignError, NoAnswer):
        output = str(kind(f"The name '{text}' is wrong."))
        output.encode("utf-8")
        assert output.isprintable() and len(output) == len(f"The name '{text}' is wrong.")


@pytest.mark.parametrize("text", ["圆 → é", "a\tb\nc", "😀"])
def test_other_text_stays(text):
    assert printable(text) == encodable(text) == str(RealignError(text)) == text


def test_a_message_keeps_its_beginning_and_its_end():
    output = str(RealignError(f"begin {'x' * 10**6} end"))
    assert output.startswith("begin x") and output.endswith("x end") and len(output) <= MOST_MESSAGE + 3


def test_a_value_in_a_message_is_short_however_deep_it_is():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, "x" * 10**6, list(range(10**6)), HALF * 100, 10**400):
        assert len(shorten(value)) <= 60
        shorten(value).encode("utf-8")


@pytest.mark.parametrize("answer", [{"circle": HALF, HALF: 2}, {HALF: [HALF]}, {"circle": f"\x1b[2J{HALF}"}])
def test_notes_on_an_answer_can_be_written(answer, tmp_path):
    found = bind_tags("a red circle", ["circle", f"{HALF}s"], Answers(answer))
    assert found.notes
    for note in found.notes:
        note.encode("utf-8")
        assert "\x1b" not in note
    write_whole(tmp_path / "report.json", "\n".join(found.notes))


def test_words_and_their_prompt_are_made_alike():
    prompt = f"a red {HALF} circle"
    found = RegionSet(prompt, (Region(tag="circle", phrase=f"red {HALF}"),))
    assert found.regions[0].phrase in found.prompt
    assert RegionSet("a\x0bring").prompt == "a\x0bring"  # a text encoder may have read it


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_script_whose_output_is_piped_writes_what_the_encoding_lacks_escaped(encoding):
    code = (
        f"import runpy; runpy.run_path({str(STANDALONE)!r})['package_of']({str(STANDALONE)!r}); print('→ 圆 \\ud83d')"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, timeout=60)
    assert done.stdout.strip() == b"\\u2192 \\u5706 \\ud83d", done.stderr


@pytest.mark.parametrize("values", [{"gate": float("nan")}, {"tag_threshold": float("nan")}, {"tag_threshold": 1.5}])
def test_a_setting_that_is_no_number_is_told(values):
    with pytest.raises(RealignError, match="give a number"):
        RealignSettings(**values)


def test_too_many_tags_and_too_long_a_prompt_are_told():
    with pytest.raises(RealignError, match="2,000 tags for one image"):
        bind_tags("a ring", [str(i) for i in range(2000)], Answers({}))
    with pytest.raises(RealignError, match="shorten it to at most 20,000"):
        bind_tags("a ring " * 10**5, ["ring"], Answers({}))
    with pytest.raises(RealignError, match="things in the prompt"):
        bind_tags("a ring, " * 2000, ["ring"], Answers({}))
