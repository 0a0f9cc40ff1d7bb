"""Which language model servers may be used: those on this machine, and those that the user has allowed.

A workflow names the server and may come from anyone, and the server gets the prompt and the tags of the image. So a
server on another machine is used only after the user, or the administrator of ComfyUI, has allowed its host.
"""

from __future__ import annotations

import os
import re

from ...core.errors import RealignError
from ...language.server.address import is_this_machine, origin
from ...language.server.keys import is_for
from .api_keys import HOST_SETTING, user_settings
from .prompt_users import current_user, prompt_server

SETTING, VARIABLE = "RealignDiff.LLM.AllowedHosts", "REALIGN_LLM_ALLOWED_HOSTS"
EVENT = "realigndiff.consent"
"""Sent to the browser page whose prompt was stopped; the page asks its user for consent."""


class NotAllowed(RealignError):
    """The user has not allowed this host."""


def check_allowed(base_url: str) -> None:
    """Raise `NotAllowed` for a server that must not be used, and let the page that queued the prompt ask its user."""
    if allowed(base_url, user_settings()):
        return
    host = origin(base_url)
    if current_user() is None:
        raise NotAllowed(
            f"{host} was not asked: it would get the prompt and the tags of the image, and ComfyUI does not say whose "
            f"prompt this is, so no user's settings count. Name the host in {VARIABLE} in ComfyUI's environment."
        )
    server = prompt_server()
    if server is not None and server.client_id is not None:  # None would send it to all pages
        server.send_sync(EVENT, {"host": host, "setting": SETTING}, server.client_id)
    raise NotAllowed(
        f"{host} was not asked: it would get the prompt and the tags of the image. To allow it, add it to Allowed "
        f"hosts in the settings under RealignDiff, or to {VARIABLE} in ComfyUI's environment."
    )


def allowed(base_url: str, settings: dict[str, str]) -> bool:
    """Whether a server may be used: it is on this machine, or named in the environment or in the user's settings."""
    lists = (os.environ.get("REALIGN_LLM_HOST"), os.environ.get(VARIABLE), *map(settings.get, (HOST_SETTING, SETTING)))
    hosts = [host for names in lists if names for host in re.split(r"[,;\s]+", names) if host]
    return is_this_machine(base_url) or any(is_for(host, base_url) for host in hosts)
