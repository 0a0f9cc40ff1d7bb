"""The table of folders in docs/architecture.md is what the imports are."""

import ast
import re
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| `(\w+)/` \| .* \| (.*) \|$", re.MULTILINE)


def imported(file):
    """The top folders of the pack that a file imports from; all imports in it are relative."""
    parts = file.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folders = [*parts[: len(parts) - node.level], *(node.module or node.names[0].name).split(".")]
            yield folders[0]


def test_folders_import_what_the_table_says_and_nothing_else():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = {folder: set(re.findall(r"`(\w+)`", names)) for folder, names in ROW.findall(text)}
    imports = defaultdict(set)
    for folder in table:
        for file in (ROOT / folder).rglob("*.py"):
            imports[folder] |= set(imported(file)) - {folder}
    assert table == {folder: imports[folder] for folder in table}
    assert list(TopologicalSorter(table).static_order()), "raises where folders import each other in a circle"


def test_every_folder_with_code_is_in_the_table():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = {file.parent.name for file in ROOT.glob("*/__init__.py")} - {"tests"}
    assert folders == {folder for folder, _ in ROW.findall(text)}
