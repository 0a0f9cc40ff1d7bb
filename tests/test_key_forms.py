"""What a server returns of a key, in whatever form, goes no further."""

import base64
import codecs
import json
import logging
import urllib.parse

import pytest
from realigndiff.core.errors import RealignError
from realigndiff.language.binding import bind_tags
from realigndiff.language.server.cache import AnswerCache
from realigndiff.language.server.client import OpenAiLanguageModel
from realigndiff.language.server.key_forms import holds_key, without_key
from realigndiff.tests.llm_server import LlmServer, Reply

KEY = "sk-proj-T3xQ9vLm2ZbR7wKc4NfY8hDs"
HALF = len(KEY) // 2
FORMS = {
    "whole": KEY,
    "first half": KEY[:HALF],
    "second half": KEY[HALF:],
    "a quarter": KEY[8:16],
    "capitals": KEY.upper(),
    "small letters": KEY.lower(),
    "case swapped": KEY.swapcase(),
    "backwards": KEY[::-1],
    "half of it backwards": KEY[HALF:][::-1],
    "spaced out": " ".join(KEY),
    "spaced out widely": "  -  ".join(KEY),
    "in lines": "\n".join(KEY[i : i + 4] for i in range(0, len(KEY), 4)),
    "escaped for an address": "".join(f"%{ord(letter):02x}" for letter in KEY),
    "partly escaped": urllib.parse.quote(KEY.replace("-", "/")),
    "escaped for a page": "".join(f"&#{ord(letter)};" for letter in KEY),
    "escaped in hexadecimal": "".join(f"&#x{ord(letter):x};" for letter in KEY),
    "escaped for JSON twice": "".join(f"\\u{ord(letter):04x}" for letter in KEY),
    "escaped for Python": "".join(f"\\x{ord(letter):02x}" for letter in KEY),
    "hexadecimal": KEY.encode().hex(),
    "hexadecimal with spaces": KEY.encode().hex(" ").upper(),
    "numbers": str(list(KEY.encode())),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 with what stands before it": base64.b64encode(f"Bearer {KEY}".encode()).decode(),
    "base64 of half": base64.b64encode(KEY[HALF:].encode()).decode(),
    "base64 for an address": base64.urlsafe_b64encode(f"user:{KEY}".encode()).decode().rstrip("="),
    "base64 backwards": base64.b64encode(KEY[::-1].encode()).decode(),
    "base32": base64.b32encode(KEY.encode()).decode(),
    "wide letters": "".join(chr(ord(letter) + 0xFEE0) for letter in KEY),
    "with invisible letters": "\u200b".join(KEY),
}
"""What a server may make of a key."""
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@pytest.fixture
def serve():
    servers = []

    def start(reply):
        servers.append(LlmServer(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@each_form
def test_a_few_letters_of_a_form_of_the_key_are_left_at_most(form):
    left = without_key(f"Incorrect: <{form}> is no key", KEY)
    assert left.endswith("> is no key")
    pieces = left.removeprefix("Incorrect: <").removesuffix("> is no key").split("***")
    assert sum(sum(map(str.isalnum, piece)) for piece in pieces) <= 12
    assert holds_key({"circle": form}, KEY) and holds_key([{form: 2}], KEY)


def test_other_text_stays_as_it_is():
    for text in ("status 404: no such model 'llama-3.1:8b'", "你好 " * 50, "sk-… ends in 8hD", "0" * 200, ""):
        assert without_key(text, KEY) == text
        assert not holds_key({text: [text, 2, None, True]}, KEY)


def test_words_of_the_question_are_no_secret():
    key = "a-red-circle-for-ollama"
    assert not holds_key({"circle": "a red circle"}, key, "a red circle and a blue square")
    assert holds_key({"circle": "for ollama"}, key, "a red circle and a blue square")


def test_a_key_spread_over_an_answer_is_found():
    parts = [KEY[i : i + 4] for i in range(0, len(KEY), 4)]
    assert holds_key({str(i): part for i, part in enumerate(parts)}, KEY)
    assert holds_key(dict.fromkeys(parts, 2), KEY)
    assert holds_key({parts[i]: parts[i + 1] for i in range(0, len(parts) - 1, 2)}, KEY)


def test_a_made_up_key_of_few_letters_hides_nothing():
    assert without_key("no such model: none", "none") == "no such model: none"
    assert not holds_key({"none": "none"}, "none")


@pytest.mark.parametrize(
    "form", [FORMS[name] for name in ("first half", "capitals", "base64", "backwards", "in lines")]
)
def test_no_form_of_the_key_gets_into_notes_messages_or_the_cache(serve, tmp_path, form):
    answers = {"circle": form, form: "a red circle", "square": [form]}
    model = OpenAiLanguageModel(
        serve(Reply(json.dumps(answers))).url, "m", lambda: KEY, cache=AnswerCache(tmp_path / "answers")
    )
    found = bind_tags("a red circle", ["circle", "square"], model)
    kept = "".join(file.read_text() for file in tmp_path.rglob("*.json"))
    refused = OpenAiLanguageModel(serve(Reply(status=401, body=form.encode())).url, "m", lambda: KEY, retries=0)
    with pytest.raises(RealignError) as output:
        refused.bind("a red circle", ["circle"])
    for text in (*found.notes, kept, str(output.value)):
        assert form not in text and without_key(text, KEY) == text


def test_nothing_that_repeats_the_key_is_logged(serve, caplog):
    caplog.set_level(logging.DEBUG)
    reply = Reply(json.dumps({"circle": 2}), headers={"X-Key": KEY, "Server": KEY})
    OpenAiLanguageModel(serve(reply).url, "m", lambda: KEY).score("a red circle", ["circle"])
    assert KEY not in caplog.text


def test_a_redirect_is_not_followed(serve):
    other = serve(Reply('{"circle": 2}'))
    first = serve(Reply(status=307, headers={"Location": f"{other.url}/chat/completions"}))
    with pytest.raises(RealignError, match="status 307"):
        OpenAiLanguageModel(first.url, "m", lambda: KEY, retries=0).score("a red circle", ["circle"])
    assert other.asked == []


@pytest.mark.parametrize(
    "written",
    [
        KEY.encode("utf-16-le").hex(),
        base64.b64encode(KEY.encode("utf-16-le")).decode(),
        base64.b64encode(base64.b64encode(KEY.encode())).decode(),
        codecs.encode(KEY, "rot13"),
        "".join(f"\\U{ord(letter):08x}" for letter in KEY),
        "".join(f"\\u{{{ord(letter):x}}}" for letter in KEY),
    ],
    ids=["wide hexadecimal", "wide base64", "base64 twice", "rot13", "long escapes", "escapes in braces"],
)
def test_a_key_written_twice_over_is_taken_out(written):
    assert holds_key({"circle": written}, KEY)
