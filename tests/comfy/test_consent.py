"""Which servers a workflow, which comes from anyone, may ask, and whose key they get where ComfyUI has many users."""

import json
import time

import pytest
from realigndiff.tests.comfy.client import Answer, Client, FakeLlm, chat

PROMPT = "a red circle"
SETTING, HOST, KEY = (f"RealignDiff.LLM.{name}" for name in ("AllowedHosts", "Host", "ApiKey"))


@pytest.fixture
def consent(comfy, monkeypatch):
    from realigndiff.nodes.host import consent

    for name in ("REALIGN_LLM_HOST", "REALIGN_LLM_ALLOWED_HOSTS"):
        monkeypatch.delenv(name, raising=False)
    return consent


@pytest.fixture(scope="module")
def elsewhere():
    """A server that no key is for."""
    fake = FakeLlm()
    fake.reply = lambda _: Answer(chat(json.dumps({"circle": 2})))
    yield fake
    fake.close()


@pytest.fixture
def address(elsewhere):
    """Of `elsewhere`: it leads to this machine and is no loopback address."""
    elsewhere.forget()
    return f"http://0.0.0.0:{elsewhere.host.split(':')[1]}"


def asking(address: str, tags: str, base: str = "/v1") -> dict:
    return {
        "1": {
            "class_type": "RealignLLM",
            "inputs": {
                "provider": "OpenAI-compatible server",
                "base_url": f"{address}{base}",
                "model": "m",
                "timeout": 20,
                "retries": 0,
            },
        },
        "2": {"class_type": "RealignLikelihoods", "inputs": {"prompt": PROMPT, "tags": tags, "llm": ["1", 0]}},
    }


@pytest.mark.parametrize(
    "base_url",
    ["http://127.0.0.1:11434/v1", "http://localhost/v1", "http://[::1]:8000/v1", "http://[::ffff:127.0.0.9]/v1"],
)
def test_a_server_of_this_machine_may_be_asked(consent, base_url):
    assert consent.allowed(base_url, {})


@pytest.mark.parametrize(
    "base_url",
    [
        "https://api.openai.com/v1",
        "http://192.168.1.7:11434/v1",
        "http://0.0.0.0:11434/v1",
        "http://[::]/v1",
        "https://localhost.evil.org/v1",
        "https://127.0.0.1.evil.org/v1",
        "https://evil.org/127.0.0.1",
        "http://2130706433/v1",
        "http://[::1/v1",
    ],
)
def test_no_other_may_unless_it_is_named(consent, base_url):
    assert not consent.allowed(base_url, {})
    assert not consent.allowed(base_url, {SETTING: "https://llm.example.com", HOST: "llm.example.org"})


@pytest.mark.parametrize("named", ["setting", "host of the key", "environment", "host of the key in the environment"])
def test_a_host_that_the_owner_named_may_be_asked(consent, monkeypatch, named):
    host, settings = "https://llm.example.com", {}
    if "environment" in named:
        monkeypatch.setenv("REALIGN_LLM_HOST" if "key" in named else "REALIGN_LLM_ALLOWED_HOSTS", host)
    else:
        settings[HOST if "key" in named else SETTING] = host
    assert consent.allowed(f"{host}/v1", settings)
    assert not consent.allowed("https://llm.example.com:8443/v1", settings)
    assert not consent.allowed("http://llm.example.com/v1", settings)


def test_several_hosts_may_be_named(consent):
    settings = {SETTING: "https://a.example, http://b.example:8000;c.example\nhttps://d.example"}
    urls = ("https://a.example/v1", "http://b.example:8000", "https://c.example/v1", "https://d.example")
    assert all(consent.allowed(url, settings) for url in urls)


def test_a_strangers_server_is_asked_once_its_user_allows_it(client, elsewhere, address):
    run = client.run(asking(address, "circle"))
    assert run.status == "error"
    assert f"{address} was not asked" in run.error["exception_message"]
    assert "Allowed hosts" in run.error["exception_message"]
    assert elsewhere.asked == []

    client.post(f"/settings/{SETTING}", address)
    try:
        assert client.run(asking(address, "circle")).status == "success"
        assert elsewhere.asked
    finally:
        client.post(f"/settings/{SETTING}", "")


def test_the_page_that_queued_a_prompt_is_told_which_host_to_ask_about(client, address):
    events = []
    run = client.start(asking(address, "circle, page"))
    while not any(kind == "execution_error" for kind, _ in events):
        events.append(client.next_event(time.monotonic() + 60))
    (sent,) = [data for kind, data in events if kind == "realigndiff.consent"]
    assert sent == {"host": address, "setting": SETTING}
    run.follow(lambda *_: True)


@pytest.fixture(scope="module")
def shared(serve):
    """A ComfyUI of several users, with what one left behind from the time when it had one."""
    running = serve(arguments=["--multi-user"])
    file = running.base / "user" / "default" / "comfy.settings.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({KEY: "sk-left-over", HOST: "http://0.0.0.0", SETTING: "http://0.0.0.0"}))
    return running


def user(shared, name: str, settings: dict[str, str]) -> Client:
    """A new user, who saves their settings."""
    visitor = Client(shared.url)
    connected = Client(shared.url, visitor.post("/users", {"username": name}))
    visitor.close()
    connected.post("/settings", settings)
    return connected


def test_each_user_has_a_key_and_hosts_of_their_own(shared, elsewhere, address):
    ann = user(shared, "ann", {KEY: "sk-of-ann-4711", HOST: address})
    ben = user(shared, "ben", {KEY: "sk-of-ben-0815", HOST: address})
    cat = user(shared, "cat", {SETTING: address})
    dan = user(shared, "dan", {})
    for number, (client, key) in enumerate([(ann, "sk-of-ann-4711"), (ben, "sk-of-ben-0815"), (cat, None)]):
        elsewhere.forget()
        assert client.run(asking(address, f"circle, whale{number}")).status == "success"
        assert elsewhere.keys == {key and f"Bearer {key}"}

    elsewhere.forget()
    refused = dan.run(asking(address, "circle, whale"))
    nobody = Client(shared.url).run(asking(address, "circle, whale"))
    assert (refused.status, nobody.status) == ("error", "error")
    assert "Allowed hosts" in refused.error["exception_message"]
    assert "does not say whose prompt this is" in nobody.error["exception_message"]
    assert elsewhere.asked == []

    at = address.replace("0.0.0.0", "127.0.0.1")
    assert Client(shared.url).run(asking(at, "circle, seal")).status == "success"
    assert elsewhere.keys == {None}


def test_a_prompt_with_anothers_id_gets_no_key_of_theirs(shared, elsewhere, address):
    ann = user(shared, "ann2", {KEY: "sk-of-ann-4711", HOST: address})
    eve = user(shared, "eve", {SETTING: address})
    known = ann.run(asking(address, "circle, cow")).id
    elsewhere.forget()
    body = {"prompt": asking(address, "circle, calf"), "client_id": eve.id, "prompt_id": known}
    eve.post("/prompt", body)
    deadline = time.monotonic() + 60
    while eve.next_event(deadline)[0] not in ("execution_success", "execution_error"):
        pass
    assert elsewhere.keys == {None}
