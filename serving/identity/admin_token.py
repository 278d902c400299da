"""The token with which the user who runs a router may change things at it.

It lies in the run directory, which only that user can read; commands such as ``trainmesh
endpoints`` find it there.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from trainmesh.errors import ConfigError
from trainmesh.serving.identity.keys import digest

__all__ = ["FILE", "create", "read"]

FILE = "admin.token"


def create(run_dir: Path) -> str:
    """Write a new token into ``run_dir``, mode 0600.

    Returns:
        Its digest, for ``Authenticator(admin_digests=...)``.
    """
    token = secrets.token_urlsafe(32)
    path = run_dir / FILE
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token)
    return digest(token.encode())


def read(run_dir: Path) -> str:
    """The token in ``run_dir``.

    Raises:
        ConfigError: there is none, or it is another user's.
    """
    path = run_dir / FILE
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a token"
        raise ConfigError(f"{path}: {reason}; is the router running as this user?") from error
