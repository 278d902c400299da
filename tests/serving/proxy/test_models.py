"""``/v1/models`` as the endpoints have it, and adapters that they list."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.proxy.backend import Backend, backends
from tests.serving.running import RunningRouter, ask, running_router, until
from trainmesh.serving.config.types import EndpointConfig, ModelConfig
from trainmesh.serving.signals.listing import MAX_ADAPTERS, cards_in, listing_of

KEYS = {"ALL": "key-of-all", "SOME": "key-of-some", "UPSTREAM": "key-upstream"}
PERMISSION = [{"id": "modelperm-1", "object": "model_permission", "allow_view": True}]


def card(name: str, parent: str | None = None, **more: Any) -> dict[str, Any]:
    """As vLLM has it."""
    return {
        "id": name, "object": "model", "created": 1700000000, "owned_by": "vllm",
        "root": f"/w/{name}", "parent": parent, "max_model_len": 8192,
        "permission": PERMISSION, **more,
    }  # fmt: skip


def listed(*cards: dict[str, Any]) -> bytes:
    return json.dumps({"object": "list", "data": cards}).encode()


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[RunningRouter, list[Backend]]]:
    """Of ``m``: two endpoints that know it as ``base``; the second has an adapter."""
    with backends(3) as made:
        one, two, plain = made
        one.models = listed(card("base", max_model_len=4096), card("other"))
        two.models = listed(card("base"), card("sql-lora", "base"), card("m", "base"))
        models = {
            "m": {
                "endpoints": [
                    {"url": one.url, "served_model": "base", "api_key_env": "UPSTREAM"},
                    {"url": two.url, "served_model": "base", "runtime": "vllm"},
                ],
                "aliases": ["gpt-4"],
                "policy": "round_robin",
                "hedge": {"enabled": False},
            },
            "plain": {"endpoints": [{"url": plain.url}]},
        }
        tenants = {
            "all": {"keys": ["env:ALL"]},
            "some": {"keys": ["env:SOME"], "models": ["plain"]},
        }
        with running_router({"models": models, "tenants": tenants}, env=KEYS) as router:
            until(lambda: "sql-lora" in models_of(router))
            yield router, made


def get(router: RunningRouter, path: str, who: str = "ALL") -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {KEYS[who]}"}
    status, body = ask(router.name, "GET", path, None, headers)
    return status, json.loads(body)


def models_of(router: RunningRouter, who: str = "ALL") -> dict[str, dict[str, Any]]:
    return {each["id"]: each for each in get(router, "/v1/models", who)[1]["data"]}


def post(router: RunningRouter, model: str, who: str = "ALL") -> int:
    headers = {"authorization": f"Bearer {KEYS[who]}"}
    body = json.dumps({"model": model, "messages": []}).encode()
    return ask(router.name, "POST", "/v1/chat/completions", body, headers)[0]


def test_fields_are_the_endpoints(served: tuple[RunningRouter, list[Backend]]) -> None:
    router, _ = served
    found = models_of(router)
    assert set(found) == {"m", "gpt-4", "plain", "sql-lora"}
    wanted = {**card("base"), "max_model_len": 4096}
    assert found["m"] == {**wanted, "id": "m"}, "what fits wherever it goes"
    assert found["gpt-4"] == {**wanted, "id": "gpt-4"}
    assert found["sql-lora"] == card("sql-lora", "m")
    assert found["plain"] == {
        "id": "plain", "object": "model", "created": 0, "owned_by": "trainmesh",
    }  # fmt: skip
    assert get(router, "/v1/models/sql-lora") == (200, found["sql-lora"])
    assert get(router, "/v1/models/other")[0] == 404


def test_an_adapter_goes_where_it_is_by_its_own_name(
    served: tuple[RunningRouter, list[Backend]],
) -> None:
    router, (one, two, _) = served
    for backend in (one, two):
        backend.asked.clear()
    assert [post(router, "sql-lora") for _ in range(6)] == [200] * 6
    assert (len(one.asked), len(two.asked)) == (0, 6)
    assert {json.loads(each.body)["model"] for each in two.asked} == {"sql-lora"}
    assert [post(router, "m") for _ in range(6)] == [200] * 6
    assert one.asked
    assert {json.loads(each.body)["model"] for each in one.asked} == {"base"}
    assert post(router, "other") == 404, "it is no adapter"


def test_who_may_not_see_a_model_does_not_see_its_adapters(
    served: tuple[RunningRouter, list[Backend]],
) -> None:
    router, _ = served
    assert set(models_of(router, "SOME")) == {"plain"}
    assert post(router, "sql-lora", "SOME") == 404
    assert get(router, "/v1/models/sql-lora", "SOME")[0] == 404


def test_the_list_is_asked_for_with_the_endpoints_key(
    served: tuple[RunningRouter, list[Backend]],
) -> None:
    """Health checks send none."""
    _, (one, two, _) = served
    wanted = f"Bearer {KEYS['UPSTREAM']}"
    until(lambda: wanted in {each.header("authorization") for each in one.got}, 30)
    assert {each.header("authorization") for each in two.got} == {None}


def test_an_adapter_that_is_unloaded_is_gone(served: tuple[RunningRouter, list[Backend]]) -> None:
    router, (_, two, _) = served
    before = two.models
    two.models = listed(card("base"), card("new-lora", "base"))
    until(lambda: post(router, "new-lora") == 200, 30)
    assert post(router, "sql-lora") == 404
    two.models = before
    until(lambda: post(router, "sql-lora") == 200, 30)


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b'{"data":{}}', b'{"data":[1,null,{"id":3},{"id":""},{}]}', b"\xff"],
)
def test_what_is_no_list_tells_nothing(body: bytes) -> None:
    assert cards_in(body) == {}


def test_lists_are_bounded() -> None:
    assert list(cards_in(listed(card("a", notes="x" * 5000), card("b")))) == ["b"]
    model = ModelConfig(endpoints=(EndpointConfig(url="http://h:1", name="h"),))
    many = {f"lora-{number:04}": card("x", "m") for number in range(2 * MAX_ADAPTERS)}
    assert len(listing_of("m", model, {"http://h:1": many}).adapters) == MAX_ADAPTERS
