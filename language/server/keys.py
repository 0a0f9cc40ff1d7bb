"""Which key goes to which LLM server: only one whose owner named that server, and none unencrypted over the internet.

A workflow may come from anyone, so it must not decide where a key is sent.
"""

from __future__ import annotations

import os
from urllib.parse import SplitResult, urlsplit

from .address import is_private

_PORTS = {"http": 80, "https": 443}


def api_key_for(base_url: str, *more: tuple[str | None, str | None]) -> str | None:
    """The key for a server, or None: `REALIGN_LLM_API_KEY` for the host that `REALIGN_LLM_HOST` names, `OPENAI_API_KEY`
    for api.openai.com. more: further pairs (host, key), which come between these two."""
    pairs = (
        (os.environ.get("REALIGN_LLM_HOST"), os.environ.get("REALIGN_LLM_API_KEY")),
        *more,
        ("https://api.openai.com", os.environ.get("OPENAI_API_KEY")),
    )
    return next((key for owner, key in pairs if owner and key and is_for(owner, base_url)), None)


def is_for(owner: str, base_url: str) -> bool:
    """Whether a server's address is the `owner` that a key is for: `llm.example.com`, `127.0.0.1:8000`,
    `https://llm.example.com`.

    Host and port must be equal; the default port is the scheme's. If the owner names a scheme, the address must have
    it; if not, plain http is only for this machine and private addresses.
    """
    try:
        allowed = urlsplit(owner.strip() if "://" in owner else f"//{owner.strip()}")
        address = urlsplit(base_url.strip())
        scheme = allowed.scheme or address.scheme
        same = allowed.hostname == address.hostname and scheme == address.scheme and scheme in _PORTS
        if not same or not allowed.hostname or _port(allowed, scheme) != _port(address, scheme):
            return False
    except ValueError:  # one of them is no address
        return False
    return scheme == "https" or bool(allowed.scheme) or is_private(allowed.hostname)


def _port(address: SplitResult, scheme: str) -> int:
    return _PORTS[scheme] if address.port is None else address.port  # 0 is a port
