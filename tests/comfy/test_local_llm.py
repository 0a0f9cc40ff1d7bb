"""A language model of a folder under models/LLM, in ComfyUI's care."""

import pytest
from realigndiff.tests.tiny_llm import save_language_model

PROMPT = "a red circle and a blue square"


@pytest.fixture
def folders(comfy, monkeypatch, tmp_path):
    """A ComfyUI whose models/LLM has one folder."""
    import folder_paths
    from realigndiff.nodes import llm

    monkeypatch.setitem(folder_paths.folder_names_and_paths, llm.KEY, ([str(tmp_path)], set()))
    save_language_model(tmp_path / "tiny", "qwen2")
    return llm


def test_it_is_offered_and_answers_in_turn_with_the_offline_scorer(folders):
    from realigndiff.nodes.likelihoods import Likelihoods

    inputs = {input.id: input for input in folders.LoadLlm.define_schema().inputs}
    assert inputs["local_model"].options == ["none", "tiny"]
    (llm,) = folders.LoadLlm.execute(folders.LOCAL, "", "", 60, local_model="tiny").result
    regions, text = Likelihoods.execute(PROMPT, tags="circle, square, sky", llm=llm).result
    assert [region.phrase for region in regions[0]][:2] == ["a red circle", "a blue square"]
    assert "s=" in text


def test_its_steps_are_shown(folders, monkeypatch):
    import comfy.utils

    shown = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, *_, **__: shown.append((done, total)))
    (llm,) = folders.LoadLlm.execute(folders.LOCAL, "", "", 60, local_model="tiny").result
    llm.score(PROMPT, ["circle", "square", "sky"])
    assert shown == [(0, 2), (1, 2), (2, 2)]


def test_an_interrupt_stops_it(folders):
    import comfy.model_management as management

    (llm,) = folders.LoadLlm.execute(folders.LOCAL, "", "", 60, local_model="tiny").result
    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        llm.score(PROMPT, ["circle"])


@pytest.mark.parametrize(
    ("name", "pattern"), [("none", "No local model is chosen"), ("gone", "There is no folder 'gone'")]
)
def test_one_that_is_not_there_is_told(folders, name, pattern):
    from realigndiff.core.errors import RealignError

    with pytest.raises(RealignError, match=pattern):
        folders.LoadLlm.execute(folders.LOCAL, "", "", 60, local_model=name)


def test_another_model_in_the_same_folder_is_loaded_again(folders, tmp_path):
    before = folders.LoadLlm.fingerprint_inputs(provider=folders.LOCAL, local_model="tiny", base_url="", timeout=60)
    save_language_model(tmp_path / "tiny", "llama")
    after = folders.LoadLlm.fingerprint_inputs(provider=folders.LOCAL, local_model="tiny", base_url="", timeout=60)
    assert before != after
