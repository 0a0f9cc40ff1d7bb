"""Answers to the LLM step that come as text, and from a server over real HTTP."""

import functools
import gzip
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.utils import formatdate

import pytest
from realigndiff.core.errors import NoAnswer, RealignError
from realigndiff.language import questions
from realigndiff.language.answers import GivenAnswers, read_json
from realigndiff.language.binding import bind_tags
from realigndiff.language.server import chat, transport
from realigndiff.language.server.cache import AnswerCache
from realigndiff.language.server.client import OpenAiLanguageModel
from realigndiff.tests.llm_server import LlmServer, Reply

PROMPT = "a red circle and a blue square"
TAGS = ["circle", "square"]
KEY = "sk-very-secret"


@pytest.mark.parametrize(
    "text",
    [
        '{"bind": {"circle": "a red circle", "square": "a blue square"}, "score": {"circle": 2, "square": 0.5}}',
        '{"circle": "a red circle", "square": "a blue square"}',
        'Of course:\n```json\n{"circle": "a red circle", "square": "a blue square"}\n```',
    ],
    ids=["both questions", "words alone", "in prose"],
)
def test_a_text_answers_the_llm_step(text):
    found = bind_tags(PROMPT, TAGS, GivenAnswers(text))
    assert [(region.tag, region.phrase) for region in found] == [
        ("circle", "a red circle"),
        ("square", "a blue square"),
    ]
    assert found.regions[0].likelihood == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot do that.",
        "[1, 2]",
        "{",
        '{"circle": null}',
        '{"circle":' * 50000,
        '{"circle": ' + "9" * 5000 + "}",
    ],
    ids=lambda text: text[:12],
)
def test_a_text_without_an_answer_still_gives_the_prompts_own_things(text):
    found = bind_tags(PROMPT, TAGS, GivenAnswers(text))
    assert [region.phrase for region in found if region.phrase] == ["a red circle", "a blue square"]


def test_the_first_object_of_a_text_is_read():
    assert read_json('use {braces} like {"a": 1} or {"b": 2}') == {"a": 1}
    assert read_json('as asked [1]: [{"a": 1}]') == {"a": 1}
    assert read_json("none") is None


def test_a_list_of_objects_is_one():
    assert read_json('[{"circle": 2}, 3, {"square": 2, "circle": 0}]', TAGS) == {"circle": 2, "square": 2}


@pytest.mark.parametrize("mark", ["<think>", "<thinking>", "[THINK]", "<THINK>", "◁think▷"])
def test_a_thought_that_never_ends_answers_nothing(mark):
    thought = f'{mark}If I said {{"circle": 0}} that would be wrong'
    assert read_json(thought, TAGS) is None
    assert read_json(f'{{"circle": 2}}{thought}', TAGS) == {"circle": 2}
    assert read_json(f'<think>so {{"circle": 7}}</think>hm {thought}', TAGS) == {"circle": 7}


def test_of_what_was_cut_off_no_thought_counts():
    assert read_json('first {"circle": 0}</think>so it is {"circle": ', TAGS, truncated=True) is None
    assert read_json('first {"circle": 0}</think>{"circle": 2}, "because', TAGS, truncated=True) == {"circle": 2}
    assert read_json('{"circle": 2} as', TAGS, truncated=True) == {"circle": 2}


@pytest.fixture
def serve(monkeypatch):
    """Starts LLM servers, which end with the test. Who asks them again does not wait long."""
    monkeypatch.setattr(chat, "BACK_OFF", 0.01)
    servers = []

    def start(reply=None, **options):
        servers.append(LlmServer(reply or Reply(**options)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def in_turn(*replies):
    """One reply after the other, the last one again and again."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def test_a_server_is_asked_both_questions_and_believed(serve):
    server = serve(content='{"circle": "a red circle", "square": "a blue square"}')
    model = OpenAiLanguageModel(server.url, "some-model", lambda: KEY, seed=7)
    assert model.bind(PROMPT, TAGS) == {"circle": "a red circle", "square": "a blue square"}
    model.score(PROMPT, TAGS)
    assert {asked.path for asked in server.asked} == {"/v1/chat/completions"}
    assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
    first, second = (asked.body for asked in server.asked)
    assert (first["model"], first["temperature"], first["seed"]) == ("some-model", 0, 7)
    assert json.loads(first["messages"][1]["content"]) == {"text": PROMPT, "phrases": TAGS}
    assert json.loads(second["messages"][1]["content"]) == {"text": PROMPT, "tags": TAGS}


@pytest.mark.parametrize(
    "content", ["Sorry.", "", "null", "[]", None, [1], 3, {"a": 1}, '{"a":' * 3000], ids=lambda c: str(c)[:9]
)
def test_a_server_that_answers_nonsense_answers_nothing(serve, content):
    assert OpenAiLanguageModel(serve(content=content).url, "m").bind(PROMPT, TAGS) is None


def test_an_answer_in_parts_is_put_together(serve):
    parts = [{"type": "text", "text": '{"circle": '}, {"type": "text", "text": '"a red circle"}'}]
    assert OpenAiLanguageModel(serve(content=parts).url, "m").bind(PROMPT, TAGS) == {"circle": "a red circle"}


@pytest.mark.parametrize("kind", ["application/json", "text/html"])
@pytest.mark.parametrize(
    "body",
    [
        "<html>Ollama is running</html>",
        "",
        "[]",
        "{}",
        "7",
        '{"choices": []}',
        '{"choices": "none"}',
        '{"choices": [null]}',
        '{"choices": [{}]}',
        '{"choices": [{"message": 3}]}',
        '{"choices": [{"message": null}]}',
        '{"choices":' * 50000,
        KEY,
    ],
    ids=lambda body: body[:40],
)
def test_what_is_no_chat_completion_is_told_or_answers_nothing(serve, body, kind):
    model = OpenAiLanguageModel(serve(body=body.encode(), headers={"Content-Type": kind}).url, "m", lambda: KEY)
    try:
        assert model.bind(PROMPT, TAGS) is None
    except RealignError as error:
        assert "(it wrote no chat completion)" in str(error) and KEY not in str(error)


PLANTED = {
    "OPENAI_CUSTOM_HEADERS": "X-Team: planted\nAuthorization: Bearer planted\nUser-Agent: planted\nHost: planted\n"
    "content-type: planted",
    "OPENAI_API_KEY": "sk-planted",
    "OPENAI_ADMIN_KEY": "sk-planted-admin",
    "OPENAI_ORG_ID": "org-planted",
    "OPENAI_PROJECT_ID": "proj-planted",
    "OPENAI_WEBHOOK_SECRET": "planted",
    "OPENAI_BASE_URL": "http://127.0.0.1:9/planted",
}


@pytest.mark.parametrize("key", [KEY, None])
def test_nothing_of_the_environment_is_sent(serve, monkeypatch, key):
    server = serve(content='{"circle": "a red circle"}')
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    assert OpenAiLanguageModel(server.url, "m", lambda: key).bind(PROMPT, TAGS) == {"circle": "a red circle"}
    (asked,) = server.asked
    assert asked.headers.get("authorization") == (f"Bearer {KEY}" if key else None)
    assert "planted" not in json.dumps([asked.headers, asked.body])


NOT_NOW = [Reply(status=status) for status in (408, 409, 429, 500, 502, 503, 529)]
BROKEN = [Reply(fault=fault) for fault in ("reset", "cut", "not HTTP")] + [Reply(body=b"<html>Bad gateway</html>")]


@pytest.mark.parametrize("first", NOT_NOW + BROKEN, ids=lambda reply: str(reply.fault or reply.status))
def test_a_server_that_could_not_answer_is_asked_again(serve, first):
    server = serve(in_turn(first, Reply('{"circle": "a red circle"}')))
    assert OpenAiLanguageModel(server.url, "m").bind(PROMPT, TAGS) == {"circle": "a red circle"}
    assert len(server.asked) == 2


def test_it_is_asked_again_so_often_as_told(serve):
    server = serve(status=503)
    with pytest.raises(RealignError, match=r"did not answer for 'm' .*503"):
        OpenAiLanguageModel(server.url, "m", retries=3).bind(PROMPT, TAGS)
    assert len(server.asked) == 4


@pytest.mark.parametrize("status", [301, 307, 308, 401, 403, 404, 418])
def test_a_server_that_refuses_is_asked_once(serve, status):
    elsewhere = serve()
    server = serve(status=status, headers={"Location": elsewhere.url})
    with pytest.raises(RealignError, match="did not answer"):
        OpenAiLanguageModel(server.url, "m", lambda: KEY).bind(PROMPT, TAGS)
    assert len(server.asked) == 1 and not elsewhere.asked


@pytest.mark.parametrize("wait", ["0.3", "date"])
def test_a_server_says_when_to_ask_again(serve, wait):
    if wait == "date":
        wait = formatdate(time.time() + 1.5, usegmt=True)  # whole seconds: half to one and a half from now
    server = serve(in_turn(Reply(status=429, headers={"Retry-After": wait}), Reply()))
    OpenAiLanguageModel(server.url, "m").bind(PROMPT, TAGS)
    assert server.asked[1].at - server.asked[0].at >= 0.3


@pytest.mark.parametrize("wait", ["3600", "inf", "Fri, 31 Dec 2100 23:59:59 GMT"])
def test_a_server_that_wants_more_time_than_there_is_is_given_up_at_once(serve, wait):
    server = serve(status=429, headers={"Retry-After": wait})
    with pytest.raises(RealignError, match="429"):
        OpenAiLanguageModel(server.url, "m", timeout=60).bind(PROMPT, TAGS)
    assert len(server.asked) == 1


@pytest.mark.parametrize("wait", ["nan", "-5", "soon", "Fri, 99 Foo", "9" * 400])
def test_nonsense_about_when_to_ask_again_is_survived(serve, wait):
    server = serve(in_turn(Reply(status=429, headers={"Retry-After": wait}), Reply()))
    with suppress(RealignError):
        assert OpenAiLanguageModel(server.url, "m").bind(PROMPT, TAGS) == {}


@pytest.mark.parametrize("fault", ["silent", "dripping", "dripping head"])
def test_its_time_is_for_all_that_a_server_does(serve, fault):
    model = OpenAiLanguageModel(serve(fault=fault).url, "m", timeout=0.4, retries=5)
    with pytest.raises(RealignError, match=r"timed out after 0\.4 s"):
        model.bind(PROMPT, TAGS)


def test_what_went_wrong_before_the_time_was_up_is_told_too(serve):
    model = OpenAiLanguageModel(serve(in_turn(Reply(status=503), Reply(fault="silent"))).url, "m", timeout=2)
    with pytest.raises(RealignError, match=r"timed out after 2 s; .*503"):
        model.bind(PROMPT, TAGS)


def test_a_server_is_asked_nothing_more_when_nobody_waits(serve):
    gone = threading.Event()
    server = serve(lambda _: gone.set() or Reply(status=503))
    with pytest.raises(RealignError, match="nobody waits"):
        OpenAiLanguageModel(server.url, "m", retries=1000, timeout=60).bind(PROMPT, TAGS, stop=gone.is_set)
    time.sleep(0.1)  # what was on its way arrives
    asked = len(server.asked)
    time.sleep(0.2)
    assert len(server.asked) == asked


@pytest.mark.parametrize("reply", [Reply("{" * 10_000_000), Reply(fault="endless")], ids=["10 MB", "endless"])
def test_an_answer_without_end_is_none(serve, reply):
    assert OpenAiLanguageModel(serve(reply).url, "m").bind(PROMPT, TAGS) is None


def test_a_packed_answer_is_not_unpacked(serve):
    bomb = gzip.compress(b" " * 50_000_000)
    model = OpenAiLanguageModel(serve(body=bomb, headers={"Content-Encoding": "gzip"}).url, "m")
    with pytest.raises(RealignError, match="no chat completion"):
        model.bind(PROMPT, TAGS)


class Picky:
    """A server that does not take some options, and says so or not."""

    def __init__(self, *refused, says=True, status=400):
        self.refused, self.says, self.status = refused, says, status

    def __call__(self, asked):
        wrong = [name for name in self.refused if name in asked.body]
        output = {
            "error": {"message": f"Unsupported parameter: '{wrong[0]}'" if wrong and self.says else "Bad request"}
        }
        return (
            Reply(status=self.status, body=json.dumps(output).encode())
            if wrong
            else Reply('{"circle": "a red circle"}')
        )


@pytest.mark.parametrize("wait", ["0", "0.001"])
def test_a_server_in_a_hurry_is_not_asked_faster_than_others(serve, monkeypatch, wait):
    monkeypatch.setattr(chat, "BACK_OFF", 0.2)
    server = serve(in_turn(Reply(status=429, headers={"Retry-After": wait}), Reply()))
    OpenAiLanguageModel(server.url, "m").bind(PROMPT, TAGS)
    assert server.asked[1].at - server.asked[0].at >= 0.2


def test_a_question_ends_even_if_the_loop_hangs(serve, monkeypatch):
    monkeypatch.setattr(chat, "GRACE", 0.1)
    transport.import_httpx()
    transport.event_loop().call_soon_threadsafe(time.sleep, 1)
    with pytest.raises(RealignError, match=r"timed out after 0\.1 s"):
        OpenAiLanguageModel(serve().url, "m", timeout=0.1).bind(PROMPT, TAGS)


def test_all_servers_are_waited_for_in_one_loop(monkeypatch):
    monkeypatch.setattr(transport, "_start_loop", functools.cache(lambda: time.sleep(0.05) or object()))
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: transport.event_loop(), range(8)))) == 1


OPTIONS = ("temperature", "seed", "max_tokens", "response_format")


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("says", [True, False], ids=["says which", "says nothing"])
@pytest.mark.parametrize("refused", [*((name,) for name in OPTIONS), ("max_tokens", "temperature"), OPTIONS])
def test_options_that_a_server_refuses_are_left_out_from_then_on(serve, refused, says, status):
    server = serve(Picky(*refused, says=says, status=status))
    model = OpenAiLanguageModel(server.url, "m", retries=0)
    assert model.bind(PROMPT, TAGS) == {"circle": "a red circle"}
    asked = len(server.asked)
    kept = set(server.asked[-1].body) & set(OPTIONS)
    assert not kept & set(refused)
    if says:
        assert kept == set(OPTIONS) - set(refused)
    model.score(PROMPT, TAGS)
    assert len(server.asked) == asked + 1


@pytest.mark.parametrize(("refused", "left_out"), [("max_tokens", 1), ("seed", 2), ("response_format", 3)])
def test_of_options_that_are_not_named_few_are_left_out(serve, refused, left_out):
    server = serve(Picky(refused, says=False))
    OpenAiLanguageModel(server.url, "m").bind(PROMPT, TAGS)
    assert len(set(OPTIONS) - set(server.asked[-1].body)) == left_out
    assert {"temperature"} <= set(server.asked[-1].body)


@pytest.mark.parametrize(
    "told",
    [
        lambda body: {"error": {"message": "Not supported", "param": "seed", "request": body}},
        lambda body: {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "input": body}]},
        lambda body: {"message": {"detail": [{"loc": ["body", "seed"], "input": body}]}},
        lambda body: {"detail": "The parameter seed is unknown"},
    ],
    ids=["OpenAI", "FastAPI", "Mistral", "plain"],
)
def test_a_refusal_that_repeats_the_request_names_but_what_it_minds(serve, told):
    def picky(asked):
        return Reply(status=422, body=json.dumps(told(asked.body)).encode()) if "seed" in asked.body else Reply()

    server = serve(picky)
    OpenAiLanguageModel(server.url, "m").bind(PROMPT, TAGS)
    assert [set(OPTIONS) - set(asked.body) for asked in server.asked] == [set(), {"seed"}]


@pytest.mark.parametrize("body", [b"", b"seed", b'["seed"]', b'{"error": 3}', b'{"error":' * 50000])
def test_a_refusal_may_have_any_form(serve, body):
    server = serve(lambda asked: Reply(status=400, body=body) if "max_tokens" in asked.body else Reply())
    assert OpenAiLanguageModel(server.url, "m").bind(PROMPT, TAGS) == {}


def test_a_server_that_breaks_at_the_form_is_asked_without_it_in_the_end(serve):
    server = serve(lambda asked: Reply(status=500 if "response_format" in asked.body else 200))
    model = OpenAiLanguageModel(server.url, "m")
    assert model.bind(PROMPT, TAGS) == {}
    assert ["response_format" in asked.body for asked in server.asked] == [True, True, False]
    server.reply = Reply()
    model.bind(PROMPT, TAGS)
    assert "response_format" in server.asked[-1].body


def test_options_are_not_to_blame_for_a_question_that_is_refused_without_them_too(serve):
    server = serve(status=400)
    model = OpenAiLanguageModel(server.url, "m")
    with pytest.raises(RealignError, match="400"):
        model.bind(PROMPT, TAGS)
    server.reply = Reply()
    assert model.bind(PROMPT, TAGS) == {}
    assert set(OPTIONS) <= set(server.asked[-1].body)


def test_the_form_of_an_answer_is_asked_for(serve):
    server = serve()
    model = OpenAiLanguageModel(server.url, "m")
    model.bind(PROMPT, TAGS)
    model.score(PROMPT, TAGS)
    forms = [asked.body["response_format"]["json_schema"] for asked in server.asked]
    assert all(form["strict"] and form["schema"]["required"] == TAGS for form in forms)
    assert not any(form["schema"]["additionalProperties"] for form in forms)
    words, number = (form["schema"]["properties"]["circle"] for form in forms)
    assert words["items"]["enum"] == ["a red circle", "a blue square"] and words["maxItems"] == 2
    assert number["enum"] == [2, 0.5, 0]


@pytest.mark.parametrize("tags", [["a {tag}"], [f"tag {i}" for i in range(101)]], ids=["odd", "many"])
def test_a_form_that_servers_would_refuse_is_not_asked_for(serve, tags):
    server = serve()
    OpenAiLanguageModel(server.url, "m").score(PROMPT, tags)
    assert "response_format" not in server.asked[0].body


@pytest.mark.parametrize(
    "text",
    [
        '<think>perhaps {"circle": "a blue square"}</think>{"circle": "a red circle"}',
        'maybe {"circle": "a blue square"}\n</think>\n\n```json\n{"circle": "a red circle"}\n```',
        'As in {"book": "a red book"}: {"circle": "a red circle"}',
        '[THINK]{"circle": 3}[/THINK][{"circle": "a red circle"}]',
    ],
)
def test_what_a_model_thinks_is_not_what_it_answers(serve, text):
    assert OpenAiLanguageModel(serve(content=text).url, "m").bind(PROMPT, TAGS) == {"circle": "a red circle"}


@pytest.fixture
def cache(tmp_path):
    return AnswerCache(tmp_path / "answers", most=3)


def test_a_question_that_was_answered_is_not_asked_again(serve, cache):
    server = serve(in_turn(Reply('{"circle": "a red circle"}'), Reply('{"circle": 2, "square": 0}')))
    for _ in range(2):  # a new model, as after a restart
        model = OpenAiLanguageModel(server.url, "m", cache=cache)
        assert model.bind(PROMPT, TAGS) == {"circle": "a red circle"}
        assert model.score(PROMPT, TAGS) == {"circle": 2, "square": 0}
    assert len(server.asked) == 2


def test_another_form_of_the_same_question_is_asked(serve, cache, monkeypatch):
    server = serve(content='{"circle": []}')
    OpenAiLanguageModel(server.url, "m", cache=cache).bind(PROMPT, TAGS)
    monkeypatch.setattr(questions, "MOST_CHOICES", 0)
    OpenAiLanguageModel(server.url, "m", cache=cache).bind(PROMPT, TAGS)
    assert len(server.asked) == 2


def test_another_question_is_asked(serve, cache):
    server = serve()
    others = [("m", PROMPT, TAGS, 0), ("n", PROMPT, TAGS, 0), ("m", "a cat", TAGS, 0), ("m", PROMPT, ["cat"], 0)]
    for model, prompt, tags, seed in [*others, ("m", PROMPT, TAGS, 1)]:
        OpenAiLanguageModel(server.url, model, seed=seed, cache=cache).bind(prompt, tags)
    assert len(server.asked) == 5


@pytest.mark.parametrize(
    "reply",
    [
        Reply("Sorry."),
        Reply(status=500),
        Reply("{}"),
        Reply('{"error": "model overloaded, try again"}'),
        Reply('{"hexagon": "a green hexagon"}'),
        Reply('{"circle": "a blue square"}', finish="length"),
        Reply('<think>If I said {"circle": "a blue square"}', finish="length"),
    ],
    ids=lambda reply: str(reply.content)[:30],
)
def test_only_answers_are_kept(serve, cache, reply):
    server = serve(in_turn(reply, Reply('{"circle": "a red circle"}')))
    model = OpenAiLanguageModel(server.url, "m", retries=0, cache=cache)
    with suppress(RealignError):
        model.bind(PROMPT, TAGS)
    assert model.bind(PROMPT, TAGS) == {"circle": "a red circle"}


@pytest.mark.parametrize("content", ['{"circle": 2}', '{"circle": 2, "square": "a lot"}'])
def test_scores_are_kept_when_all_are_there(serve, cache, content):
    server = serve(content=content)
    for _ in range(2):
        OpenAiLanguageModel(server.url, "m", cache=cache).score(PROMPT, TAGS)
    assert len(server.asked) == 2


@pytest.mark.parametrize("text", [KEY, "".join(f"\\u{ord(letter):04x}" for letter in KEY)], ids=["plain", "escaped"])
def test_an_answer_that_repeats_the_key_is_none_and_not_kept(serve, cache, text):
    model = OpenAiLanguageModel(serve(content=f'{{"circle": "{text}"}}').url, "m", lambda: KEY, cache=cache)
    assert model.bind(PROMPT, TAGS) is None
    assert not cache.folder.exists()
    assert KEY not in repr(model) and KEY not in repr(vars(model))


class TestAnswerCache:
    def test_an_answer_comes_back(self, cache):
        cache.put("one", {"circle": "a red circle", "odd": ["\ud800", float("inf"), None]})
        assert cache.get("one") == {"circle": "a red circle", "odd": ["\ud800", float("inf"), None]}
        assert cache.get("two") is None

    @pytest.mark.parametrize(
        "data", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a":' * 100_000], ids=lambda data: str(data[:9])
    )
    def test_a_damaged_file_is_no_answer_and_replaced_by_the_next(self, cache, data):
        cache.put("one", {"a": 1})
        (file,) = cache.folder.iterdir()
        file.write_bytes(data)
        assert cache.get("one") is None
        cache.put("one", {"a": 2})
        assert cache.get("one") == {"a": 2}

    def test_of_too_many_those_go_that_were_used_longest_ago(self, cache):
        for i, name in enumerate(["one", "two", "three"]):
            cache.put(name, {name: i})
            os.utime(cache._file(name), (i, i))
        assert cache.get("one") == {"one": 0}  # used now
        (cache.folder / "mine.txt").write_text("not an answer")
        cache.put("four", {"four": 4})
        assert [cache.get(name) is not None for name in ("one", "two", "three", "four")] == [True, False, True, True]
        assert (cache.folder / "mine.txt").exists()

    def test_what_cannot_be_kept_is_not_and_raises_nothing(self, cache, tmp_path):
        cache.put("long", {"a": "b" * AnswerCache.MAX_BYTES})
        assert cache.get("long") is None
        (tmp_path / "file").write_text("")
        nowhere = AnswerCache(tmp_path / "file" / "answers")
        nowhere.put("one", {})
        assert nowhere.get("one") is None

    def test_many_may_write_at_once(self, cache):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: cache.put(str(i % 5), {"i": i}), range(200)))
        left = list(cache.folder.iterdir())
        assert len(left) <= 3  # several may drop an answer each where one would do, so that none is left
        assert all(json.loads(file.read_text(encoding="ascii"))["i"] >= 0 for file in left)


def test_a_key_that_cannot_be_sent_is_told_without_it(serve):
    with pytest.raises(RealignError, match="has characters that cannot be sent") as output:
        OpenAiLanguageModel(serve().url, "m", lambda: f"{KEY}\u2028{KEY}").bind(PROMPT, TAGS)
    assert KEY not in str(output.value)


def test_a_key_may_have_spaces_around_it(serve):
    server = serve()
    OpenAiLanguageModel(server.url, "m", lambda: f" {KEY}\n").bind(PROMPT, TAGS)
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"


def echo(asked):
    """A refusal that repeats the key."""
    error = {"error": {"message": f"Incorrect API key provided: {asked.headers['authorization']}"}}
    return Reply(status=401, body=json.dumps(error).encode())


def test_a_refusal_names_cause_and_mend_and_not_the_key(serve):
    with pytest.raises(RealignError, match=r"did not answer for 'm' .*check that it runs") as output:
        OpenAiLanguageModel(serve(echo).url, "m", lambda: KEY).bind(PROMPT, TAGS)
    assert KEY not in str(output.value)


@pytest.mark.parametrize("reply", [echo, Reply(body=b"no"), Reply(fault="reset"), Reply(fault="silent")])
@pytest.mark.parametrize("or_offline", [True, False])
def test_an_error_brings_no_key_along(serve, reply, or_offline):
    with pytest.raises(RealignError) as output:
        OpenAiLanguageModel(serve(reply).url, "m", lambda: KEY, 0.3, retries=0, or_offline=or_offline).bind(
            PROMPT, TAGS
        )
    error = output.value
    while error is not None:
        assert KEY not in repr(error) and not hasattr(error, "request")
        error = error.__cause__ or error.__context__


def test_a_key_of_few_letters_hides_nothing_of_what_is_told(serve):
    with pytest.raises(RealignError, match="status 404: no such model"):
        OpenAiLanguageModel(serve(status=404, body=b"no such model").url, "m", lambda: "o").bind(PROMPT, TAGS)


@pytest.mark.parametrize(
    "body", [b'{"error": {"message": "no such model"}}', b'{"detail": "no such model"}', b"no such model"]
)
def test_what_a_server_says_to_its_refusal_is_told(serve, body):
    with pytest.raises(RealignError, match=r"status 404: .*no such model"):
        OpenAiLanguageModel(serve(status=404, body=body).url, "m").bind(PROMPT, TAGS)


def test_a_server_that_is_not_there_is_told():
    with pytest.raises(RealignError, match=r"127\.0\.0\.1:9 did not answer"):
        OpenAiLanguageModel("http://127.0.0.1:9/v1", "m", timeout=1).bind(PROMPT, TAGS)


def test_a_server_that_is_not_there_may_leave_its_questions_to_the_offline_scorer():
    model = OpenAiLanguageModel("http://127.0.0.1:9/v1", "m", timeout=1, or_offline=True)
    with pytest.raises(NoAnswer, match=r"127\.0\.0\.1:9 did not answer"):
        model.bind(PROMPT, TAGS)
    found = bind_tags(PROMPT, TAGS, model)
    assert [(region.phrase, region.likelihood) for region in found] == [("a red circle", 2), ("a blue square", 2)]
    (note,) = found.notes
    assert note.startswith("The offline scorer answered instead of a language model. The LLM server 127.0.0.1:9 did")


@pytest.fixture
def proxy(monkeypatch):
    """Names one for all addresses."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    def name_it(address):
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, address)
            monkeypatch.setenv(name.lower(), address)

    return name_it


@pytest.mark.parametrize("address", ["nonsense://proxy", "socks5://127.0.0.1:9", "http://127.0.0.1:9"])
def test_a_proxy_that_is_none_is_told(proxy, address):
    proxy(address)
    with pytest.raises(RealignError, match=r"llm\.example\.com did not answer"):
        OpenAiLanguageModel("https://llm.example.com/v1", "m", timeout=1, retries=0).bind(PROMPT, TAGS)


@pytest.mark.parametrize("address", ["", "nonsense://proxy", "socks5://127.0.0.1:9"])
def test_no_proxy_reads_an_unencrypted_question(serve, proxy, address):
    between = serve()
    proxy(address or between.url.removesuffix("/v1"))
    server = serve(content='{"circle": "a red circle"}')
    model = OpenAiLanguageModel(server.url, "m", lambda: KEY, retries=0)
    assert model.bind(PROMPT, TAGS) == {"circle": "a red circle"}
    assert not between.asked and len(server.asked) == 1


def test_an_encrypted_question_goes_through_the_proxy(proxy):
    with socket.create_server(("127.0.0.1", 0)) as between:
        proxy(f"http://127.0.0.1:{between.getsockname()[1]}")
        between.settimeout(20)
        got = []

        def listen():
            with between.accept()[0] as connection:
                got.append(connection.recv(65536))

        listening = threading.Thread(target=listen)
        listening.start()
        with pytest.raises(RealignError, match="did not answer"):
            OpenAiLanguageModel("https://llm.example.com/v1", "m", lambda: KEY, retries=0).bind(PROMPT, TAGS)
        listening.join()
    assert got[0].startswith(b"CONNECT llm.example.com:443") and KEY.encode() not in got[0]


@pytest.mark.parametrize("host", ["a..b", "xn--", "-", "é" * 300])
def test_an_address_that_only_looks_like_one_is_told(host):
    with pytest.raises(RealignError):
        OpenAiLanguageModel(f"http://{host}/v1", "m", timeout=1).bind(PROMPT, TAGS)


@pytest.mark.parametrize(
    ("url", "model", "told"),
    [
        ("localhost:11434", "m", "is no server address"),
        ("ftp://host/v1", "m", "is no server address"),
        ("https://\u0430pi.openai.com/v1", "m", "letters beyond a to z"),
        ("http://[::1", "m", "is no server address"),
        ("http://host:99999/v1", "m", "is no server address"),
        ("http://host:port/v1", "m", "is no server address"),
        ("http://ho st/v1", "m", "is no server address"),
        ("http://host/v1\nx", "m", "is no server address"),
        ("http://host\\.example.com/v1", "m", "is no server address"),
        ("http://", "m", "is no server address"),
        ("http://me:secret@host/v1", "m", "holds a password"),
        ("http://host/v1?key=1", "m", "leave out all from there"),
        ("http://host/v1#", "m", "leave out all from there"),
        ("http://host/v1", " ", "No model is named"),
    ],
)
def test_an_address_or_model_that_is_none_is_told(url, model, told):
    with pytest.raises(RealignError, match=told) as error:
        OpenAiLanguageModel(url, model)
    assert "\n" not in str(error.value)


def test_a_pasted_address_may_have_spaces_around_it(serve):
    assert OpenAiLanguageModel(f" {serve().url}\n", "m").bind(PROMPT, TAGS) == {}


@pytest.mark.parametrize("end", ["/", "/chat/completions", "/chat/completions/"])
def test_a_pasted_address_may_be_that_of_the_questions(serve, end):
    server = serve()
    OpenAiLanguageModel(server.url + end, "m").bind(PROMPT, TAGS)
    assert server.asked[0].path == "/v1/chat/completions"
