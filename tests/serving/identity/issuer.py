"""A token issuer for tests: keys, their JWKS, and tokens right and forged."""

import json
import time
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from trainmesh.serving.config.types import JwtConfig

ISSUER = "https://idp.example/realms/x"
AUDIENCE = "trainmesh"
CONFIG = JwtConfig(issuer=ISSUER, audience=AUDIENCE)


class Issuer:
    """Signs with one key each of the three kinds. ``kid`` is the algorithm's name."""

    def __init__(self) -> None:
        self.private: dict[str, Any] = {
            "RS256": rsa.generate_private_key(65537, 2048),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        }

    def entry(self, name: str) -> dict[str, Any]:
        """The public key as an entry of a JWKS."""
        algorithm: Any = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}[name]
        entry = algorithm.to_jwk(self.private[name].public_key(), as_dict=True)
        return {**entry, "kid": name, "use": "sig"}

    def jwks(self, *names: str) -> bytes:
        return json.dumps({"keys": [self.entry(name) for name in names or self.private]}).encode()

    def token(
        self,
        name: str = "ES256",
        *,
        header: Mapping[str, Any] | None = None,
        drop: str = "",
        **claims: Any,
    ) -> bytes:
        """A token that is right but for what is given."""
        payload = {
            "sub": "alice",
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": time.time() + 60,
            **claims,
        }
        payload.pop(drop, None)
        headers = {"kid": name, **(header or {})}
        return jwt.encode(payload, self.private[name], algorithm=name, headers=headers).encode()
