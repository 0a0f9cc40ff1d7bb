"""Which key goes to which LLM server: one whose owner named that server, and none unencrypted over the internet.

A workflow or a command names the server and may come from anyone; so a key is sent only where its owner said, not where
the workflow says.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import SplitResult, urlsplit

_PORTS = {"http": 80, "https": 443}


def api_key_for(base_url: str, *more: tuple[str | None, str | None]) -> str | None:
    """The key for a server, or None: `REALIGN_LLM_API_KEY` for the host that `REALIGN_LLM_HOST` names, `OPENAI_API_KEY`
    for api.openai.com. more: further (host, key), which come between these two."""
    owned = (
        (os.environ.get("REALIGN_LLM_HOST"), os.environ.get("REALIGN_LLM_API_KEY")),
        *more,
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
        if not same or not own.hostname or _port(own, scheme) != _port(there, scheme):
            return False
    except ValueError:  # one of them is no address
        return False
    return scheme == "https" or bool(own.scheme) or _near(own.hostname)


def is_this_machine(base_url: str) -> bool:
    """Whether a server's address is a loopback one, which leads to no other machine."""
    try:
        host = urlsplit(base_url.strip()).hostname
        return host == "localhost" or (bool(host) and _plain(host).is_loopback)
    except ValueError:
        return False


def origin(base_url: str) -> str:
    """A server's address without its path, as an owner names it: `https://llm.example.com:8443`."""
    parts = urlsplit(base_url.strip())
    return f"{parts.scheme}://{parts.netloc}"


def _port(address: SplitResult, scheme: str) -> int:
    return _PORTS[scheme] if address.port is None else address.port  # port 0 is one


def _near(host: str) -> bool:
    """Whether a host is this machine or has a private address."""
    if host == "localhost":
        return True
    try:
        return _plain(host).is_private
    except ValueError:
        return False


def _plain(host: str) -> IPv4Address | IPv6Address:
    """An IP address, one of IPv4 that is written as IPv6 as it is.

    Raises:
        ValueError: the host is a name.
    """
    address = ip_address(host)
    return getattr(address, "ipv4_mapped", None) or address
