"""API keys: from the environment or ComfyUI's user settings, never from a widget, and only to the host they are for.

A workflow names the server and may come from anyone; so a key is sent only where its owner said, not where the workflow
says.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import folder_paths

KEY_SETTING, HOST_SETTING = "RealignDiff.LLM.ApiKey", "RealignDiff.LLM.Host"


def api_key_for(base_url: str) -> str | None:
    """The key for a server, or None: `REALIGN_LLM_API_KEY` or the user setting for the host that `REALIGN_LLM_HOST` or
    its setting names, `OPENAI_API_KEY` for api.openai.com, encrypted."""
    address = urlsplit(base_url)
    host, settings = address.netloc.lower(), _user_settings()
    owned = (
        (os.environ.get("REALIGN_LLM_HOST"), os.environ.get("REALIGN_LLM_API_KEY")),
        (settings.get(HOST_SETTING), settings.get(KEY_SETTING)),
        ("api.openai.com" if address.scheme == "https" else None, os.environ.get("OPENAI_API_KEY")),
    )
    return next((key for owner, key in owned if owner and key and owner.strip().lower() == host), None)


def _user_settings() -> dict[str, str]:
    """The settings of ComfyUI's default user; empty when there are none or they cannot be read."""
    file = Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in settings.items() if isinstance(v, str)} if isinstance(settings, dict) else {}
