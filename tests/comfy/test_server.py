"""The nodes in a running ComfyUI, as a browser would use them."""

import json
from pathlib import Path

import pytest

WORKFLOWS = Path(__file__).parents[1] / "workflows"


def workflow(name):
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted(file.stem for file in WORKFLOWS.glob("*.json")))
def test_an_example_workflow_runs(client, name):
    assert client.run(workflow(name)).status == "success"
