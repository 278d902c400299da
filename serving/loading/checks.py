"""Checks of a complete Config beyond its types: names exist, are unique and fit together."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from msgspec.structs import asdict

from trainmesh.errors import ConfigError
from trainmesh.serving.config.addresses import (
    OPENAI_ROOTS,
    Listener,
    call_in,
    parse_listener,
    parse_url,
    same_server,
)
from trainmesh.serving.config.problem import ConfigPath, Problem, near
from trainmesh.serving.config.types import (
    ANY,
    Config,
    CorsConfig,
    EjectConfig,
    EndpointConfig,
    ModelConfig,
    Runtime,
)
from trainmesh.serving.identity.certificates import FileProblem
from trainmesh.serving.identity.tls import ServerTls, UpstreamSide
from trainmesh.serving.loading.tenants import check_tenants
from trainmesh.store.address import parse_url as parse_etcd_url

__all__ = ["check"]

FIELD_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]*\Z", re.ASCII)
HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z", re.ASCII)
METHOD = re.compile(r"[A-Z]+\Z", re.ASCII)
ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9._~%\[\]:-]+\Z", re.ASCII)
NO_PATTERN = (
    f"must not hold {ANY}: it is a name that clients ask for, not a pattern; a request that names "
    "no model goes to the only one there is"
)
LABEL = re.compile(r"[!-~]*\Z", re.ASCII)


def check(config: Config, policies: Collection[str] | None) -> None:
    """Check ``config``, which must be complete.

    Raises:
        Problem: the first thing that is wrong.
    """
    _check_listeners(config)
    _check_names(config.models)
    for name, model in config.models.items():
        _check_model(model, "models", name)
        _check_policies(name, model, policies)
    check_tenants(config)
    _check_limits(config)
    _check_services(config)
    _check_tls(config)
    if config.cors is not None:
        _check_cors(config.cors)


def _check_cors(cors: CorsConfig) -> None:
    for place, origin in enumerate(cors.origins):
        if origin == ANY and cors.credentials:
            raise Problem(
                "must not be * beside credentials: any page could then ask in its reader's name; "
                "write the origins",
                *("cors", "origins", place),
            )
        if origin != ANY and not ORIGIN.match(origin):
            raise Problem(
                "must be scheme://host[:port] without a path, such as https://app.example, or *",
                *("cors", "origins", place),
            )
    for name, pattern, what in (
        ("methods", METHOD, "a method, such as POST"),
        ("headers", HEADER, "the name of a header, or *"),
        ("expose_headers", HEADER, "the name of a header"),
    ):
        for place, value in enumerate(getattr(cors, name)):
            if not pattern.match(value):
                raise Problem(f"must be {what}", "cors", name, place)


def _check_listeners(config: Config) -> None:
    listen = _listener(config.listen, "listen")
    admin = _listener(config.admin, "admin")
    if not listen.loopback:
        if config.tls is None and not config.insecure:
            raise Problem(
                "beyond loopback, give tls: or write insecure: true (keys and prompts are then "
                "sent in the clear)",
                "listen",
            )
        if not config.tenants and config.jwt is None:
            raise Problem(
                "beyond loopback, say who may ask: give tenants: with keys, or jwt:", "listen"
            )
    if not admin.loopback and not (config.insecure and _has_admins(config)):
        raise Problem(
            "must be a loopback address, because it is plain HTTP; or write insecure: true and "
            "give admin_keys",
            "admin",
        )
    if listen.port and listen.overlaps(admin):
        raise Problem("is the same address as listen; give it another port", "admin")


def _has_admins(config: Config) -> bool:
    return bool(config.admin_keys) or any(
        "admin" in tenant.roles for tenant in config.tenants.values()
    )


def _listener(text: str, name: str) -> Listener:
    try:
        return parse_listener(text)
    except ConfigError as error:
        raise Problem(str(error), name) from error


def _check_names(models: Mapping[str, ModelConfig]) -> None:
    owner: dict[str, str] = {}
    for name, model in models.items():
        if ANY in name:
            raise Problem(NO_PATTERN, "models", name)
        for place, alias in enumerate(model.aliases):
            path = ("models", name, "aliases", place)
            if ANY in alias:
                raise Problem(NO_PATTERN, *path)
            if alias in models:
                raise Problem(f"{alias} is the name of a model; an alias must be another", *path)
            if alias in owner:
                raise Problem(f"{alias} is an alias of model {owner[alias]} already", *path)
            owner[alias] = name


def _check_model(model: ModelConfig, *path: str) -> None:
    _check_endpoints(model.endpoints, *path)
    _check_eject(model.eject, *path, "eject")
    if not FIELD_NAME.match(model.session_header):
        raise Problem("must be the name of an HTTP header", *path, "session_header")


def _check_endpoints(endpoints: tuple[EndpointConfig, ...], *path: str) -> None:
    names: dict[str, int] = {}
    urls: dict[str, int] = {}
    for place, endpoint in enumerate(endpoints):
        here: ConfigPath = (*path, "endpoints", place)
        _check_endpoint(endpoint, *here)
        url = parse_url(endpoint.url)
        for what, value, seen in (
            ("url", same_server(url), urls),
            ("name", endpoint.name, names),
        ):
            if value in seen:
                raise Problem(
                    f"is that of endpoints[{seen[value]}] already; each must have its own",
                    *here,
                    what,
                )
            seen[value] = place
    if all(endpoint.standby for endpoint in endpoints):
        raise Problem("all are on standby; one at least must not be", *path, "endpoints")


def _check_endpoint(endpoint: EndpointConfig, *path: str | int) -> None:
    for what in ("name", "node", "zone", "revision"):
        if not LABEL.match(getattr(endpoint, what)):
            raise Problem("must be of printable ASCII characters without spaces", *path, what)
    _check_path(endpoint, *path, "url")
    if endpoint.metrics:
        try:
            parse_url(endpoint.metrics)
        except ConfigError as error:
            raise Problem(str(error), *path, "metrics") from error
    given = [name for name, value in asdict(endpoint.tls).items() if value]
    if given and not parse_url(endpoint.url).tls:
        raise Problem("is for an url that begins with https://", *path, "tls", given[0])
    if endpoint.tls.key and not endpoint.tls.cert:
        raise Problem("is of no use without cert", *path, "tls", "key")
    if given:
        try:
            UpstreamSide(endpoint.tls, "")
        except FileProblem as problem:
            raise Problem(str(problem), *path, "tls", problem.field) from problem


def _check_path(endpoint: EndpointConfig, *path: str | int) -> None:
    base = parse_url(endpoint.url).path
    if call := call_in(base):
        what = f"must end before {call}: a request's own path is added, not {ascii(base[:80])}"
        raise Problem(what, *path)
    if endpoint.runtime in (Runtime.TRITON, Runtime.KSERVE) and base.endswith(OPENAI_ROOTS):
        what = f"must end before {base[-3:]}: runtime {endpoint.runtime} has no such paths"
        raise Problem(what, *path)


def _check_eject(eject: EjectConfig, *path: str) -> None:
    if eject.base_s > eject.max_s:
        raise Problem(f"must be at most max_s, which is {eject.max_s:g}", *path, "base_s")


def _check_policies(name: str, model: ModelConfig, policies: Collection[str] | None) -> None:
    used: list[tuple[str, tuple[str, ...]]] = [(model.policy, ("policy",))]
    if model.shadow is not None:
        used.append((model.shadow.policy, ("shadow", "policy")))
        if model.shadow.policy == model.policy:
            raise Problem(
                "is the model's own policy; a shadow must be another",
                *("models", name, "shadow", "policy"),
            )
    for policy, path in used:
        if policies is not None and policy not in policies:
            raise Problem(f"no policy {policy}{near(policy, policies)}", "models", name, *path)


def _check_tls(config: Config) -> None:
    if config.tls is not None:
        try:
            ServerTls(config.tls)
        except FileProblem as problem:
            field = "client_ca" if problem.field == "ca" else problem.field
            raise Problem(str(problem), "tls", field) from problem


def _check_limits(config: Config) -> None:
    limits = config.limits
    if limits.buffered_bytes < limits.body_bytes:
        raise Problem(
            f"must be at least body_bytes, which is {limits.body_bytes}, or no such body fits",
            *("limits", "buffered_bytes"),
        )


def _check_services(config: Config) -> None:
    for text, parse, path in (
        (config.telemetry.otlp, parse_url, ("telemetry", "otlp")),
        (config.routers.etcd, parse_etcd_url, ("routers", "etcd")),
    ):
        if text:
            try:
                parse(text)
            except ConfigError as error:
                raise Problem(str(error), *path) from error
    if config.topology.file and config.topology.job:
        raise Problem("is given beside file; give one of them", "topology", "job")
