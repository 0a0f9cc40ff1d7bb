"""The language model of the LLM step: the offline scorer, a server, or a model on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..core.errors import RealignError
from .host import model_folders
from .host.inputs import check_choice, combo_input, int_input
from .host.language_models import InterruptibleServer, ManagedLanguageModel, ManagedOfflineScorer, failures
from .host.managed_models import ManagedModel, dtype_of, load_shared
from .host.sockets import Blip2, Llm
from .loaders import CATEGORY

OFFLINE, SERVER, LOCAL = "offline scorer", "OpenAI-compatible server", "local model (log-likelihood)"
ERROR = "error"
KEY = "LLM"
"""The model folder of local models."""


class LoadLlm(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignLLM",
            display_name="LLM",
            category=CATEGORY,
            description="Chooses what binds the words of the prompt to the objects in the image: the offline scorer, "
            "which needs nothing; an OpenAI-compatible server; or a language model on this machine. API keys come from "
            "ComfyUI's settings or the environment, never from a workflow.",
            inputs=[
                combo_input(
                    "provider",
                    [OFFLINE, SERVER, LOCAL],
                    "offline scorer: compares words, so it knows no synonyms. OpenAI-compatible server: asks a "
                    "language model. local model: compares how likely a model in models/LLM finds each allowed answer.",
                ),
                io.String.Input(
                    "base_url",
                    default="http://127.0.0.1:11434/v1",
                    tooltip="Server only: its address. The default is Ollama on this machine.",
                ),
                io.String.Input("model", default="", tooltip="Server only: the name of the model on the server."),
                int_input(
                    "timeout",
                    60,
                    (1, 3600),
                    "Server only: seconds per question, with all retries. An image takes two to four.",
                ),
                Blip2.Input(
                    "blip2",
                    optional=True,
                    tooltip="Lets the offline scorer judge tags that the prompt does not name, by similarity of "
                    "meaning. Without it they are unlikely (0).",
                ),
                combo_input(
                    "local_model",
                    model_folders.choices(KEY, "local_model", none=True, demo=False),
                    "Local model only: a folder with a config.json under models/LLM. It may hold any causal "
                    "language model of Hugging Face, e.g. Qwen or Vicuna.",
                    optional=True,
                ),
                int_input(
                    "retries",
                    2,
                    (0, 10),
                    "Server only: how often a question is repeated if the server is busy or fails. Refusals "
                    "are not repeated.",
                    optional=True,
                ),
                int_input(
                    "llm_seed",
                    0,
                    (0, 2**31 - 1),
                    "Server only: answers are stored, so change the seed to ask the same question again.",
                    optional=True,
                ),
                combo_input(
                    "if_unreachable",
                    [ERROR, OFFLINE],
                    "Server only, if it cannot be reached or refuses: error stops the workflow; offline scorer "
                    "answers in its place, and a note says so.",
                    optional=True,
                ),
            ],
            outputs=[Llm.Output(display_name="llm", tooltip="For Likelihoods and SAM Reward.")],
        )

    @classmethod
    def fingerprint_inputs(cls, provider: str, base_url="", local_model=model_folders.NONE, **_: Any) -> str:
        """It also changes after a server did not answer, so that ComfyUI runs the node again."""
        if provider == LOCAL:
            return model_folders.stamp(KEY, local_model)
        return str(failures[base_url]) if provider == SERVER else ""

    @classmethod
    def execute(
        cls,
        provider,
        base_url,
        model,
        timeout,
        blip2=None,
        local_model=model_folders.NONE,
        retries=2,
        llm_seed=0,
        if_unreachable=ERROR,
    ) -> io.NodeOutput:
        offline = ManagedOfflineScorer(blip2)
        if check_choice("provider", provider, (OFFLINE, SERVER, LOCAL)) == OFFLINE:
            return io.NodeOutput(offline)
        if provider == LOCAL:
            return io.NodeOutput(ManagedLanguageModel(_load_local(local_model), offline))
        from ..language.server.cache import AnswerCache
        from ..language.server.client import OpenAiLanguageModel
        from .host.api_keys import api_key_for
        from .host.consent import check_allowed

        server = OpenAiLanguageModel(
            base_url,
            model,
            lambda: api_key_for(base_url),
            timeout,
            retries=retries,
            seed=llm_seed,
            cache=AnswerCache(Path(folder_paths.get_user_directory()) / "realigndiff" / "answers"),
            or_offline=check_choice("if_unreachable", if_unreachable, (ERROR, OFFLINE)) == OFFLINE,
        )
        check_allowed(base_url)  # before time is spent on images
        return io.NodeOutput(InterruptibleServer(server, offline, base_url))


def _load_local(name: str) -> ManagedModel:
    """The language model in a folder under models/LLM."""
    from ..language.logit_scorer import LogitScorer

    if name == model_folders.NONE:
        raise RealignError("No local model is chosen: choose a folder in local_model, or another provider.")
    folder = model_folders.locate(KEY, name, "")
    device = comfy.model_management.get_torch_device()
    wide = comfy.model_management.should_use_bf16(device)  # language models are trained in it; fp16 may overflow
    scorer = load_shared(LogitScorer, folder, dtype=dtype_of("bf16" if wide else "auto", auto_half=True))
    scorer.on_step = lambda done, total: comfy.utils.ProgressBar(total).update_absolute(done)
    return ManagedModel(scorer, scorer.model)


NODES = [LoadLlm]
