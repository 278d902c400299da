"""Which endpoints a tenant may use, and the reason for each that it may not."""

from typing import Any

import pytest

from trainmesh.errors import ConfigError
from trainmesh.serving.config.types import (
    Config,
    EndpointConfig,
    ModelConfig,
    Runtime,
    TenantConfig,
)
from trainmesh.serving.decide.types import RequestFacts
from trainmesh.serving.identity.access import Access, Grant
from trainmesh.serving.identity.rules import ENDPOINT, REQUEST, TENANT, Rule
from trainmesh.serving.refusal import Refusal

ENDPOINTS = (
    EndpointConfig(url="http://a:1", name="a", zone="eu", revision="r1", runtime=Runtime.VLLM),
    EndpointConfig(url="http://b:1", name="b", zone="us", revision="r2"),
    EndpointConfig(url="http://c:1", name="c", zone="eu", revision="r2", weight=2.5),
    EndpointConfig(url="http://d:1", name="d", standby=True),
)


def access(**tenant: Any) -> Access:
    models = {"m": ModelConfig(endpoints=ENDPOINTS), "n": ModelConfig(endpoints=ENDPOINTS[:1])}
    return Access(Config(version=1, models=models, tenants={"t": TenantConfig(**tenant)}))


def granted(**tenant: Any) -> Grant:
    found = access(**tenant).grant("t", "m")
    assert isinstance(found, Grant)
    return found


def facts(**values: Any) -> RequestFacts:
    return RequestFacts(request_id="1", model="m", **values)


def test_without_limits_all_endpoints_are_allowed() -> None:
    grant = granted()
    assert (grant.allowed, grant.refused, grant.depends) == (None, {}, False)
    assert grant.narrow(facts()) == (None, {})


def test_a_grant_is_made_once() -> None:
    both = access(zones=("eu",))
    assert both.grant("t", "m") is both.grant("t", "m")


@pytest.mark.parametrize(
    ("tenant", "refused"),
    [
        (
            {"zones": ("eu", "ap")},
            {1: "zone us is not among eu, ap", 3: "it has no zone, so it is not among eu, ap"},
        ),
        ({"revisions": {"n": "r9"}}, {}),
        (
            {"revisions": {"m": "r2"}},
            {0: "revision r1 is not r2", 3: "revision (none) is not r2"},
        ),
        ({"rule": "endpoint.weight > 2.0"}, dict.fromkeys((0, 1, 3), "its rule says no")),
        ({"rule": "endpoint.runtime == 'vllm'"}, dict.fromkeys((1, 2, 3), "its rule says no")),
        ({"rule": "!endpoint.standby && endpoint.url != 'http://b:1'"},
         dict.fromkeys((1, 3), "its rule says no")),
        ({"rule": "endpoint.zone in tenant.roles", "roles": ("eu",)},
         dict.fromkeys((1, 3), "its rule says no")),
        ({"rule": "tenant.name == 't' && tenant.priority == 5"}, {}),
        ({"rule": "endpoint.name == 'a' || 1 / (size(endpoint.zone)) == 0", "zones": ("eu",)},
         {1: "zone us is not among eu", 3: "it has no zone, so it is not among eu"}),
        ({"rule": "endpoint.name == 'a' || 1 / (size(endpoint.zone)) == 0"},
         {3: "its rule failed: divide by zero"}),
    ],
)  # fmt: skip
def test_each_endpoint_that_is_refused_has_its_reason(
    tenant: dict[str, Any], refused: dict[int, str]
) -> None:
    grant = granted(**tenant)
    assert grant.refused == refused
    assert grant.allowed == (frozenset(range(4)) - refused.keys() if refused else None)
    assert not grant.depends


def test_a_model_that_is_not_the_tenant_s_is_refused() -> None:
    found = access(models=("n",)).grant("t", "m")
    assert isinstance(found, Refusal)
    assert (found.status, found.code) == (403, "model_not_allowed")
    assert access(models=("n",)).may_see("t", "n")


def test_where_nothing_is_left_the_client_is_told_why() -> None:
    found = access(zones=("ap",)).grant("t", "m")
    assert isinstance(found, Refusal)
    assert found.code == "no_endpoint_allowed"
    assert found.message == (
        "tenant t may use no endpoint of model m: zone eu is not among ap, "
        "zone us is not among ap, it has no zone, so it is not among ap"
    )


def test_a_rule_over_the_request_is_weighed_for_each_request() -> None:
    grant = granted(zones=("eu", "us"), rule="request.prompt_tokens < 100 || endpoint.zone == 'us'")
    assert grant.depends
    assert grant.narrow(facts(prompt_tokens=99))[0] == frozenset((0, 1, 2))
    allowed, refused = grant.narrow(facts(prompt_tokens=100))
    assert allowed == frozenset((1,))
    assert refused == {
        0: "its rule says no",
        2: "its rule says no",
        3: "it has no zone, so it is not among eu, us",
    }
    assert grant.none_allowed(refused).status == 403


def test_all_of_a_request_can_be_read() -> None:
    rule = (
        "request.model == 'm' && request.stream && request.priority == 2 && request.nbytes == 3 "
        "&& request.output_tokens == 4 && request.prompt_tokens == 5"
    )
    known = facts(stream=True, priority=2, nbytes=3, output_tokens=4, prompt_tokens=5)
    grant = granted(rule=rule)
    assert grant.narrow(known)[0] == frozenset(range(4))
    assert grant.narrow(facts())[0] == frozenset()


def test_a_rule_that_fails_refuses() -> None:
    grant = granted(rule="10 / request.nbytes > 1")
    allowed, refused = grant.narrow(facts(nbytes=0))
    assert allowed == frozenset()
    assert set(refused.values()) == {"its rule failed: divide by zero"}
    assert grant.narrow(facts(nbytes=5))[0] == frozenset(range(4))


def test_a_rule_s_cost_is_bounded() -> None:
    nested = "[0,1,2,3,4,5,6,7,8,9].all(a," * 9 + "true" + ")" * 9
    assert Rule(nested).refusal({}) == "its rule failed: Iteration budget exceeded"


def test_a_rule_says_what_it_reads() -> None:
    rule = Rule("endpoint.zone == 'x' || (false && request.stream) || tenant.name == 'y'")
    assert rule.reads == {"endpoint.zone", "request.stream", "tenant.name"}
    assert Rule("true").reads == frozenset()
    for name in (*ENDPOINT, *REQUEST, *TENANT):
        assert Rule(f"type({name}) == int").reads == {name}


@pytest.mark.parametrize(
    "text",
    ["", " ", "1", "'a'", "endpoint", "request.nope", "1 == 'a'", "(" * 4000, "x" * 4096, "\0",
     "true &&", "f(1)", "'\ud800' == ''", "dyn(1)", "import os", "__import__('os')", "-" * 4000],
)  # fmt: skip
def test_what_is_no_rule_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Rule(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
