"""Models in ComfyUI's memory: one copy for all who use it, and none when it was unloaded."""

import gc
import os
import shutil
import time
from pathlib import Path

import pytest
from realigndiff.core.embedded import WEIGHTS
from transformers import AutoTokenizer, Blip2Config, Blip2ForConditionalGeneration, OPTConfig

WAITS = 3
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads a process's memory from /proc")


@pytest.fixture(scope="module")
def large(server):
    """A BLIP-2 of some hundred megabytes in models/blip, and the bytes of its weights in fp32."""
    folder, demo = server.base / "models" / "blip" / "large", WEIGHTS / "blip2_captioner"
    shutil.copytree(demo, folder, ignore=shutil.ignore_patterns("*.safetensors", "generation*"))
    config = Blip2Config.from_pretrained(demo).to_dict()
    tokenizer = AutoTokenizer.from_pretrained(demo)
    text = OPTConfig(
        hidden_size=1024,
        word_embed_proj_dim=1024,
        ffn_dim=4096,
        num_hidden_layers=8,
        num_attention_heads=8,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Blip2ForConditionalGeneration(Blip2Config.from_dict({**config, "text_config": text.to_dict()}))
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    model.half().save_pretrained(folder)
    del model
    gc.collect()
    return size


def graph(*loaders):
    """A caption by each of the loaders, given as (captioner, text encoder)."""
    parts = {"image": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 7}}}
    for number, (captioner, encoder) in enumerate(loaders):
        names = {"captioner": captioner, "text_encoder": encoder, "precision": "fp32", "download": False}
        parts[f"load{number}"] = {"class_type": "RealignLoadBlip2", "inputs": names}
        parts[f"say{number}"] = {
            "class_type": "RealignCaption",
            "inputs": {"blip2": [f"load{number}", 0], "image": ["image", 0], "max_tokens": 4},
        }
    return parts


@pytest.fixture
def memory(server, client):
    """The bytes in the server's memory: `memory(loader, …)` when a graph has run, `memory()` when all was unloaded."""

    def resident():
        pages = Path(f"/proc/{server.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def run(*loaders):
        if loaders:
            assert client.run(graph(*loaders)).status == "success"
            return resident()
        seen = []
        for _ in range(WAITS):  # ComfyUI may miss one wish, and collects garbage when it has time
            client.post("/free", {"unload_models": True, "free_memory": True})
            time.sleep(3)
            seen.append(resident())
        return min(seen)

    return run


def test_what_was_unloaded_leaves_the_memory_as_it_was(memory, large):
    memory(("large", "none"))  # what is imported and allocated once
    before = memory()
    loaded = memory(("large", "none"))
    left = memory()
    print(f"\nMB: {before / 1e6:.0f} before, {loaded / 1e6:.0f} loaded, {left / 1e6:.0f} after")
    assert loaded - before > 0.9 * large
    assert left < 1.02 * before


def test_two_loaders_of_one_model_share_one_copy(memory, large):
    memory(("large", "demo (embedded)"))
    before = memory()
    one = memory(("large", "none")) - before
    both = memory(("large", "none"), ("large", "demo (embedded)")) - before
    print(f"\nMB: {one / 1e6:.0f} for one loader, {both / 1e6:.0f} for two")
    assert 0.9 * large < one
    assert both < 1.1 * one
