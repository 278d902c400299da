"""Whatever is written, a Config comes out or one line of ConfigError."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainmesh.errors import ConfigError
from trainmesh.serving.config.types import Config
from trainmesh.serving.loading.load import loads

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "serve.yaml"
WHOLE: dict[str, Any] = {
    "version": 1,
    "listen": "127.0.0.1:0",
    "models": {
        "m": {
            "endpoints": [
                {"url": "http://127.0.0.1:9001", "zone": "eu", "weight": 1.5, "runtime": "vllm"},
                {"url": "http://[::1]:9002/x", "name": "b", "revision": "r1", "standby": True},
            ],
            "policy": "mesh",
            "aliases": ["n"],
            "shadow": {"policy": "hybrid", "share": 0.5},
            "retry": {"statuses": [500]},
            "eject": {"base_s": 1},
        }
    },
    "tenants": {
        "a": {
            "keys": ["sha256:" + "0" * 64],
            "models": ["m"],
            "zones": ["eu"],
            "revisions": {"m": "r1"},
            "rule": "endpoint.zone == 'eu' && !request.stream",
        }
    },
    "jwt": {"issuer": "https://idp.example", "audience": "x"},
    "admin_keys": ["sha256:" + "1" * 64],
    "limits": {"queue": 3},
    "topology": {"traffic_class": "yield"},
}
ODD: list[Any] = [
    None, True, "", "\0", "\n", " ", "*", "'", "{", "nan", "-1", "1e999", "9" * 400, "0x10", [], {},
    "http://", "http://[", "http://a:b", "https://a:1", "file:", "file:x", "env:", "env:\0",
    "file:\0", "sha256:", "é", "\u2028", "\ud7ff", "/", "..", "a" * 5000, [[]], {"": ""},
    {"a": {"a": []}}, "1 +", "'a' in endpoint", "[1].all(x, true)", "[" * 100, "127.0.0.1:1",
    "[::1]:1", "spiffe://a",
]  # fmt: skip


def whatever(data: bytes) -> Config | str:
    try:
        return loads(data, SOURCE, {"KEY": "sk-0123456789"}, {"mesh", "hybrid"})
    except ConfigError as error:
        message = str(error)
        assert message.startswith(str(SOURCE))
        assert message.isprintable()
        return message


def test_the_whole_one_is_valid() -> None:
    assert isinstance(whatever(yaml.safe_dump(WHOLE).encode()), Config)


def changed_somewhere(value: Any, draw: random.Random) -> Any:
    """A copy in which one thing is replaced, added or left out."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        copy = dict(value)
        match draw.randrange(8):
            case 0:
                del copy[key]
            case 1:
                copy[str(draw.choice(ODD))] = copy.pop(key)
            case _:
                copy[key] = changed_somewhere(value[key], draw)
        return copy
    if isinstance(value, list) and value and draw.random() < 0.9:
        place = draw.randrange(len(value))
        inner = changed_somewhere(value[place], draw)
        return [*value[:place], inner, *value[place + draw.randrange(2) :]]
    return draw.choice(ODD)


@pytest.mark.parametrize("seed", range(10))
def test_changed_trees(seed: int) -> None:
    draw = random.Random(seed)
    refused = 0
    for _ in range(60):
        tree = WHOLE
        for _ in range(draw.randrange(1, 3)):
            tree = changed_somewhere(tree, draw)
        refused += isinstance(whatever(yaml.safe_dump(tree).encode()), str)
    assert refused > 20


@settings(max_examples=150, derandomize=True, deadline=None, database=None,
          suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode())))
def test_any_bytes(data: bytes) -> None:
    whatever(data)


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_damaged_text(data: st.DataObject) -> None:
    text = yaml.safe_dump(WHOLE).encode()
    place = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(place, min(len(text), place + 20)))
    whatever(text[:place] + data.draw(st.binary(max_size=10)) + text[end:])
