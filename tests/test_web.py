"""What people read beside the nodes: help pages and translations, held against the frozen names of the nodes."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NODES = json.loads((ROOT / "tests" / "golden" / "nodes.json").read_text(encoding="utf-8"))
LOCALES = sorted(file.name for file in (ROOT / "locales").iterdir() if file.is_dir())


def names(node: str, kind: str) -> list[str]:
    """The inputs or outputs of a node, in order."""
    return [one["name"] for one in NODES[node][kind]]


def node_texts(locale: str) -> dict:
    return json.loads((ROOT / "locales" / locale / "nodeDefs.json").read_text(encoding="utf-8"))


def sections(node: str) -> dict[str, str]:
    """A help page's text below each of its headings."""
    page = (ROOT / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8")
    _, *parts = re.split(r"^## (.+)$", page, flags=re.M)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def rows(table: str) -> list[list[str]]:
    """The cells of each row of a page's table, without its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def messages(texts: object) -> list[str]:
    """All texts in a locale file."""
    if isinstance(texts, dict):
        return [message for value in texts.values() for message in messages(value)]
    return [texts]


def test_there_are_the_four_languages():
    assert {"en", "zh", "ja", "ko"} <= set(LOCALES)


def test_every_help_page_is_a_nodes():
    assert {page.stem for page in (ROOT / "web" / "docs").glob("*.md")} == set(NODES)


@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_a_help_page_tells_each_input_and_output_in_the_nodes_order(kind):
    for node in NODES:
        told = rows(sections(node)[kind.capitalize()])
        required = [f"`{name}`" for name in names(node, kind)]
        assert [cells[0] for cells in told] == required, node
        assert all(all(cells[i] for i in (0, 1, -1)) for cells in told), node


@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_a_help_page_tells_each_sockets_types(kind):
    for node in NODES:
        for one, cells in zip(NODES[node][kind], rows(sections(node)[kind.capitalize()]), strict=True):
            wanted = set(one["type"].split(",")) | ({"list"} if one.get("list") else set())
            wanted |= {"optional"} if one.get("optional") else set()
            assert set(re.findall(r"[\w-]+", cells[1])) - {"or", "a"} == wanted, (node, one["name"], cells[1])


def test_a_help_pages_tables_are_whole():
    for node in NODES:
        for heading, text in sections(node).items():
            widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
            assert len(widths) <= 1, (node, heading)


@pytest.mark.parametrize("locale", LOCALES)
def test_a_locale_names_every_node_input_and_output_and_no_others(locale):
    texts = node_texts(locale)
    assert set(texts) == set(NODES)
    for node, own in texts.items():
        assert own["display_name"].strip() and own["description"].strip()
        assert list(own.get("inputs", {})) == names(node, "inputs"), node
        assert list(own["outputs"]) == [str(i) for i in range(len(names(node, "outputs")))], node
        parts = [*own.get("inputs", {}).values(), *own["outputs"].values()]
        assert all(part["name"].strip() and set(part) <= {"name", "tooltip"} for part in parts), node
        assert set(own) <= {"display_name", "description", "inputs", "outputs"}


@pytest.mark.parametrize("locale", [locale for locale in LOCALES if locale != "en"])
def test_a_locale_has_a_tooltip_where_english_has_one(locale):
    texts = node_texts(locale)
    for node, english in node_texts("en").items():
        for kind in ("inputs", "outputs"):
            for name, part in english.get(kind, {}).items():
                assert ("tooltip" in part) <= ("tooltip" in texts[node][kind][name]), (node, name)


@pytest.mark.parametrize("file", sorted((ROOT / "locales").rglob("*.json")), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_a_locale_file_holds_only_texts_that_the_web_page_shows_as_they_stand(file):
    """vue-i18n reads braces as placeholders, @ as a link and | as a plural, and fails on what is none of these."""
    for message in messages(json.loads(file.read_bytes().decode("utf-8"))):
        assert isinstance(message, str) and message.strip()
        assert not set(message) & set("{}@|"), message


def test_every_language_names_every_setting():
    script = (ROOT / "web" / "settings.js").read_text(encoding="utf-8")
    ids = {id.replace(".", "_") for id in re.findall(r'id: "([\w.]+)"', script)}
    for locale in LOCALES:
        texts = json.loads((ROOT / "locales" / locale / "settings.json").read_text(encoding="utf-8"))
        assert set(texts) == ids
        assert all(set(text) == {"name", "tooltip"} for text in texts.values())
