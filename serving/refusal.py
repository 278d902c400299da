"""A request that is not served: why, as its sender is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trainmesh.serving.api_errors import error_body

__all__ = ["Refusal", "RequestRefused", "refused"]

CHALLENGE: Final = b'Bearer realm="trainmesh"'


@dataclass(frozen=True, slots=True)
class Refusal:
    """Whoever refuses: who asks, admission, the router or the way there.

    Attributes:
        status: of HTTP, such as 401 who are you, 403 you may not, 429 later.
        message: one line; never holds a key that was shown.
        code: OpenAI's word for it, such as ``invalid_api_key``, for programs; empty: none.
        param: the field of the body that is wrong.
        retry_after_s: when it may come again.
        fields: further header fields of the answer.
    """

    status: int
    message: str
    code: str = ""
    param: str | None = None
    retry_after_s: float | None = None
    fields: bytes = b""

    @property
    def body(self) -> bytes:
        """The JSON that OpenAI's clients read."""
        return error_body(self.status, self.message, code=self.code or None, param=self.param)

    @property
    def challenge(self) -> bytes:
        """The value of ``WWW-Authenticate``, which a 401 has; empty for others."""
        return CHALLENGE if self.status == 401 else b""


class RequestRefused(Exception):
    """Raised where a request is refused in the middle of being read."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refused(
    status: int,
    message: str,
    *,
    code: str = "",
    param: str | None = None,
    retry_after_s: float | None = None,
    fields: bytes = b"",
) -> RequestRefused:
    """To be raised; the arguments are those of ``Refusal``."""
    return RequestRefused(Refusal(status, message, code, param, retry_after_s, fields))
