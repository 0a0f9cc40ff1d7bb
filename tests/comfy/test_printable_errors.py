"""What a node raises can be printed: ComfyUI's queue ends for good at a character that its console cannot write."""

import io
import json
import sys
import traceback

import pytest
from realigndiff.tests.comfy.client import Answer

HALF = "\ud83d"
"""What Python makes of JSON like `"\\ud83d"`; no encoding has it."""


@pytest.fixture
def failing(comfy):
    """A node that raises what it is given."""
    from realigndiff.nodes.host.printable_errors import with_printable_errors

    class Failing:
        @classmethod
        def execute(cls, error, cause=None):
            raise error from cause

    return with_printable_errors(Failing)


def raised(node, *arguments) -> BaseException:
    with pytest.raises(Exception) as caught:
        node.execute(*arguments)
    return caught.value


@pytest.mark.parametrize("kind", [KeyError, ValueError, RuntimeError, OSError])
def test_an_error_of_any_kind_and_its_cause_can_be_printed(failing, kind):
    from realigndiff.core.errors import RealignError

    for error in (
        raised(failing, kind(f"x {HALF}")),
        raised(failing, RealignError("A sentence."), kind(HALF)),
        raised(failing, RealignError(f"A {HALF}."), kind(HALF)),
    ):
        "".join(traceback.format_exception(error)).encode("utf-8")
        assert isinstance(error, (RealignError, kind))


def test_an_error_that_can_be_printed_stays_as_it_is(failing):
    error, cause = KeyError("a"), ValueError("b")
    assert raised(failing, error, cause) is error
    assert error.__cause__ is cause


def test_a_console_of_few_letters_writes_all_others_escaped(comfy, monkeypatch):
    from realigndiff.nodes.host.printable_errors import escape_unprintable_output

    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors="strict"))
    escape_unprintable_output()
    print(f"1 → 2 圆 {HALF}", flush=True)
    assert written.getvalue().strip() == b"1 \\u2192 2 \\u5706 \\ud83d"


@pytest.fixture
def asking(llm):
    def graph(**inputs):
        server = {"provider": "OpenAI-compatible server", "base_url": f"http://{llm.host}/v1", "model": "m"}
        return {
            "1": {"class_type": "RealignLLM", "inputs": {**server, "timeout": 20, "retries": 0, **inputs}},
            "2": {
                "class_type": "RealignLikelihoods",
                "inputs": {"prompt": "a red circle", "tags": "circle, sheep", "llm": ["1", 0]},
            },
        }

    return graph


FINE = {"1": {"class_type": "RealignLikelihoods", "inputs": {"prompt": "a red circle"}}}


def test_the_queue_goes_on_after_an_answer_that_cannot_be_printed(client, llm, asking):
    for body in ({"error": HALF}, {"error": {"message": f"{HALF}\x1b[2J"}}, {"detail": HALF * 5000}):
        llm.reply = lambda _, body=body: Answer(json.dumps(body))
        assert client.run(asking()).status == "error"
        assert client.run(FINE).status == "success"


def test_the_queue_goes_on_after_a_workflow_that_cannot_be_printed(client, asking):
    boxes = json.dumps([{"label": HALF, "box": [0, 0, 1, 1]}, {"label": "circle", "box": [0, 0, HALF, 1]}])
    for graph in (
        asking(base_url=f"http://{HALF}/v1"),
        asking(model=HALF),
        {"1": {"class_type": "RealignLikelihoods", "inputs": {"prompt": f"a red {HALF} circle", "tags": HALF}}},
        {
            "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
            "2": {
                "class_type": "RealignPreviewRegions",
                "inputs": {"image": ["1", 0], "regions": boxes, "text": HALF},
            },
        },
    ):
        client.run(graph)
        assert client.run(FINE).status == "success"
