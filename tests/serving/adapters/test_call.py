"""What of OpenAI's requests has a translation, and that all else is refused by name."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.adapters.speech import CHAT, COMPLETIONS, EMBEDDINGS, body
from trainmesh.serving.adapters import Unsupported
from trainmesh.serving.adapters.call import CHAT_TOKENS, parse_call
from trainmesh.serving.adapters.types import TextCall


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("n", True),
        ("logprobs", 0),
        ("best_of", 3),
        ("logprobs", True),
        ("logprobs", 1),
        ("top_logprobs", 5),
        ("echo", True),
        ("suffix", "x"),
        ("logit_bias", {"50256": -100}),
        ("response_format", {"type": "json_object"}),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("modalities", ["text", "audio"]),
        ("reasoning_effort", "high"),
        ("top_k", 5),
        ("guided_json", {}),
        ("temperature", "hot"),
        ("temperature", 3),
        ("temperature", True),
        ("top_p", 0),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("seed", -1),
        ("stop", ""),
        ("stop", ["x"] * 17),
        ("stop", ["x" * 300]),
        ("stream", 1),
        ("frequency_penalty", 5),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_what_can_not_be_translated_is_refused_by_name(path: bytes, name: str, value: Any) -> None:
    with pytest.raises(Unsupported) as caught:
        parse_call(path, body(path, **{name: value}))
    assert caught.value.param.startswith(name)


def test_values_that_ask_for_nothing_are_accepted() -> None:
    call = parse_call(
        CHAT,
        body(
            CHAT,
            n=1,
            logprobs=False,
            tools=[],
            tool_choice="auto",
            response_format={"type": "text"},
            logit_bias={},
            top_k=None,
            user="u",
            metadata={"a": "b"},
            store=True,
            stop=None,
            stream_options=None,
        ),
    )
    assert isinstance(call, TextCall)
    assert call.prompt == "user: hi\nassistant:"
    assert call.sampling.max_tokens == CHAT_TOKENS
    assert call.sampling.stop == ()


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": "x", "name": "bob"}, "messages[0].name"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls"),
        ({"role": "assistant", "content": None}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0]"),
        (
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "x"},
                    {"type": "image_url", "image_url": {"url": "data:,"}},
                ],
            },
            "messages[0].content[1]",
        ),
        ({"role": 5, "content": "x"}, "messages[0].role"),
    ],
)
def test_messages_that_are_not_plain_text(message: dict[str, Any], param: str) -> None:
    with pytest.raises(Unsupported) as caught:
        parse_call(CHAT, body(CHAT, messages=[message]))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("path", "request_body"),
    [
        (CHAT, b"{}"),
        (CHAT, b'{"model":"m","messages":[]}'),
        (COMPLETIONS, b'{"model":"m"}'),
        (COMPLETIONS, b'{"model":"m","prompt":["a","b"]}'),
        (COMPLETIONS, b'{"model":"m","prompt":[1,2]}'),
        (EMBEDDINGS, b'{"model":"m","input":[]}'),
        (EMBEDDINGS, b'{"model":"m","input":""}'),
        (EMBEDDINGS, b'{"model":"m","input":[1,2]}'),
        (EMBEDDINGS, b'{"model":"m","input":"a","dimensions":8}'),
        (EMBEDDINGS, b'{"model":"m","input":"a","encoding_format":"int8"}'),
        (b"/v1/audio/speech", b'{"model":"m"}'),
        (CHAT, b"[]"),
        (CHAT, b"\xff"),
        (CHAT, b'{"model":"m","messages":[{"role":"user","content":"\xe2\x82"}]}'),
        (CHAT, b'{"a":' * 100_000),
    ],
)
def test_bodies_that_are_no_requests(path: bytes, request_body: bytes) -> None:
    with pytest.raises(Unsupported) as caught:
        parse_call(path, request_body)
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
names = st.sampled_from(["messages", "prompt", "input", "stop", "stream_options", "n", "model"])


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.sampled_from([CHAT, COMPLETIONS, EMBEDDINGS]), names, json_values)
def test_any_json_is_a_call_or_refused(path: bytes, name: str, value: Any) -> None:
    whole = {**json.loads(body(path)), name: value}
    with contextlib.suppress(Unsupported):
        assert parse_call(path, json.dumps(whole).encode()).model == whole["model"]
