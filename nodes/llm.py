"""Who answers the LLM step: the offline scorer, a server, or a language model on this machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from threading import Event
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..core.errors import NoAnswer, RealignError
from .host import model_folders
from .host.hosting import Hosted, dtype_of, waiting
from .host.sockets import Blip2, Llm, chosen
from .loaders import CATEGORY, read

OFFLINE, SERVER, LOCAL = "offline scorer", "OpenAI-compatible server", "local model (log-likelihood)"
ERROR = "error"
FOLDERS = "LLM"
_silences: Counter[str] = Counter()
"""How often the server of an address gave no answer."""


class LoadLlm(io.ComfyNode):
    """Who answers the LLM step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignLLM",
            display_name="LLM",
            category=CATEGORY,
            description="Who binds the words of the prompt to what was seen: the offline scorer, which needs nothing, "
            "any OpenAI-compatible server, or a language model on this machine. A key comes from the environment or "
            "ComfyUI's settings, never from here.",
            inputs=[
                io.Combo.Input(
                    "provider",
                    options=[OFFLINE, SERVER, LOCAL],
                    default=OFFLINE,
                    tooltip="The offline scorer reads the prompt's own words; a language model knows synonyms too.",
                ),
                io.String.Input(
                    "base_url",
                    default="http://127.0.0.1:11434/v1",
                    tooltip="The server's address; this one is Ollama's. Only for a server.",
                ),
                io.String.Input("model", default="", tooltip="The model's name on the server. Only for a server."),
                io.Int.Input(
                    "timeout",
                    default=60,
                    min=1,
                    max=3600,
                    tooltip="Seconds for a question, with all its retries. Only for a server.",
                ),
                Blip2.Input(
                    "blip2",
                    optional=True,
                    tooltip="Lets the offline scorer judge tags that the prompt does not name.",
                ),
                io.Combo.Input(
                    "local_model",
                    options=model_folders.choices(FOLDERS, "local_model", none=True, demo=False),
                    default=model_folders.NONE,
                    optional=True,
                    tooltip="A language model as a Hugging Face folder, e.g. Qwen or Vicuna. Lists the folders with a "
                    "config.json under models/LLM. Only for a local model.",
                ),
                io.Int.Input(
                    "retries",
                    default=2,
                    min=0,
                    max=10,
                    optional=True,
                    tooltip="How often a server that is busy or broken is asked again. Only for a server.",
                ),
                io.Int.Input(
                    "llm_seed",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    optional=True,
                    tooltip="Another seed asks again what was answered before. Only for a server.",
                ),
                io.Combo.Input(
                    "if_unreachable",
                    options=[ERROR, OFFLINE],
                    default=ERROR,
                    optional=True,
                    tooltip="When a server cannot be reached or refuses: stop with an error, or let the offline scorer "
                    "answer and say so. Only for a server.",
                ),
            ],
            outputs=[Llm.Output(display_name="llm")],
        )

    @classmethod
    def fingerprint_inputs(
        cls, provider: str, base_url: str = "", local_model: str = model_folders.NONE, **_: Any
    ) -> str:
        """Another one also after a server gave no answer, so that it is asked again, not ComfyUI's cache."""
        if provider == LOCAL:
            return model_folders.stamp(FOLDERS, local_model)
        return str(_silences[base_url]) if provider == SERVER else ""

    @classmethod
    def execute(
        cls,
        provider: str,
        base_url: str,
        model: str,
        timeout: int,
        blip2=None,
        local_model: str = model_folders.NONE,
        retries: int = 2,
        llm_seed: int = 0,
        if_unreachable: str = ERROR,
    ) -> io.NodeOutput:
        offline = HostedScorer(blip2)
        if chosen("provider", provider, (OFFLINE, SERVER, LOCAL)) == OFFLINE:
            return io.NodeOutput(offline)
        if provider == LOCAL:
            return io.NodeOutput(HostedLlm(_local(local_model), offline))
        from ..language.server.cache import AnswerCache
        from ..language.server.client import OpenAiLanguageModel
        from .host.consent import check_allowed
        from .host.secrets import api_key_for

        server = OpenAiLanguageModel(
            base_url,
            model,
            lambda: api_key_for(base_url),
            timeout,
            retries=retries,
            seed=llm_seed,
            cache=AnswerCache(Path(folder_paths.get_user_directory()) / "realigndiff" / "answers"),
            or_offline=chosen("if_unreachable", if_unreachable, (ERROR, OFFLINE)) == OFFLINE,
        )
        check_allowed(base_url)  # before images are made in vain
        return io.NodeOutput(AwaitedServer(server, offline, base_url))


def _local(name: str) -> Hosted:
    """The language model of a folder under models/LLM."""
    from ..language.logit_scorer import LogitScorer

    if name == model_folders.NONE:
        raise RealignError("No local model is chosen: choose a folder in local_model, or another provider.")
    folder = model_folders.locate(FOLDERS, name, "")
    device = comfy.model_management.get_torch_device()
    wide = comfy.model_management.should_use_bf16(device)  # language models are trained so, and may overflow in fp16
    scorer = read(LogitScorer, folder, dtype=dtype_of("bf16" if wide else "auto", halves=True))
    scorer.on_step = _show
    return Hosted(scorer, scorer.model)


def _show(done: int, total: int) -> None:
    """On the progress bar of the node that asks."""
    comfy.utils.ProgressBar(total).update_absolute(done)


class HostedScorer:
    """The offline scorer, whose text encoder is on the device only while it answers."""

    def __init__(self, blip2: Hosted | None) -> None:
        self.blip2 = blip2
        self.offline = self

    def bind(self, prompt: str, tags: list[str]):
        from ..language.offline_scorer import OfflineScorer

        return OfflineScorer().bind(prompt, tags)

    def score(self, prompt: str, tags: list[str]):
        from ..language.offline_scorer import OfflineScorer

        if self.blip2 is None or not tags:
            return OfflineScorer().score(prompt, tags)
        with self.blip2.at_work() as models:
            return OfflineScorer(models.text_encoder).score(prompt, tags)


class HostedLlm:
    """A language model on this machine, on the device only while it answers."""

    def __init__(self, scorer: Hosted, offline: HostedScorer) -> None:
        self.scorer, self.offline = scorer, offline

    def bind(self, prompt: str, tags: list[str]):
        with self.scorer.at_work() as scorer:
            return scorer.bind(prompt, tags)

    def score(self, prompt: str, tags: list[str]):
        with self.scorer.at_work() as scorer:
            return scorer.score(prompt, tags)


class AwaitedServer:
    """A language model on a server, whose answers an interrupt does not wait for; nor is it asked on then."""

    def __init__(self, server: Any, offline: HostedScorer, base_url: str) -> None:
        """server: a `LanguageModel` whose questions take `stop`, as `OpenAiLanguageModel`'s do."""
        self.server, self.offline, self.base_url = server, offline, base_url

    def bind(self, prompt: str, tags: list[str]):
        return self._wait(self.server.bind, prompt, tags)

    def score(self, prompt: str, tags: list[str]):
        return self._wait(self.server.score, prompt, tags)

    def _wait(self, ask, prompt: str, tags: list[str]):
        from .host.consent import check_allowed

        check_allowed(self.base_url)  # this run may be another user's than the one that made this model
        gone = Event()
        try:
            return waiting(lambda: ask(prompt, tags, stop=gone.is_set))
        except NoAnswer:
            _silences[self.base_url] += 1
            raise
        finally:
            gone.set()


class UntilSilent:
    """A language model for one batch: once it cannot answer, it is not asked for the other images."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.silent: NoAnswer | None = None

    def bind(self, prompt: str, tags: list[str]):
        return self._ask(self.model.bind, prompt, tags)

    def score(self, prompt: str, tags: list[str]):
        return self._ask(self.model.score, prompt, tags)

    def _ask(self, ask, prompt: str, tags: list[str]):
        if self.silent is not None:
            raise self.silent
        try:
            return ask(prompt, tags)
        except NoAnswer as reason:
            self.silent = reason
            raise
