"""Bearer tokens: those of the issuer are taken, forged ones are not, whatever is in them."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from msgspec.structs import replace

from tests.serving.identity.issuer import AUDIENCE, CONFIG, ISSUER, Issuer
from trainmesh.errors import WireError
from trainmesh.serving.identity.keyset import MAX_BYTES, parse_keys
from trainmesh.serving.identity.tokens import Claims, Tokens
from trainmesh.serving.refusal import Refusal

OWN = Issuer()
OTHER = Issuer()


@pytest.fixture
def tokens() -> Tokens:
    tokens = Tokens(CONFIG)
    tokens.set_keys(OWN.jwks())
    return tokens


@pytest.mark.parametrize("name", ["RS256", "ES256", "EdDSA"])
def test_tokens_of_the_issuer_are_taken(tokens: Tokens, name: str) -> None:
    claims = tokens.verify(OWN.token(name, roles=["admin", "x"], exp=int(time.time()) + 60))
    assert isinstance(claims, Claims)
    assert (claims.subject, claims.roles) == ("alice", frozenset(("admin", "x")))
    assert 50 < claims.until_unix_s - time.time() < 61


def test_claims_may_have_other_names_and_roles_may_be_one_text() -> None:
    tokens = Tokens(replace(CONFIG, tenant_claim="org", roles_claim="scope"))
    tokens.set_keys(OWN.jwks())
    claims = tokens.verify(OWN.token(org="acme", scope="a b"))
    assert isinstance(claims, Claims)
    assert (claims.subject, claims.roles) == ("acme", frozenset(("a", "b")))


def packed(value: object) -> bytes:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def unsigned(header: object, payload: object, signature: bytes = b"") -> bytes:
    return b".".join((packed(header), packed(payload), packed(signature)))


GOOD = {"sub": "alice", "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 3600}


def with_public_key_as_secret(kind: str) -> bytes:
    """HS256 keyed by what anybody may know: CVE-2016-10555 and its like."""
    public = OWN.private[kind].public_key()
    secret = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    body = packed({"alg": "HS256", "kid": kind}) + b"." + packed(GOOD)
    return body + b"." + packed(hmac.new(secret, body, hashlib.sha256).digest())


def with_own_key_inside() -> bytes:
    """The forger's key in the header (jwk), as CVE-2018-0114."""
    entry = ECAlgorithm.to_jwk(OTHER.private["ES256"].public_key(), as_dict=True)
    return OTHER.token(header={"jwk": entry})


def signed(payload: bytes) -> bytes:
    """By the issuer itself."""
    key = OWN.private["ES256"]
    return jwt.PyJWS().encode(payload, key, algorithm="ES256", headers={"kid": "ES256"}).encode()


def altered() -> bytes:
    head, _, signature = OWN.token().split(b".")
    return b".".join((head, packed({**GOOD, "sub": "root"}), signature))


FORGED: list[tuple[str, Callable[[], bytes], str]] = [
    ("alg none", lambda: unsigned({"alg": "none", "kid": "ES256"}, GOOD), "algorithm"),
    ("alg None", lambda: unsigned({"alg": "nOnE", "kid": "ES256"}, GOOD), "algorithm"),
    ("no alg", lambda: unsigned({"kid": "ES256"}, GOOD), "algorithm"),
    ("alg 1", lambda: unsigned({"alg": 1, "kid": "ES256"}, GOOD), "algorithm"),
    ("HS256 RSA", lambda: with_public_key_as_secret("RS256"), "algorithm"),
    ("HS256 EC", lambda: with_public_key_as_secret("ES256"), "algorithm"),
    ("key inside", with_own_key_inside, "wrong signature"),
    ("other signer", OTHER.token, "wrong signature"),
    ("other kind of key", lambda: OWN.token("RS256", header={"kid": "ES256"}), "algorithm"),
    ("altered", altered, "wrong signature"),
    ("no signature", lambda: OWN.token().rpartition(b".")[0] + b".", "wrong signature"),
    ("kid unknown", lambda: OWN.token(header={"kid": "../../x"}), "not publish"),
    ("kid none", lambda: unsigned({"alg": "ES256"}, GOOD), "not publish"),
    ("kid list", lambda: unsigned({"alg": "ES256", "kid": []}, GOOD), "malformed"),
    ("aud", lambda: OWN.token(aud="other"), "another audience"),
    ("aud list", lambda: OWN.token(aud=["other"]), "another audience"),
    ("no aud", lambda: OWN.token(drop="aud"), "no claim aud"),
    ("iss", lambda: OWN.token(iss="https://idp.example"), "another issuer"),
    ("no iss", lambda: OWN.token(drop="iss"), "no claim iss"),
    ("expired", lambda: OWN.token(exp=time.time() - 60), "expired"),
    ("no exp", lambda: OWN.token(drop="exp"), "no claim exp"),
    ("exp text", lambda: OWN.token(exp="soon"), "malformed"),
    ("exp nan", lambda: OWN.token(exp=float("nan")), "malformed"),
    ("exp list", lambda: OWN.token(exp=[]), "malformed"),
    ("not yet", lambda: OWN.token(nbf=time.time() + 600), "not valid yet"),
    ("no sub", lambda: OWN.token(drop="sub"), "no text in its claim sub"),
    ("long sub", lambda: OWN.token(sub="x" * 513), "no text in its claim sub"),
    ("roles", lambda: OWN.token(roles={"admin": True}), "no list of roles"),
    ("deep header", lambda: unsigned(b"[" * 3000, GOOD), "malformed"),
    ("deep payload", lambda: signed(b"[" * 3000), "malformed"),
    ("payload no object", lambda: signed(b"[]"), "malformed"),
    ("payload no JSON", lambda: signed(b"\xff"), "malformed"),
    ("too long", lambda: OWN.token(more="x" * 9000), "longer than"),
    ("crit", lambda: OWN.token(header={"crit": ["x"], "x": 1}), "malformed"),
    ("empty", lambda: b"..", "malformed"),
    ("not ASCII", lambda: b"\xff.\xff.\xff", "malformed"),
]


@pytest.mark.parametrize(("make", "words"), [row[1:] for row in FORGED], ids=[r[0] for r in FORGED])
def test_forged_and_stale_tokens_are_refused(
    tokens: Tokens, make: Callable[[], bytes], words: str
) -> None:
    found = tokens.verify(make())
    assert isinstance(found, Refusal)
    assert (found.status, found.code) == (401, "invalid_token")
    assert words in found.message


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_no_altered_byte_goes_through(data: st.DataObject) -> None:
    tokens = Tokens(CONFIG)
    tokens.set_keys(OWN.jwks("EdDSA"))
    token = OWN.token("EdDSA", exp=4_102_444_800)
    place = data.draw(st.integers(0, len(token) - 1))
    other = token[:place] + data.draw(st.binary(max_size=2)) + token[place + 1 :]
    found = tokens.verify(other)
    if isinstance(found, Claims):  # the last character's unused bits say nothing
        same = [base64.urlsafe_b64decode(part + b"==") for part in token.split(b".")]
        assert [base64.urlsafe_b64decode(part + b"==") for part in other.split(b".")] == same


def test_before_keys_are_there_nothing_is_taken() -> None:
    found = Tokens(CONFIG).verify(OWN.token())
    assert isinstance(found, Refusal)
    assert "have not been fetched" in found.message


def test_keys_are_replaced_not_added(tokens: Tokens) -> None:
    tokens.set_keys(OTHER.jwks())
    assert isinstance(tokens.verify(OWN.token()), Refusal)
    assert isinstance(tokens.verify(OTHER.token()), Claims)
    with pytest.raises(WireError):
        tokens.set_keys(b"{}")
    assert isinstance(tokens.verify(OTHER.token()), Claims)


def test_the_only_key_needs_no_name(tokens: Tokens) -> None:
    tokens.set_keys(OWN.jwks("ES256"))
    token = jwt.encode({**GOOD}, OWN.private["ES256"], algorithm="ES256").encode()
    assert isinstance(tokens.verify(token), Claims)


def jwks(*entries: object) -> bytes:
    return json.dumps({"keys": entries}).encode()


def test_keys_that_are_no_good_are_left_out() -> None:
    weak = RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key(), as_dict=True)
    curve = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), as_dict=True)
    private = ECAlgorithm.to_jwk(OWN.private["ES256"], as_dict=True)
    bad = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "s"},
        {**OWN.entry("RS256"), "use": "enc", "kid": "e"},
        {**OWN.entry("RS256"), "alg": "HS256", "kid": "h"},
        {**OWN.entry("RS256"), "n": "!", "kid": "n"},
        {**OWN.entry("ES256"), "x": "AAAA", "kid": "x"},
        {**OWN.entry("EdDSA"), "kid": 5},
        {**weak, "kid": "w"},
        {**curve, "kid": "c"},
        {**private, "kid": "p"},
        {},
    ]
    assert parse_keys(jwks(*bad, OWN.entry("ES256"))).keys() == {"ES256"}
    for entry in bad:
        with pytest.raises(WireError, match="no key of RS256, ES256, EdDSA"):
            parse_keys(jwks(entry))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"[" * 9000,
        b'{"keys": 1}',
        b'{"keys": [1]}',
        jwks(OWN.entry("ES256"), OWN.entry("ES256")),
        jwks(*[{}] * 65),
        b" " * MAX_BYTES + b"{}",
    ],
)
def test_what_is_no_jwks_is_refused(data: bytes) -> None:
    with pytest.raises(WireError, match=r"\AJWKS: "):
        parse_keys(data)
