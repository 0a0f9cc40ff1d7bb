"""The client against a server that others wrote, where there is one:

transformers serve Qwen/Qwen3-0.6B --port 8000     # or Ollama, llama.cpp, vLLM, LM Studio
REALIGN_TEST_LLM="http://127.0.0.1:8000/v1 Qwen/Qwen3-0.6B" python -m pytest tests/test_other_llm_server.py
"""

import os

import pytest
from realigndiff.core.regions import LIKELIHOODS
from realigndiff.language.binding import bind_tags
from realigndiff.language.server.client import OpenAiLanguageModel

OTHER = os.environ.get("REALIGN_TEST_LLM", "")


@pytest.mark.skipif(not OTHER, reason='needs an LLM server: set REALIGN_TEST_LLM="<address> <model>"')
def test_another_server_answers_both_questions():
    found = bind_tags(
        "a red circle and a blue square", ["circle", "square", "sky"], OpenAiLanguageModel(*OTHER.split())
    )
    assert [region.phrase for region in found] == ["a red circle", "a blue square", ""]
    assert {region.likelihood for region in found} <= set(LIKELIHOODS)
    assert not any("no JSON object" in note for note in found.notes)
