"""Which server gets a key: the one that its owner named, and none of them unencrypted over the internet."""

import json

import pytest

KEY = "sk-own"


@pytest.fixture
def api_keys(comfy, monkeypatch, tmp_path):
    import folder_paths
    from realigndiff.nodes.host import api_keys

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    for name in ("REALIGN_LLM_HOST", "REALIGN_LLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return api_keys


@pytest.fixture(params=["environment", "settings"])
def key_for(request, api_keys, monkeypatch, tmp_path):
    """What an address gets when the key is for `owner`."""

    def ask(owner, base_url):
        if request.param == "environment":
            monkeypatch.setenv("REALIGN_LLM_HOST", owner)
            monkeypatch.setenv("REALIGN_LLM_API_KEY", KEY)
        else:
            (tmp_path / "default").mkdir()
            settings = {api_keys.KEY_SETTING: KEY, api_keys.HOST_SETTING: owner}
            (tmp_path / "default" / "comfy.settings.json").write_text(json.dumps(settings), encoding="utf-8")
        return api_keys.api_key_for(base_url)

    return ask


@pytest.mark.parametrize(
    ("owner", "base_url"),
    [
        ("llm.example.com", "https://llm.example.com/v1"),
        (" LLM.example.com ", "https://llm.Example.com:443/v1"),
        ("llm.example.com:443", "https://llm.example.com/v1"),
        ("https://llm.example.com", "https://llm.example.com/v1"),
        ("https://llm.example.com:443/v1/", "https://llm.example.com/v1"),
        ("HTTPS://llm.example.com:8443", "https://llm.example.com:8443/v1"),
        ("http://llm.example.com", "http://llm.example.com/v1"),
        ("http://ollama:11434", "http://ollama:11434/v1"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("127.0.0.1:8000", "https://127.0.0.1:8000/v1"),
        ("localhost:8000", "http://localhost:8000/v1"),
        ("[::1]:8000", "http://[::1]:8000/v1"),
        ("192.168.1.7", "http://192.168.1.7/v1"),
        ("10.0.0.2:80", " http://10.0.0.2/v1\n"),
    ],
)
def test_the_owners_server_gets_it(key_for, owner, base_url):
    assert key_for(owner, base_url) == KEY


@pytest.mark.parametrize(
    ("owner", "base_url"),
    [
        ("llm.example.com", "http://llm.example.com/v1"),
        ("llm.example.com:80", "http://llm.example.com/v1"),
        ("llm.example.com:8000", "http://llm.example.com:8000/v1"),
        ("8.8.8.8", "http://8.8.8.8/v1"),
        ("[::ffff:8.8.8.8]", "http://[::ffff:8.8.8.8]/v1"),
        ("https://llm.example.com", "http://llm.example.com/v1"),
        ("https://llm.example.com", "http://llm.example.com:443/v1"),
        ("http://llm.example.com", "https://llm.example.com/v1"),
        ("https://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("llm.example.com", "https://llm.example.com:8443/v1"),
        ("llm.example.com:8443", "https://llm.example.com/v1"),
        ("127.0.0.1:8000", "http://127.0.0.1:8001/v1"),
        ("llm.example.com", "https://llm.example.com.evil.org/v1"),
        ("llm.example.com", "https://evil.org/llm.example.com"),
        ("llm.example.com", "https://evil.org:443#llm.example.com"),
        ("llm.example.com", "https://llm.example.com@evil.org/v1"),
        ("llm.example.com", "ftp://llm.example.com/v1"),
        ("ftp://llm.example.com", "ftp://llm.example.com/v1"),
        ("llm.example.com:port", "https://llm.example.com/v1"),
        ("llm.example.com", "https://llm.example.com:port/v1"),
        ("[::1", "http://[::1/v1"),
        ("llm.example.com", "https://llm.example.com:0/v1"),
        ("llm.example.com:0", "https://llm.example.com/v1"),
        (" ", "https:///v1"),
        ("https://", "https:///v1"),
    ],
)
def test_no_other_gets_it_and_none_unencrypted(key_for, owner, base_url):
    assert key_for(owner, base_url) is None


def test_openais_own_is_for_openai_alone(api_keys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert api_keys.api_key_for("https://api.openai.com:443/v1") == KEY
    for other in ("http://api.openai.com/v1", "http://api.openai.com:443/v1", "https://api.openai.com:8443/v1"):
        assert api_keys.api_key_for(other) is None
