"""What the router makes of a body: a request or a refusal, the same as Python's json would."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from trainmesh.serving.proxy.answers import Refusal
from trainmesh.serving.proxy.api import Body, parse_body

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
    except Refusal as refusal:
        return refusal


@settings(derandomize=True, max_examples=150, deadline=None)
@given(KNOWN, st.booleans())
def test_what_is_read_is_what_was_said(wish: dict[str, object], ascii_only: bool) -> None:
    body = read(json.dumps(wish, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))
    if isinstance(body, Refusal):
        assert body.status == 400
        return
    assert body.model == wish["model"]
    for name in ("stream", "max_tokens", "max_completion_tokens", "prompt_cache_key"):
        assert getattr(body, name) == wish.get(name)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 40))
def test_any_bytes_are_a_request_or_a_refusal(junk: bytes, place: int) -> None:
    good = b'{"model":"m","stream":true,"max_tokens":5}'
    for data in (junk, good[:place] + junk + good[place:]):
        body = read(data)
        if isinstance(body, Refusal):
            assert body.status == 400
            assert len(str(body)) < 500


def test_the_last_of_equal_names_counts_as_it_does_for_servers_in_python() -> None:
    for data in (b'{"model":"a","model":"b"}', b'{"model":"a","mod\\u0065l":"b"}'):
        assert parse_body(data).model == json.loads(data)["model"] == "b"
