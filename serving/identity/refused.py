"""A request that is not served because of who asks."""

from __future__ import annotations

from typing import Final

import msgspec

from trainmesh.serving.api_errors import error_body

__all__ = ["Refused"]


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Why, as the client is told.

    Attributes:
        status: 401 who are you, 403 you may not.
        code: OpenAI's word for it, such as ``invalid_api_key``.
        message: one line; never holds what was shown.
    """

    status: int
    code: str
    message: str

    @property
    def body(self) -> bytes:
        """The JSON that OpenAI's clients read."""
        return error_body(self.status, self.message, code=self.code)

    @property
    def challenge(self) -> bytes:
        """The value of ``WWW-Authenticate``, which a 401 has; empty for others."""
        return CHALLENGE if self.status == 401 else b""


CHALLENGE: Final = b'Bearer realm="trainmesh"'
