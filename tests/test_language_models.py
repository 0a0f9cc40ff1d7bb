"""Answers to the LLM step that come as text, and from a server over real HTTP."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from realigndiff.core.errors import RealignError
from realigndiff.perception.answers import GivenAnswers, read_json
from realigndiff.perception.likelihood import likelihoods
from realigndiff.perception.openai_client import OpenAiLanguageModel

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
    found = likelihoods(PROMPT, TAGS, GivenAnswers(text))
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
    found = likelihoods(PROMPT, TAGS, GivenAnswers(text))
    assert [region.phrase for region in found if region.phrase] == ["a red circle", "a blue square"]


def test_the_first_object_of_a_text_is_read():
    assert read_json('use {braces} like {"a": 1} or {"b": 2}') == {"a": 1}
    assert read_json('as asked [1]: [{"a": 1}]') == {"a": 1}
    assert read_json("none") is None


class FakeServer(ThreadingHTTPServer):
    """Answers every chat with `content`; or with `body` as it is, and `kind`, its type; or with `status` and an error
    that echoes the key."""

    def __init__(self, content="{}", status=200, body=None, kind="application/json"):
        self.content, self.status, self.body, self.kind, self.requests = content, status, body, kind, []
        self.heads = []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        self.server.heads.append(dict(self.headers))
        self.send_response(self.server.status)
        self.send_header("Content-Type", self.server.kind)
        data = self._answer().encode()
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(self):
        if self.server.status != 200:
            return json.dumps({"error": {"message": f"Incorrect API key provided: {self.headers['Authorization']}"}})
        message = {"role": "assistant", "content": self.server.content}
        said = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
        return json.dumps(said) if self.server.body is None else self.server.body

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(**options):
        servers.append(FakeServer(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_server_is_asked_both_questions_and_believed(serve):
    server = serve(content='{"circle": "a red circle", "square": "a blue square"}')
    model = OpenAiLanguageModel(server.url, "some-model", lambda: KEY)
    assert model.bind(PROMPT, TAGS) == {"circle": "a red circle", "square": "a blue square"}
    model.score(PROMPT, TAGS)
    (path, authorization, first), (_, _, second) = server.requests
    assert (path, authorization) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert (first["model"], first["temperature"]) == ("some-model", 0)
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
    model = OpenAiLanguageModel(serve(body=body, kind=kind).url, "m", lambda: KEY)
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
    ((_, authorization, body),) = server.requests
    assert authorization == (f"Bearer {KEY}" if key else None)
    assert "planted" not in json.dumps([server.heads, body])


@pytest.mark.parametrize("status", [307, 408, 429, 500])
def test_a_server_is_asked_once(serve, status):
    server = serve(status=status)
    with pytest.raises(RealignError, match="did not answer"):
        OpenAiLanguageModel(server.url, "m").bind(PROMPT, TAGS)
    assert len(server.requests) == 1


def test_a_key_that_cannot_be_sent_is_told_without_it(serve):
    with pytest.raises(RealignError, match="did not answer") as told:
        OpenAiLanguageModel(serve().url, "m", lambda: f"{KEY}\u2028\n").bind(PROMPT, TAGS)
    assert KEY not in str(told.value)


def test_a_refusal_names_cause_and_mend_and_not_the_key(serve):
    with pytest.raises(RealignError, match=r"did not answer for 'm' .*check that it runs") as told:
        OpenAiLanguageModel(serve(status=401).url, "m", lambda: KEY).bind(PROMPT, TAGS)
    assert KEY not in str(told.value)
    assert told.value.__cause__ is None


def test_a_server_that_is_not_there_is_told():
    with pytest.raises(RealignError, match=r"127\.0\.0\.1:9 did not answer"):
        OpenAiLanguageModel("http://127.0.0.1:9/v1", "m", timeout=1).bind(PROMPT, TAGS)


@pytest.mark.parametrize(
    ("url", "model", "told"),
    [
        ("localhost:11434", "m", "is no server address"),
        ("ftp://host/v1", "m", "is no server address"),
        ("http://[::1", "m", "is no server address"),
        ("http://host:99999/v1", "m", "is no server address"),
        ("http://host:port/v1", "m", "is no server address"),
        ("http://ho st/v1", "m", "is no server address"),
        ("http://host/v1\nx", "m", "is no server address"),
        ("http://host\\.example.com/v1", "m", "is no server address"),
        ("http://", "m", "is no server address"),
        ("http://me:secret@host/v1", "m", "holds a password"),
        ("http://host/v1", " ", "No model is named"),
    ],
)
def test_an_address_or_model_that_is_none_is_told(url, model, told):
    with pytest.raises(RealignError, match=told) as error:
        OpenAiLanguageModel(url, model)
    assert "\n" not in str(error.value)


def test_a_pasted_address_may_have_spaces_around_it(serve):
    assert OpenAiLanguageModel(f" {serve().url}\n", "m").bind(PROMPT, TAGS) == {}
