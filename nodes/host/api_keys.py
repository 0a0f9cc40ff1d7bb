"""API keys, from the environment or ComfyUI's user settings: never from a widget, and sent only to their own host."""

from __future__ import annotations

import json
from pathlib import Path

import folder_paths

from ...language.server import keys
from .prompt_users import current_user

KEY_SETTING, HOST_SETTING = "RealignDiff.LLM.ApiKey", "RealignDiff.LLM.Host"


def api_key_for(base_url: str) -> str | None:
    """The key for a server, or None: see `language.server.keys`."""
    settings = user_settings()
    return keys.api_key_for(base_url, (settings.get(HOST_SETTING), settings.get(KEY_SETTING)))


def user_settings() -> dict[str, str]:
    """The settings of the user whose prompt runs; empty if they cannot be read or the user is unknown."""
    user = current_user()
    if user is None:
        return {}
    file = Path(folder_paths.get_user_directory()) / user / "comfy.settings.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in settings.items() if isinstance(v, str)} if isinstance(settings, dict) else {}
