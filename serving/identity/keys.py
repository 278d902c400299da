"""API keys: where they are read from, and the digests that everything else sees of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from trainmesh.bounded_read import read_bounded
from trainmesh.errors import ConfigError

__all__ = ["digest", "read_digests", "read_key"]

HEX = re.compile(r"[0-9a-fA-F]{64}\Z", re.ASCII)
KEY = re.compile(r"[!-~]+\Z", re.ASCII)
MIN_KEY = 8
MAX_KEY = 512
MAX_FILE_BYTES = 1 << 20


def digest(key: bytes) -> str:
    """SHA-256 of a key, in hex. Keys are random, not chosen by people, so no slow hash is
    needed."""
    return hashlib.sha256(key).hexdigest()


def read_digests(source: str, folder: Path, environ: Mapping[str, str]) -> list[str]:
    """The digests of the keys at ``source``: ``env:NAME``, ``file:PATH`` or ``sha256:HEX``.

    Args:
        source: as written in serve.yaml.
        folder: what a relative PATH is relative to.
        environ: where NAME is looked up.

    Raises:
        ConfigError: no such form, variable or file, or what is there can't be a key; the message
            never holds a key, so nor ``source`` where it may be one.
    """
    kind, _, rest = source.partition(":")
    if kind == "sha256":
        if not HEX.match(rest):
            raise ConfigError("sha256: must be followed by the 64 hex digits of a key's SHA-256")
        return [rest.lower()]
    if kind == "env":
        return [digest(read_key(rest, environ).encode())]
    if kind == "file":
        return [digest(key.encode()) for key in _keys_of_file(folder / rest)]
    raise ConfigError(
        "must be env:NAME, file:PATH or sha256:HEX; a key itself must not be in this file"
    )


def read_key(name: str, environ: Mapping[str, str]) -> str:
    """The key in the variable ``name``.

    Raises:
        ConfigError: it is not set, or not a key.
    """
    value = environ.get(name, "")
    if not value:
        raise ConfigError(f"the variable {ascii(name[:80])} is not set; export the key in it")
    return _checked(value, f"the variable {name}")


def _keys_of_file(path: Path) -> list[str]:
    try:
        lines = read_bounded(path, MAX_FILE_BYTES).decode("ascii").split("\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not a file of ASCII text, one key a line") from error
    keys = [
        _checked(line.strip(), f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.startswith("#")
    ]
    if not keys:
        raise ConfigError(f"{path}: holds no key; write one a line")
    return keys


def _checked(key: str, where: str) -> str:
    if not MIN_KEY <= len(key) <= MAX_KEY or not KEY.match(key):
        raise ConfigError(
            f"{where}: a key must be {MIN_KEY} to {MAX_KEY} printable ASCII characters "
            "without spaces"
        )
    return key
