"""What people read beside the nodes follows from the nodes' schemas: help pages, translations, and the frozen names."""

import json
import re
from pathlib import Path

import pytest
from realigndiff.attention.comfy.families import list_families
from realigndiff.scripts import make_docs
from realigndiff.scripts.node_schemas import PACK, nodes_without_comfyui, object_info
from realigndiff.tests.comfy.schemas import GOLDEN, schemas

ROOT = Path(__file__).parents[1]
LOCALES = sorted(file.name for file in (ROOT / "locales").iterdir() if file.is_dir())
MADE_UP = f"""
from comfy_api.latest import io
from {PACK}.nodes.host.sockets import Regions


class MadeUp(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealignMadeUp",
            display_name="Made Up",
            category="RealignDiff",
            description="Does nothing.",
            inputs=[io.Int.Input("count", default=1, min=0, max=9, tooltip="How often.")],
            outputs=[Regions.Output(display_name="regions", tooltip="None.")],
        )

    @classmethod
    def execute(cls, count):
        return io.NodeOutput(())


NODES = [MadeUp]
"""


@pytest.fixture(scope="module")
def nodes() -> dict:
    return object_info()


@pytest.fixture(scope="module")
def generated() -> dict[Path, str]:
    return make_docs.generated()


def sections(node: str) -> dict[str, str]:
    """A help page's text below each of its headings."""
    page = (ROOT / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8")
    _, *parts = re.split(r"^## (.+)$", page, flags=re.M)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def messages(texts: object) -> list[str]:
    """All texts in a locale file."""
    if isinstance(texts, dict):
        return [message for value in texts.values() for message in messages(value)]
    return [texts]


def test_the_schemas_are_those_that_workflows_were_saved_with(nodes):
    assert schemas(nodes) == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_generated_texts_are_up_to_date(generated):
    stale = [str(file) for file, text in generated.items() if file.read_text(encoding="utf-8") != text]
    assert not stale, "run `make docs`"


def test_every_locale_and_help_page_is_generated(nodes, generated):
    pages = set((ROOT / "web" / "docs").glob("*.md"))
    assert {page.stem for page in pages} == set(nodes)
    assert {"en", "zh", "ja", "ko"} <= set(LOCALES)
    assert pages | set((ROOT / "locales").rglob("*.json")) <= set(generated)
    script = (ROOT / "web" / "settings.js").read_text(encoding="utf-8")
    settings = json.loads((ROOT / "locales" / "en" / "settings.json").read_text(encoding="utf-8"))
    assert len(settings) == script.count("tooltip:") == 3


def test_the_readme_lists_every_model_family():
    words = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert list_families("and") in words


def test_every_node_input_and_output_has_a_text(nodes):
    for name, info in nodes.items():
        assert info["description"].strip() and all(info["output_tooltips"]), name
        assert all(options["tooltip"].strip() for kind in info["input"].values() for _, options in kind.values()), name


def test_a_node_is_one_file(tmp_path):
    (tmp_path / "made_up.py").write_text(MADE_UP, encoding="utf-8")
    with nodes_without_comfyui() as package:
        package.__path__.append(str(tmp_path))
        assert "RealignMadeUp" in [node.define_schema().node_id for node in package.find_nodes()]


def test_a_new_node_gets_its_texts(monkeypatch, nodes):
    new = {**nodes["RealignRamTags"], "display_name": "Made Up", "description": "Does nothing."}
    monkeypatch.setattr(make_docs, "object_info", lambda: {**nodes, "RealignMadeUp": new})
    files = make_docs.generated()
    page = files[ROOT / "web" / "docs" / "RealignMadeUp.md"]
    assert page.startswith(
        "Does nothing.\n\n## Inputs\n\n| name | type | default | what it does |\n|---|---|---|---|\n"
    )
    assert "\n\n## Outputs\n\n| name | type | what it is |\n" in page
    for locale in LOCALES:
        texts = json.loads(files[ROOT / "locales" / locale / "nodeDefs.json"])
        assert texts["RealignMadeUp"]["description"] == "Does nothing."


def test_a_help_pages_tables_are_whole(nodes):
    for node in nodes:
        for heading, text in sections(node).items():
            widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
            assert len(widths) <= 1, (node, heading)


@pytest.mark.parametrize("file", sorted((ROOT / "locales").rglob("*.json")), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_a_locale_file_holds_only_texts_that_the_web_page_shows_as_they_stand(file):
    """vue-i18n reads braces as placeholders, @ as a link and | as a plural, and fails on what is none of these."""
    for message in messages(json.loads(file.read_bytes().decode("utf-8"))):
        assert isinstance(message, str) and message.strip()
        assert not set(message) & set("{}@|"), message
