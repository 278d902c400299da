"""Fills in what serve.yaml may leave out, and replaces the names of secrets by their digests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from trainmesh.errors import ConfigError
from trainmesh.serving.config.addresses import parse_url
from trainmesh.serving.config.problem import Problem
from trainmesh.serving.config.types import (
    Config,
    EndpointConfig,
    JwtConfig,
    ModelConfig,
    TenantConfig,
    TlsConfig,
    UpstreamTls,
)
from trainmesh.serving.identity.keys import read_digests, read_key

__all__ = ["complete"]


def complete(config: Config, folder: Path, environ: Mapping[str, str]) -> Config:
    """``config`` with endpoints' names, absolute files and ``sha256:`` keys.

    Raises:
        Problem: an endpoint's URL can't be read, or a key can't be found.
    """
    here = _Here(folder, environ)
    return replace(
        config,
        models={name: here.model(name, model) for name, model in config.models.items()},
        tenants={name: here.tenant(name, tenant) for name, tenant in config.tenants.items()},
        admin_keys=here.keys(config.admin_keys, "admin_keys"),
        tls=config.tls and here.listener_tls(config.tls),
        jwt=config.jwt and here.jwt(config.jwt),
        ledger=replace(config.ledger, dir=here.file(config.ledger.dir)),
        topology=replace(config.topology, file=here.file(config.topology.file)),
        audit=here.file(config.audit),
    )


class _Here:
    """The folder that files are relative to, and the variables."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._environ = environ

    def file(self, path: str) -> str:
        return str(self._folder / path) if path else ""

    def model(self, name: str, model: ModelConfig) -> ModelConfig:
        endpoints = tuple(
            self._endpoint(endpoint, "models", name, "endpoints", place)
            for place, endpoint in enumerate(model.endpoints)
        )
        return replace(model, endpoints=endpoints, session_header=model.session_header.lower())

    def _endpoint(self, endpoint: EndpointConfig, *path: str | int) -> EndpointConfig:
        try:
            url = parse_url(endpoint.url)
        except ConfigError as error:
            raise Problem(str(error), *path, "url") from error
        if endpoint.api_key_env:
            try:
                read_key(endpoint.api_key_env, self._environ)
            except ConfigError as error:
                raise Problem(str(error), *path, "api_key_env") from error
        return replace(
            endpoint, name=endpoint.name or url.authority, tls=self._upstream_tls(endpoint.tls)
        )

    def _upstream_tls(self, tls: UpstreamTls) -> UpstreamTls:
        return replace(tls, ca=self.file(tls.ca), cert=self.file(tls.cert), key=self.file(tls.key))

    def listener_tls(self, tls: TlsConfig) -> TlsConfig:
        return TlsConfig(
            cert=self.file(tls.cert), key=self.file(tls.key), client_ca=self.file(tls.client_ca)
        )

    def tenant(self, name: str, tenant: TenantConfig) -> TenantConfig:
        return replace(tenant, keys=self.keys(tenant.keys, "tenants", name, "keys"))

    def keys(self, sources: tuple[str, ...], *path: str | int) -> tuple[str, ...]:
        digests: list[str] = []
        for place, source in enumerate(sources):
            try:
                digests += read_digests(source, self._folder, self._environ)
            except ConfigError as error:
                raise Problem(str(error), *path, place) from error
        return tuple(f"sha256:{one}" for one in digests)

    def jwt(self, jwt: JwtConfig) -> JwtConfig:
        kind, _, path = jwt.jwks.partition(":")
        return replace(jwt, jwks=f"file:{self.file(path)}") if kind == "file" else jwt
