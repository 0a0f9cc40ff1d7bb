"""Whose prompt runs. With --multi-user each user has settings of their own, and none are another's.

ComfyUI knows a request's user by its headers, and forgets them before the prompt runs. So the user is remembered with
the prompt's id when it is queued.
"""

from __future__ import annotations

import sys
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from aiohttp import web
from comfy.cli_args import args
from comfy_execution.utils import get_executing_context

DEFAULT = "default"
"""ComfyUI's one user without --multi-user."""
MOST_PROMPTS = 10_000
_asking: ContextVar[str | None] = ContextVar("asking", default=None)
"""The user of the request that is being handled."""
_users: OrderedDict[str, str | None] = OrderedDict()
"""Whose each queued prompt is."""


def register() -> None:
    """Let ComfyUI's server tell whose prompt is queued, if it has several users."""
    if args.multi_user and (server := prompt_server()) is not None:
        server.app.middlewares.append(_remember_user)
        server.add_on_prompt_handler(_remember_prompt)


def prompt_server() -> Any:
    """ComfyUI's server; None where the nodes are used without one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def current_user() -> str | None:
    """The user whose prompt runs, by the name of their folder; None where ComfyUI does not say it."""
    if not args.multi_user:
        return DEFAULT
    context = get_executing_context()
    return None if context is None else _users.get(context.prompt_id)


@web.middleware
async def _remember_user(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        user = prompt_server().user_manager.get_request_user_id(request)
    except KeyError:  # unknown, or none is given
        user = None
    _asking.set(user)
    return await handler(request)


def _remember_prompt(queued: dict[str, Any]) -> dict[str, Any]:
    """queued: the body of a request to /prompt; its id is chosen here where it has none."""
    if queued.get("prompt_id") is None:
        queued["prompt_id"] = str(uuid.uuid4())
    _users.pop(str(queued["prompt_id"]), None)
    _users[str(queued["prompt_id"])] = _asking.get()
    while len(_users) > MOST_PROMPTS:
        _users.popitem(last=False)
    return queued
