"""The schemas that texts are generated from are those of a real ComfyUI, which serves all languages and help pages."""

import json
import urllib.request
from pathlib import Path

import pytest
from realigndiff.scripts.node_schemas import object_info

ROOT = Path(__file__).parents[2]
LOCALES = sorted(file.name for file in (ROOT / "locales").iterdir() if file.is_dir())
PARTS = ("display_name", "category", "description", "output", "output_name", "output_is_list", "output_tooltips")
OPTIONS = ("default", "min", "max", "step", "round", "tooltip", "forceInput", "control_after_generate")
open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def get(server, path: str) -> str:
    with open_url(server.url + path, timeout=60) as answer:
        return answer.read().decode("utf-8")


def written(locale: str) -> dict:
    return json.loads((ROOT / "locales" / locale / "nodeDefs.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def nodes(server) -> dict:
    """The pack's part of /object_info."""
    return {name: info for name, info in json.loads(get(server, "/object_info")).items() if name.startswith("Realign")}


def test_the_schemas_that_are_read_without_comfyui_are_comfyuis(nodes):
    """But for lists of choices, which depend on the models and samplers that are there."""
    assert comparable(nodes) == comparable(object_info())


def comparable(nodes: dict) -> dict:
    out = {}
    for name, info in nodes.items():
        inputs = {
            kind: {id: [type_, {key: options.get(key) for key in OPTIONS}] for id, (type_, options) in group.items()}
            for kind, group in info["input"].items()
            if group and kind in ("required", "optional")
        }
        out[name] = {"input": inputs, **{key: info[key] for key in PARTS}}
    return out


@pytest.mark.parametrize("locale", LOCALES)
def test_the_server_gives_out_a_language(server, locale):
    served = json.loads(get(server, "/i18n"))[locale]["nodeDefs"]
    assert written(locale).items() <= served.items()


def test_the_server_gives_out_each_nodes_help(server, nodes):
    for name, info in nodes.items():
        page = get(server, f"/extensions/{info['python_module'].removeprefix('custom_nodes.')}/docs/{name}.md")
        assert page == (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
