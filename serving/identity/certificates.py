"""Checks certificate files before OpenSSL reads them, so that a mistake has a clear message."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from trainmesh.bounded_read import read_bounded
from trainmesh.errors import ConfigError

__all__ = ["FileProblem", "check_authority", "check_pair"]

MAX_BYTES = 4 << 20


class FileProblem(ConfigError):
    """A certificate or key can't be used.

    Attributes:
        field: which one of ``cert``, ``key``, ``ca``.
    """

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


def check_pair(cert: str, key: str, now: datetime | None = None) -> None:
    """Check that ``key`` is that of the first certificate in the file ``cert``, which is valid now.

    Raises:
        FileProblem: a file can't be read, holds something else, or is out of its time.
    """
    leaf = _certificates("cert", cert)[0]
    problem = _out_of_time(leaf, now or datetime.now(UTC))
    if problem:
        raise FileProblem("cert", f"{cert}: {problem}")
    data = _read("key", key)
    try:
        private = load_pem_private_key(data, password=None)
        public = private.public_key()
        same = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == (
            leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        )
    except TypeError as error:
        raise FileProblem("key", f"{key}: is encrypted; give it decrypted, mode 0600") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FileProblem("key", f"{key}: holds no private key in PEM") from error
    if not same:
        raise FileProblem("key", f"{key}: is not the key of the certificate in {cert}")


def check_authority(path: str) -> None:
    """Check that ``path`` holds certificates of authorities.

    Raises:
        FileProblem: it can't be read or holds none.
    """
    _certificates("ca", path)


def _read(field: str, path: str) -> bytes:
    try:
        return read_bounded(Path(path), MAX_BYTES, pipe_s=0)  # OpenSSL opens it once more
    except OSError as error:
        raise FileProblem(field, f"{path}: {error.strerror}") from error


def _certificates(field: str, path: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(field, path))
    except ValueError as error:
        raise FileProblem(field, f"{path}: holds no certificate in PEM") from error


def _out_of_time(certificate: x509.Certificate, now: datetime) -> str:
    if now > certificate.not_valid_after_utc:
        return f"the certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if now < certificate.not_valid_before_utc:
        begin = certificate.not_valid_before_utc
        return f"the certificate is not valid before {begin:%Y-%m-%d %H:%M} UTC"
    return ""
