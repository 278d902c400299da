"""Checks of tenants: who they are, and that what they may use exists."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

from trainmesh.errors import ConfigError
from trainmesh.serving.config.addresses import parse_url
from trainmesh.serving.config.problem import ConfigPath, Problem, near
from trainmesh.serving.config.types import Config, JwtConfig
from trainmesh.serving.identity.access import MAX_GROUPS, groups
from trainmesh.serving.identity.rules import REQUEST, Rule

__all__ = ["check_tenants"]


def check_tenants(config: Config) -> None:
    """Check tenants, keys of admins and the issuer of tokens.

    Raises:
        Problem: the first thing that is wrong.
    """
    _check_credentials(config)
    zones = {endpoint.zone for model in config.models.values() for endpoint in model.endpoints}
    num_kinds = cache(lambda reads, model: len(groups(reads, config.models[model].endpoints)))
    for name, tenant in config.tenants.items():
        path = ("tenants", name)
        for place, model in enumerate(tenant.models):
            _check_known(model, config.models, "model", *path, "models", place)
        for place, zone in enumerate(tenant.zones):
            _check_known(zone, zones - {""}, "endpoint in zone", *path, "zones", place)
        for model, revision in tenant.revisions.items():
            _check_known(model, config.models, "model", *path, "revisions", model)
            revisions = {one.revision for one in config.models[model].endpoints} - {""}
            _check_known(revision, revisions, "endpoint of revision", *path, "revisions", model)
        _check_rule(tenant.rule, config.models, num_kinds, *path, "rule")
    if config.jwt is not None:
        _check_jwt(config.jwt)


def _check_known(name: str, known: Iterable[str], what: str, *path: str | int) -> None:
    if name not in known:
        raise Problem(f"there is no {what} {name}{near(name, known)}", *path)


def _check_credentials(config: Config) -> None:
    owner: dict[str, str] = {}
    admin: ConfigPath = ("admin_keys",)
    _take(config.admin_keys, owner, "admin_keys", *admin)
    for name, tenant in config.tenants.items():
        path = ("tenants", name)
        _take(tenant.keys, owner, f"tenant {name}", *path, "keys")
        _take(tenant.subjects, owner, f"tenant {name}", *path, "subjects")
        if tenant.subjects and config.jwt is None and not (config.tls and config.tls.client_ca):
            raise Problem(
                "nobody can show one: give jwt:, or tls: with client_ca", *path, "subjects"
            )
        if not tenant.keys and not tenant.subjects:
            raise Problem("nobody can be this tenant: give keys or subjects", *path)


def _take(credentials: Iterable[str], owner: dict[str, str], name: str, *path: str | int) -> None:
    for one in credentials:
        if owner.setdefault(one, name) != name:
            raise Problem(f"one is that of {owner[one]} too; each must be in one place", *path)


def _check_rule(
    text: str,
    models: Iterable[str],
    num_kinds: Callable[[frozenset[str], str], int],
    *path: str,
) -> None:
    if not text:
        return
    try:
        rule = Rule(text)
    except ConfigError as error:
        raise Problem(str(error), *path) from error
    if rule.reads.isdisjoint(REQUEST):
        return
    for model in models:
        if num_kinds(rule.reads, model) > MAX_GROUPS:
            raise Problem(
                f"reads request, and tells {num_kinds(rule.reads, model)} kinds of endpoints of "
                f"model {model} apart; at most {MAX_GROUPS} are evaluated for a request: use zone "
                "or revision",
                *path,
            )


def _check_jwt(jwt: JwtConfig) -> None:
    for text, name in ((jwt.issuer, "issuer"), (jwt.jwks, "jwks")):
        if name == "jwks" and (not text or text.startswith("file:")):
            continue
        try:
            url = parse_url(text)
        except ConfigError as error:
            raise Problem(str(error), "jwt", name) from error
        if not url.tls and not url.loopback:
            raise Problem("must begin with https:// (http:// is for loopback)", "jwt", name)
