"""API keys: from the environment or ComfyUI's user settings, never from a widget, and only to the host they are for.

A workflow names the server and may come from anyone; so a key is sent only where its owner said, not where the workflow
says.
"""

from __future__ import annotations

import json
import os
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import folder_paths

_PORTS = {"http": 80, "https": 443}
KEY_SETTING, HOST_SETTING = "RealignDiff.LLM.ApiKey", "RealignDiff.LLM.Host"


def api_key_for(base_url: str) -> str | None:
    """The key for a server, or None: `REALIGN_LLM_API_KEY` or the user setting for the host that `REALIGN_LLM_HOST` or
    its setting names, `OPENAI_API_KEY` for api.openai.com; none goes unencrypted over the internet: see `is_for`."""
    settings = _user_settings()
    owned = (
        (os.environ.get("REALIGN_LLM_HOST"), os.environ.get("REALIGN_LLM_API_KEY")),
        (settings.get(HOST_SETTING), settings.get(KEY_SETTING)),
        ("https://api.openai.com", os.environ.get("OPENAI_API_KEY")),
    )
    return next((key for owner, key in owned if owner and key and is_for(owner, base_url)), None)


def is_for(owner: str, base_url: str) -> bool:
    """Whether a server's address is at its key's owner: `llm.example.com`, `127.0.0.1:8000`, `https://llm.example.com`.

    Host and port must be equal; without a port the owner's is that of the scheme. A scheme that the owner names must be
    the address's; without one, plain http is for this machine and private addresses only.
    """
    try:
        own = urlsplit(owner.strip() if "://" in owner else f"//{owner.strip()}")
        there = urlsplit(base_url.strip())
        scheme = own.scheme or there.scheme
        same = own.hostname == there.hostname and scheme == there.scheme and scheme in _PORTS
        if not same or not own.hostname or (own.port or _PORTS[scheme]) != (there.port or _PORTS[scheme]):
            return False
    except ValueError:  # one of them is no address
        return False
    return scheme == "https" or bool(own.scheme) or _near(own.hostname)


def _near(host: str) -> bool:
    """Whether a host is this machine or has a private address."""
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_private


def _user_settings() -> dict[str, str]:
    """The settings of ComfyUI's default user; empty when there are none or they cannot be read."""
    file = Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in settings.items() if isinstance(v, str)} if isinstance(settings, dict) else {}
