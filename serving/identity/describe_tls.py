"""Why a TLS handshake failed, in words, from what OpenSSL says on either side."""

from __future__ import annotations

import ssl

__all__ = ["handshake_problem"]

VERIFY = {
    9: "its certificate is not valid yet",
    10: "its certificate has expired",
    18: "its certificate is self-signed, not by the authority trusted here",
    19: "its certificate was signed by another authority than the one trusted here",
    20: "its certificate was signed by another authority than the one trusted here",
    21: "its certificate was signed by another authority than the one trusted here",
    23: "its certificate was revoked",
    26: "its certificate is not for this use (extended key usage)",
    62: "its certificate is for another name",
    64: "its certificate is for another address",
}
"""X509_V_ERR_* of OpenSSL's x509_vfy.h."""

REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate, and one is required",
    "HTTP_REQUEST": "it sent plain HTTP to a TLS port; use https://",
    "HTTPS_PROXY_REQUEST": "it sent plain HTTP to a TLS port; use https://",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "RECORD_LAYER_FAILURE": "it does not speak TLS",
    "PACKET_LENGTH_TOO_LONG": "it does not speak TLS",
    "UNKNOWN_PROTOCOL": "it does not speak TLS",
    "UNSUPPORTED_PROTOCOL": "it speaks no TLS version as new as 1.2",
    "VERSION_TOO_LOW": "it speaks no TLS version as new as 1.2",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it wants another TLS version than 1.2 or 1.3",
    "NO_SHARED_CIPHER": "it shares no cipher with this side",
    "CERTIFICATE_VERIFY_FAILED": "its certificate could not be verified",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate, and none was shown",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that our certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it says that our certificate was revoked",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it says that our certificate is bad",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not accept our certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it says that our certificate is not for this use",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust the authority that signed our certificate",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it refused the handshake (certificate or cipher)",
    "UNEXPECTED_EOF_WHILE_READING": "it closed the connection during the handshake",
}


def handshake_problem(error: BaseException) -> str:
    """Why the other side ("it") could not be talked to over TLS; one line, for logs and errors."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return VERIFY.get(error.verify_code, _plain(error.verify_message))
    if isinstance(error, ssl.SSLError):
        found = getattr(error, "reason", None) or ""  # those that asyncio makes have none
        reason = found.replace(" ", "_").upper()
        return REASONS.get(reason, f"the handshake failed: {_plain(found or str(error))}")
    if isinstance(error, ConnectionError | EOFError):
        return "it closed the connection during the handshake"
    if isinstance(error, TimeoutError):
        return "it took too long over the handshake"
    return f"the handshake failed: {_plain(str(error) or type(error).__name__)}"


def _plain(text: str) -> str:
    return ascii(text.split("\n", 1)[0][:200])[1:-1]
