"""The user whose prompt runs. With --multi-user, each user has separate settings.

ComfyUI reads a request's user from its headers, which are gone when the prompt runs. So the user is stored under the
prompt's id when the prompt is queued.
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
MAX_PROMPTS = 10_000
_request_user: ContextVar[str | None] = ContextVar("request_user", default=None)
_users: OrderedDict[str, str | None] = OrderedDict()
"""The user of each queued prompt, by its id."""


def register() -> None:
    """Store the user of each prompt that ComfyUI's server queues, if it has several users."""
    if args.multi_user and (server := prompt_server()) is not None:
        server.app.middlewares.append(_remember_user)
        server.add_on_prompt_handler(_remember_prompt)


def prompt_server() -> Any:
    """ComfyUI's server; None if the nodes run without one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def current_user() -> str | None:
    """The folder name of the user whose prompt runs; None if it is unknown."""
    if not args.multi_user:
        return DEFAULT
    context = get_executing_context()
    return None if context is None else _users.get(context.prompt_id)


@web.middleware
async def _remember_user(request: web.Request, handler: Callable[..., Awaitable[Any]]) -> web.StreamResponse:
    try:
        user = prompt_server().user_manager.get_request_user_id(request)
    except KeyError:  # unknown, or not given
        user = None
    _request_user.set(user)
    return await handler(request)


def _remember_prompt(queued: dict[str, Any]) -> dict[str, Any]:
    """queued: the body of a request to /prompt; it gets an id here if it has none."""
    if queued.get("prompt_id") is None:
        queued["prompt_id"] = str(uuid.uuid4())
    prompt_id = str(queued["prompt_id"])
    _users[prompt_id] = _request_user.get()
    _users.move_to_end(prompt_id)
    while len(_users) > MAX_PROMPTS:
        _users.popitem(last=False)
    return queued
