"""Who asks: by key, token or certificate; and who may change things."""

import hashlib
import os
import stat
import time
from pathlib import Path

import msgspec
import pytest

from tests.serving.identity.issuer import CONFIG, Issuer
from trainmesh.errors import ConfigError
from trainmesh.serving.config.types import (
    Config,
    EndpointConfig,
    JwtConfig,
    ModelConfig,
    TenantConfig,
)
from trainmesh.serving.identity import admin_token
from trainmesh.serving.identity import authenticator as gate_module
from trainmesh.serving.identity.authenticator import AdminIdentity, Authenticator, Tenant
from trainmesh.serving.refusal import Refusal

OWN = Issuer()
KEY, ADMIN_KEY = b"sk-alpha-0123", b"sk-admin-0123"
MODELS = {"m": ModelConfig(endpoints=(EndpointConfig(url="http://a:1"),))}


def hashed(key: bytes) -> str:
    return f"sha256:{hashlib.sha256(key).hexdigest()}"


def config(jwt: JwtConfig | None = None, **tenants: TenantConfig) -> Config:
    return Config(
        version=1, models=MODELS, tenants=tenants, jwt=jwt, admin_keys=(hashed(ADMIN_KEY),)
    )


ALPHA = TenantConfig(keys=(hashed(KEY),))
BETA = TenantConfig(subjects=("alice", "spiffe://x/beta"), roles=("admin",))


def name(found: Tenant | Refusal) -> str:
    return found.name if isinstance(found, Tenant) else found.code


def test_without_tenants_everybody_is_anonymous() -> None:
    authenticator = Authenticator(config())
    assert name(authenticator.identify(None)) == "anonymous"
    assert name(authenticator.identify(b"Bearer whatever")) == "anonymous"
    assert authenticator.identify(None) is authenticator.identify(b"x", ("spiffe://x",))


def test_a_key_is_its_tenant() -> None:
    authenticator = Authenticator(config(a=ALPHA))
    for header in (b"Bearer " + KEY, b"bearer  " + KEY + b" ", b"BEARER " + KEY):
        for _ in range(2):  # the second time from memory
            assert name(authenticator.identify(header)) == "a"


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        KEY,
        b"Basic " + KEY,
        b"Bearer" + KEY,
        b"Bearer " + KEY[:-1],
        b"Bearer " + KEY + b"4",
        b"Bearer x " + KEY,
        b"Bearer " + hashed(KEY).encode(),
        b"Bearer " + ADMIN_KEY,
        b"Bearer " + KEY + b" " * 9000,
        b"Bearer a.b.c",
    ],
)
def test_anything_else_is_refused_in_openai_s_form(header: bytes | None) -> None:
    authenticator = Authenticator(config(a=ALPHA))
    found = authenticator.identify(header)
    assert isinstance(found, Refusal)
    assert (found.status, found.challenge) == (401, b'Bearer realm="trainmesh"')
    error = msgspec.json.decode(found.body)["error"]
    assert error["code"] == "invalid_api_key"
    assert error["type"] == "authentication_error"
    assert error.keys() == {"message", "type", "param", "code"}
    assert KEY.decode() not in repr(error)


def test_a_token_is_the_tenant_of_its_subject_until_it_expires() -> None:
    now_s = time.time()
    clock = [now_s]
    authenticator = Authenticator(config(CONFIG, b=BETA), unix_s=lambda: clock[0])
    header = b"Bearer " + OWN.token(roles=["x"], exp=int(now_s) + 30)
    assert name(authenticator.identify(header)) == "invalid_token"
    authenticator.set_keys(OWN.jwks())
    found = authenticator.identify(header)
    assert isinstance(found, Tenant)
    assert (found.name, found.roles, found.subject) == ("b", frozenset(("x", "admin")), "alice")
    assert authenticator.identify(header) is found
    clock[0] += 31
    assert authenticator.identify(header) is not found, "it was remembered too long"


def test_new_keys_of_the_issuer_count_at_once_for_remembered_tokens() -> None:
    authenticator = Authenticator(config(CONFIG, b=BETA))
    authenticator.set_keys(OWN.jwks())
    header = b"Bearer " + OWN.token()
    assert name(authenticator.identify(header)) == "b"
    authenticator.set_keys(Issuer().jwks())
    assert name(authenticator.identify(header)) == "invalid_token"


def test_a_valid_token_of_nobody_is_forbidden() -> None:
    authenticator = Authenticator(config(CONFIG, b=BETA))
    authenticator.set_keys(OWN.jwks())
    found = authenticator.identify(b"Bearer " + OWN.token(sub="mallory"))
    assert isinstance(found, Refusal)
    assert (found.status, found.code, found.challenge) == (403, "tenant_unknown", b"")


def test_with_an_issuer_and_no_tenants_a_token_is_enough_and_needed() -> None:
    authenticator = Authenticator(config(CONFIG))
    authenticator.set_keys(OWN.jwks())
    assert name(authenticator.identify(None)) == "invalid_api_key"
    found = authenticator.identify(b"Bearer " + OWN.token())
    assert isinstance(found, Tenant)
    assert (found.name, found.subject) == ("anonymous", "alice")


def test_a_certificate_is_the_tenant_where_the_header_names_none() -> None:
    authenticator = Authenticator(config(a=ALPHA, b=BETA))
    peer = ("other.example", "spiffe://x/beta")
    assert name(authenticator.identify(None, peer)) == "b"
    assert name(authenticator.identify(b"Bearer EMPTY-KEY", peer)) == "b"
    assert name(authenticator.identify(b"Bearer " + KEY, peer)) == "a"
    assert name(authenticator.identify(b"Bearer EMPTY-KEY")) == "invalid_api_key"
    assert name(authenticator.identify(None, ("spiffe://x/beta/more",))) == "invalid_api_key"


def test_memory_is_bounded_and_wrong_headers_take_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "MAX_KNOWN", 3)
    authenticator = Authenticator(config(CONFIG, b=BETA))
    authenticator.set_keys(OWN.jwks())
    headers = [b"Bearer " + OWN.token("EdDSA", jti=str(number)) for number in range(5)]
    found = [authenticator.identify(header) for header in headers]
    for number in range(10):
        authenticator.identify(b"Bearer wrong.wrong.%d" % number)
    again = [
        authenticator.identify(header) is one
        for header, one in zip(headers[2:], found[2:], strict=True)
    ]
    assert again == [True] * 3
    assert authenticator.identify(headers[0]) is not found[0], "the oldest was forgotten"


def test_admins() -> None:
    authenticator = Authenticator(config(CONFIG, a=ALPHA, b=BETA))
    authenticator.set_keys(OWN.jwks())
    digest = hashlib.sha256(ADMIN_KEY).hexdigest()
    for header, peer, who in (
        (b"Bearer " + ADMIN_KEY, (), f"key sha256:{digest[:12]}"),
        (b"Bearer " + OWN.token(), (), "tenant b (alice)"),
        (None, ("spiffe://x/beta",), "tenant b (spiffe://x/beta)"),
    ):
        assert authenticator.authorize_admin(header, peer) == AdminIdentity(who)
    for header, status in ((None, 401), (b"Bearer x", 401), (b"Bearer " + KEY, 403)):
        refused = authenticator.authorize_admin(header)
        assert isinstance(refused, Refusal)
        assert refused.status == status


def test_a_token_s_own_role_makes_an_admin() -> None:
    authenticator = Authenticator(config(CONFIG))
    authenticator.set_keys(OWN.jwks())
    assert isinstance(authenticator.authorize_admin(b"Bearer " + OWN.token()), Refusal)
    assert isinstance(
        authenticator.authorize_admin(b"Bearer " + OWN.token(roles=["admin"])), AdminIdentity
    )


def test_the_anonymous_are_no_admins_but_the_run_directory_has_a_token(tmp_path: Path) -> None:
    authenticator = Authenticator(config(), admin_digests=[admin_token.create(tmp_path)])
    refused = authenticator.authorize_admin(None)
    assert isinstance(refused, Refusal)
    assert refused.status == 401
    token = admin_token.read(tmp_path)
    assert isinstance(authenticator.authorize_admin(f"Bearer {token}".encode()), AdminIdentity)
    mode = stat.S_IMODE(os.stat(tmp_path / admin_token.FILE).st_mode)
    assert mode == 0o600
    admin_token.create(tmp_path)
    assert admin_token.read(tmp_path) != token


def test_a_token_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / admin_token.FILE).symlink_to(target)
    admin_token.create(tmp_path)
    assert not target.exists()
    with pytest.raises(ConfigError, match="is the router running"):
        admin_token.read(tmp_path / "no")
