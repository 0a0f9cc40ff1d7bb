"""Which servers may be asked: this machine's, and those that their user named.

A workflow names the server and may come from anyone; what it asks is the prompt and what was seen in the picture. So a
host of another machine is asked only after the user, or whoever runs ComfyUI, has allowed it.
"""

from __future__ import annotations

import os
import re

from ...core.errors import RealignError
from ...language.server.keys import is_for, is_this_machine, origin
from .secrets import HOST_SETTING, user_settings
from .users import current_user, prompt_server

SETTING, VARIABLE = "RealignDiff.LLM.AllowedHosts", "REALIGN_LLM_ALLOWED_HOSTS"
EVENT = "realigndiff.consent"
"""Sent to the page whose prompt stopped for want of a consent; it asks its user."""


class NotAllowed(RealignError):
    """A host that its user has not allowed."""


def check_allowed(base_url: str) -> None:
    """Raise `NotAllowed` where a server must not be asked, and let the page that queued the prompt ask its user."""
    if allowed(base_url, user_settings()):
        return
    host = origin(base_url)
    if current_user() is None:
        raise NotAllowed(
            f"{host} was not asked: it would get the prompt and the tags of the image, and ComfyUI does not say whose "
            f"prompt this is, so no user's settings count. Name the host in {VARIABLE} in ComfyUI's environment."
        )
    server = prompt_server()
    if server is not None and server.client_id is not None:  # None would tell everybody
        server.send_sync(EVENT, {"host": host, "setting": SETTING}, server.client_id)
    raise NotAllowed(
        f"{host} was not asked: it would get the prompt and the tags of the image. To allow it, add it to Allowed "
        f"hosts in the settings under RealignDiff, or to {VARIABLE} in ComfyUI's environment."
    )


def allowed(base_url: str, settings: dict[str, str]) -> bool:
    """Whether a server may be asked: one of this machine, or one that the environment or a user's settings name."""
    lists = (os.environ.get("REALIGN_LLM_HOST"), os.environ.get(VARIABLE), *map(settings.get, (HOST_SETTING, SETTING)))
    hosts = [host for listed in lists if listed for host in re.split(r"[,;\s]+", listed) if host]
    return is_this_machine(base_url) or any(is_for(host, base_url) for host in hosts)
