"""A chat as one text, for engines that know no chats.

Each message becomes a line ``role: text`` (``developer`` counts as ``system``), and a last line
``assistant:`` asks for the answer. No model was trained on this very form: instruction-tuned
models answer better behind a server that applies their own template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from trainmesh.serving.adapters.types import Unsupported

__all__ = ["ChatMessage", "ContentPart", "plain_prompt"]

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class ContentPart(Struct):
    """A part of a message's content; only ``text`` can be translated."""

    type: str
    text: str | None = None


class ChatMessage(Struct):
    """One turn. Members that have no translation are read only to refuse them."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    audio: Any = None
    tool_calls: Any = None
    function_call: Any = None


def plain_prompt(messages: Sequence[ChatMessage]) -> str:
    """The prompt for a chat.

    Raises:
        Unsupported: a message has another role, calls tools, or is not only text.
    """
    lines = [f"{_role(at, one)}: {_content(at, one)}\n" for at, one in enumerate(messages)]
    return "".join(lines) + "assistant:"


def _role(at: int, message: ChatMessage) -> str:
    role = _ROLES.get(message.role)
    if role is None:
        raise Unsupported(
            f"messages[{at}].role",
            f"system, developer, user or assistant, not {message.role!r:.99}",
        )
    for name in ("name", "audio", "tool_calls", "function_call"):
        if getattr(message, name):
            raise Unsupported(
                f"messages[{at}].{name}", "this endpoint's protocol has no such thing"
            )
    return role


def _content(at: int, message: ChatMessage) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if not content:
        raise Unsupported(f"messages[{at}].content", "a message needs text")
    texts: list[str] = []
    for index, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise Unsupported(
                f"messages[{at}].content[{index}]", "this endpoint takes text parts only"
            )
        texts.append(part.text)
    return "".join(texts)
