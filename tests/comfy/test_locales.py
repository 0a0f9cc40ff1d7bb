"""The English texts in locales/ are the nodes' own, and ComfyUI serves all languages and help pages."""

import json
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCALES = sorted(file.name for file in (ROOT / "locales").iterdir() if file.is_dir())
open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def get(server, path: str) -> str:
    with open_url(server.url + path, timeout=60) as answer:
        return answer.read().decode("utf-8")


def written(locale: str) -> dict:
    return json.loads((ROOT / "locales" / locale / "nodeDefs.json").read_text(encoding="utf-8"))


def showable(text: str | None) -> str | None:
    """What a locale holds of a node's text: nothing where the web page could not show it as it stands."""
    return text if text and not set(text) & set("{}@|") else None


@pytest.fixture(scope="module")
def nodes(server) -> dict:
    """The pack's part of /object_info."""
    return {name: info for name, info in json.loads(get(server, "/object_info")).items() if name.startswith("Realign")}


def test_english_titles_and_descriptions_are_the_nodes(nodes):
    for name, own in written("en").items():
        assert (own["display_name"], own["description"]) == (nodes[name]["display_name"], nodes[name]["description"])


def test_english_tooltips_are_the_nodes(nodes):
    for name, own in written("en").items():
        inputs = {**nodes[name]["input"].get("required", {}), **nodes[name]["input"].get("optional", {})}
        for id, text in own.get("inputs", {}).items():
            assert text.get("tooltip") == showable(inputs[id][1].get("tooltip")), (name, id)
        for i, tooltip in enumerate(nodes[name]["output_tooltips"]):
            assert own["outputs"][str(i)].get("tooltip") == showable(tooltip), (name, i)


@pytest.mark.parametrize("locale", LOCALES)
def test_the_server_gives_out_a_language(server, locale):
    served = json.loads(get(server, "/i18n"))[locale]["nodeDefs"]
    assert written(locale).items() <= served.items()


def test_the_server_gives_out_each_nodes_help(server, nodes):
    for name, info in nodes.items():
        page = get(server, f"/extensions/{info['python_module'].removeprefix('custom_nodes.')}/docs/{name}.md")
        assert page == (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
