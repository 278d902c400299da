"""What the router makes of a body: a request or a refusal, the same as Python's json would."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainmesh.serving.proxy.reading.api import Body, parse_body
from trainmesh.serving.refusal import Refusal, RequestRefused

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KNOWN = st.fixed_dictionaries(
    {"model": st.text(max_size=12)},
    optional={
        "stream": VALUES,
        "max_tokens": VALUES,
        "max_completion_tokens": VALUES,
        "prompt_cache_key": VALUES,
        "messages": VALUES,
    },
)


def read(data: bytes) -> Body | Refusal:
    try:
        return parse_body(data)
    except RequestRefused as error:
        return error.refusal


@settings(derandomize=True, max_examples=150, deadline=None)
@given(KNOWN, st.booleans())
def test_what_is_read_is_what_was_said(wish: dict[str, object], ascii_only: bool) -> None:
    body = read(json.dumps(wish, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))
    named = wish.get("model")
    if isinstance(body, Refusal):
        assert body.status == 400
        assert named is not None
        assert not isinstance(named, str)
        return
    assert body.model == (named or "")
    assert body.stream == (wish.get("stream") in (True, "true", "1"))
    whole = [wish.get(name) for name in ("max_completion_tokens", "max_tokens")]
    limits = [each for each in whole if type(each) is int and each > 0]
    if all(each is None or type(each) is int for each in whole):
        assert body.output_tokens == (min(limits[0], 2**31) if limits else 0)
    key = wish.get("prompt_cache_key")
    assert body.prompt_cache_key == (key if isinstance(key, str) else "")


@pytest.mark.parametrize(
    ("members", "stream", "tokens"),
    [
        ('"max_tokens": -1', False, 0),
        ('"max_tokens": 100.0', False, 100),
        ('"max_tokens": "100"', False, 100),
        ('"max_tokens": null, "max_completion_tokens": 7', False, 7),
        ('"max_tokens": [1], "stream": {}', False, 0),
        ('"max_tokens": true', False, 0),
        ('"max_tokens": 1e999', False, 0),
        ('"max_tokens": NaN', False, 0),
        ('"stream": 0', False, 0),
        ('"stream": 1', True, 0),
        ('"stream": "true"', True, 0),
        ('"stream": null, "prompt_cache_key": 5', False, 0),
        ('"messages": "\\ud83d"', False, 0),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "byte-order mark"])
def test_what_endpoints_take_is_taken(members: str, stream: bool, tokens: int, mark: bytes) -> None:
    body = parse_body(mark + b'{"model": "m", ' + members.encode() + b"}")
    assert (body.model, body.stream, body.output_tokens) == ("m", stream, tokens)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 40))
def test_any_bytes_are_a_request_or_a_refusal(junk: bytes, place: int) -> None:
    good = b'{"model":"m","stream":true,"max_tokens":5}'
    for data in (junk, good[:place] + junk + good[place:]):
        body = read(data)
        if isinstance(body, Refusal):
            assert body.status == 400
            assert len(body.message) < 500


def test_the_last_of_equal_names_counts_as_it_does_for_servers_in_python() -> None:
    for data in (b'{"model":"a","model":"b"}', b'{"model":"a","mod\\u0065l":"b"}'):
        assert parse_body(data).model == json.loads(data)["model"] == "b"
