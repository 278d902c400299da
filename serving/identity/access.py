"""Which endpoints of a model a tenant's requests may go to, and why not to the others.

A tenant's models, zones, revisions and rule are evaluated once for each model that it asks for.
Only a rule that reads ``request`` is evaluated for each request, once for every group of endpoints
that it can't tell apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from trainmesh.serving.config.types import Config, EndpointConfig, TenantConfig
from trainmesh.serving.decide.types import RequestFacts
from trainmesh.serving.identity.rules import ENDPOINT, REQUEST, Rule
from trainmesh.serving.refusal import Refusal

__all__ = ["ANONYMOUS", "MAX_GROUPS", "Access", "Grant", "groups"]

ANONYMOUS = "anonymous"
"""The tenant of all requests where none is configured."""
MAX_GROUPS = 64
"""Evaluations of a rule for one request, some 10 us each."""
MAX_REASONS = 3


class Grant:
    """The endpoints of one model that a tenant may use.

    Attributes:
        allowed: places of endpoints in the model's list; None: all.
        refused: why, for each of the others.
        depends: on the request, so that ``narrow`` must be asked.
    """

    __slots__ = ("_groups", "_model", "_rule", "_tenant", "allowed", "depends", "refused")

    def __init__(
        self,
        tenant: Mapping[str, object],
        model: str,
        num_endpoints: int,
        refused: Mapping[int, str],
        rule: Rule | None = None,
        rule_groups: Sequence[tuple[Mapping[str, object], tuple[int, ...]]] = (),
    ) -> None:
        self.refused = refused
        self.allowed = frozenset(range(num_endpoints)).difference(refused) if refused else None
        self.depends = rule is not None
        self._tenant = tenant
        self._model = model
        self._rule = rule
        self._groups = rule_groups

    def narrow(self, facts: RequestFacts) -> tuple[frozenset[int] | None, Mapping[int, str]]:
        """``allowed`` and ``refused`` for this request."""
        if self._rule is None:
            return self.allowed, self.refused
        values: dict[str, object] = {
            name: getattr(facts, name.removeprefix("request."))
            for name in self._rule.reads.intersection(REQUEST)
        }
        refused = dict(self.refused)
        for endpoint, places in self._groups:
            reason = self._rule.refusal({**self._tenant, **endpoint, **values})
            if reason:
                for place in places:
                    refused.setdefault(place, reason)
        num_endpoints = sum(len(places) for _, places in self._groups)
        return frozenset(range(num_endpoints)).difference(refused), refused

    def none_allowed(self, refused: Mapping[int, str]) -> Refusal:
        """What a client is told if ``refused`` leaves no endpoint."""
        reasons = list(dict.fromkeys(refused.values()))
        more = ", ..." if len(reasons) > MAX_REASONS else ""
        return Refusal(
            status=403,
            code="no_endpoint_allowed",
            message=f"tenant {self._tenant['tenant.name']} may use no endpoint of model "
            f"{self._model}: {', '.join(reasons[:MAX_REASONS])}{more}",
        )


class Access:
    """The grants of all tenants, each made when it is first asked for."""

    def __init__(self, config: Config) -> None:
        """``config`` has been checked."""
        self._tenants = config.tenants or {ANONYMOUS: TenantConfig()}
        self._models = config.models
        self._grants: dict[tuple[str, str], Grant | Refusal] = {}

    def grant(self, tenant: str, model: str) -> Grant | Refusal:
        """What ``tenant`` may use of ``model``; both are configured names."""
        key = (tenant, model)
        found = self._grants.get(key)
        if found is None:
            found = self._grants[key] = self._grant(tenant, model)
        return found

    def may_see(self, tenant: str, model: str) -> bool:
        """Whether ``model`` is in the tenant's list of models."""
        models = self._tenants[tenant].models
        return not models or model in models

    def _grant(self, name: str, model: str) -> Grant | Refusal:
        if not self.may_see(name, model):
            return Refusal(
                status=403,
                code="model_not_allowed",
                message=f"tenant {name} may not use model {model}",
            )
        tenant = self._tenants[name]
        endpoints = self._models[model].endpoints
        refused = {
            place: reason
            for place, endpoint in enumerate(endpoints)
            if (reason := _standing_refusal(tenant, model, endpoint))
        }
        values = _tenant_values(name, tenant)
        grant = _with_rule(values, model, endpoints, refused, tenant.rule)
        return grant.none_allowed(grant.refused) if grant.allowed == frozenset() else grant


def _with_rule(
    tenant: Mapping[str, object],
    model: str,
    endpoints: Sequence[EndpointConfig],
    refused: dict[int, str],
    text: str,
) -> Grant:
    if not text:
        return Grant(tenant, model, len(endpoints), refused)
    rule = _compiled(text)
    found = groups(rule.reads, endpoints)
    if not rule.reads.isdisjoint(REQUEST):
        return Grant(tenant, model, len(endpoints), refused, rule, found)
    for endpoint, places in found:
        if reason := rule.refusal({**tenant, **endpoint}):
            for place in places:
                refused.setdefault(place, reason)
    return Grant(tenant, model, len(endpoints), refused)


def groups(
    reads: frozenset[str], endpoints: Iterable[EndpointConfig]
) -> list[tuple[Mapping[str, object], tuple[int, ...]]]:
    """The endpoints' places, grouped by the values that a rule which ``reads`` these variables
    sees of them."""
    names = sorted(reads.intersection(ENDPOINT))
    found: dict[tuple[object, ...], list[int]] = {}
    for place, endpoint in enumerate(endpoints):
        key = tuple(getattr(endpoint, name.removeprefix("endpoint.")) for name in names)
        found.setdefault(key, []).append(place)
    return [(dict(zip(names, key, strict=True)), tuple(places)) for key, places in found.items()]


def _standing_refusal(tenant: TenantConfig, model: str, endpoint: EndpointConfig) -> str:
    if tenant.zones and endpoint.zone not in tenant.zones:
        zone = f"zone {endpoint.zone}" if endpoint.zone else "it has no zone, so it"
        return f"{zone} is not among {', '.join(tenant.zones)}"
    pinned = tenant.revisions.get(model)
    if pinned and endpoint.revision != pinned:
        return f"revision {endpoint.revision or '(none)'} is not {pinned}"
    return ""


def _tenant_values(name: str, tenant: TenantConfig) -> dict[str, object]:
    return {
        "tenant.name": name,
        "tenant.roles": list(tenant.roles),
        "tenant.priority": tenant.priority,
    }


@lru_cache(maxsize=1024)
def _compiled(text: str) -> Rule:
    return Rule(text)
