"""The address of a server: which are allowed, which lead to this machine, and where one points to."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from ...core.errors import RealignError


def host_of(base_url: str) -> str:
    """The host of a server's address, with its port; a RealignError if it is malformed or has a password or a query."""
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port  # reading the port checks it
    except ValueError:
        parts, host = urlsplit(""), None
    printable = base_url.isprintable() and not set(base_url) & {" ", "\\"}
    if not host or not printable or parts.scheme not in ("http", "https"):
        short = " ".join(base_url.split())[:100]
        raise RealignError(f"'{short}' is no server address: give one like http://127.0.0.1:11434/v1.")
    if not host.isascii():  # letters of other alphabets can look like those of a known host
        raise RealignError(f"The server's name '{host}' has letters beyond a to z: write it in ASCII (xn--…).")
    if set(base_url) & {"?", "#"}:
        raise RealignError("The server address holds a '?' or '#', which would not be sent: leave out all from there.")
    if parts.username or parts.password:
        raise RealignError("The server address holds a password, which would be saved with the workflow: leave it out.")
    return parts.netloc


def origin(base_url: str) -> str:
    """A server's address without its path: `https://llm.example.com:8443`."""
    parts = urlsplit(base_url.strip())
    return f"{parts.scheme}://{parts.netloc}"


def is_this_machine(base_url: str) -> bool:
    """Whether a server's address is a loopback address, which leads to no other machine."""
    try:
        host = urlsplit(base_url.strip()).hostname
        return host == "localhost" or (bool(host) and _ip(host).is_loopback)
    except ValueError:
        return False


def is_private(host: str) -> bool:
    """Whether a host is this machine or has a private address."""
    if host == "localhost":
        return True
    try:
        return _ip(host).is_private
    except ValueError:
        return False


def _ip(host: str) -> IPv4Address | IPv6Address:
    """An IP address; IPv4 that is written as IPv6 becomes IPv4. A name raises a ValueError."""
    address = ip_address(host)
    return getattr(address, "ipv4_mapped", None) or address
