"""Paths at endpoints that get requests as they are, and the one change a body may see."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.adapters.speech import CHAT
from trainmesh.serving.adapters import adapter_for, rename_model, upstream_path
from trainmesh.serving.config.types import EndpointConfig, Runtime


@pytest.mark.parametrize(
    ("runtime", "url", "path"),
    [
        ("openai", "http://h:1", "/v1/chat/completions"),
        ("openai", "http://h:1/", "/v1/chat/completions"),
        ("vllm", "http://h:1/v1", "/v1/chat/completions"),
        ("sglang", "http://h:1/v1/", "/v1/chat/completions"),
        ("tgi", "https://h/gw", "/gw/v1/chat/completions"),
        ("llamacpp", "http://h/a/v1", "/a/v1/chat/completions"),
        ("openai", "http://h/openai", "/openai/v1/chat/completions"),  # KServe's own runtime
        ("ovms", "http://h:8000", "/v3/chat/completions"),
        ("ovms", "http://h:8000/v3", "/v3/chat/completions"),
        ("ovms", "http://h/gw", "/gw/v3/chat/completions"),
        ("torchserve", "http://h:8080", "/predictions/org%2Fm/1.0/v1/chat/completions"),
        (
            "torchserve",
            "http://h:8080/predictions/x/2.1",
            "/predictions/x/2.1/v1/chat/completions",
        ),
    ],
)
def test_where_requests_go(runtime: str, url: str, path: str) -> None:
    endpoint = EndpointConfig(url=url, runtime=Runtime(runtime))
    assert adapter_for(endpoint, "org/m") is None
    assert upstream_path(endpoint, CHAT, "org/m") == path.encode()


def test_the_served_name_is_torchserve_s_and_other_paths_stay() -> None:
    endpoint = EndpointConfig(url="http://h", runtime=Runtime.TORCHSERVE, served_model="s")
    assert upstream_path(endpoint, CHAT, "m").startswith(b"/predictions/s/1.0/v1/")
    plain = EndpointConfig(url="http://h/a")
    assert upstream_path(plain, b"/metrics", "m") == b"/a/metrics"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"model":"a","x":1}', b'{"model":"NEW","x":1}'),
        (b' {\n "x": [1, 2] ,\t"model" : "a" }\n', b' {\n "x": [1, 2] ,\t"model" : "NEW" }\n'),
        (b'{"x":{"model":"a"},"model":null}', b'{"x":{"model":"a"},"model":"NEW"}'),
        (b'{"model":"a","model":["}"]}', b'{"model":"NEW","model":"NEW"}'),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"NEW"}'),
        (b'{"model":"a\\"},","x":"model"}', b'{"model":"NEW","x":"model"}'),
        (b'{"x":"model","y":"a"}', b'{"x":"model","y":"a"}'),
        (b'["model",{"model":"a"}]', b'["model",{"model":"a"}]'),
        (b'{"x":"\xff\\\\","model":"a"}', b'{"x":"\xff\\\\","model":"NEW"}'),
        (b"", b""),
    ],
)
def test_only_the_model_s_name_changes(before: bytes, after: bytes) -> None:
    assert rename_model(before, "NEW") == after


keys = st.sampled_from(["model", "messages", "mod", 'mo"del', "{", "\xfc"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.just("model"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=10,
)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.dictionaries(keys, values, max_size=5), st.text(max_size=8), st.booleans())
@pytest.mark.slow
def test_any_object_differs_in_the_model_only(
    whole: dict[str, Any], name: str, spaced: bool
) -> None:
    before = json.dumps(whole, indent=1 if spaced else None, ensure_ascii=spaced).encode()
    after = json.loads(rename_model(before, name))
    assert after == ({**whole, "model": name} if "model" in whole else whole)
    assert list(after) == list(whole)


def test_a_large_body_is_renamed_in_one_pass() -> None:
    text = "x\\" * (4 << 20)
    before = json.dumps({"prompt": text, "model": "a"}).encode()
    assert json.loads(rename_model(before, "b")) == {"prompt": text, "model": "b"}
