"""Whatever an endpoint sends, in any pieces: an answer of OpenAI's form, or ``AdapterError``."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.adapters.speech import CHAT, COMPLETIONS, EMBEDDINGS, adapter, ask, events, feed
from trainmesh.serving.adapters import AdapterError, Inbound
from trainmesh.serving.config.types import Runtime

TRITON = adapter(Runtime.TRITON)
KSERVE = adapter(Runtime.KSERVE)
HANDLER = adapter(Runtime.TORCHSERVE, "http://h/predictions/x")

ASKED: dict[str, Callable[[], Inbound]] = {
    "triton": lambda: ask(TRITON, CHAT),
    "triton stream": lambda: ask(TRITON, COMPLETIONS, stream=True, stop=["a", "ab"]),
    "kserve": lambda: ask(KSERVE, CHAT),
    "kserve stream": lambda: ask(KSERVE, CHAT, stream=True),
    "kserve embeddings": lambda: ask(KSERVE, EMBEDDINGS),
    "torchserve": lambda: ask(HANDLER, COMPLETIONS),
    "torchserve stream": lambda: ask(HANDLER, CHAT, stream=True, stop="ab"),
}

names = st.sampled_from(
    ["text_output", "error", "finish_reason", "outputs", "name", "datatype", "shape", "data"]
    + ["text", "message", "num_input_tokens", "num_output_tokens"]
)
words = st.sampled_from(["stop", "None", "BYTES", "FP32", "text_output"]) | st.text(max_size=4)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=6),
    max_leaves=12,
)
documents = values.map(lambda value: json.dumps(value).encode())
pieces = st.one_of(
    documents,
    documents.map(lambda data: b"data: " + data + b"\n\n"),
    st.binary(max_size=20),
    st.sampled_from([b"data: ", b"\n\n", b"\r\n", b'{"text_output":"\xe2\x82"}', b'{"text":"']),
)


@pytest.mark.parametrize("kind", ASKED)
@settings(derandomize=True, max_examples=120, deadline=None)
@given(sent=st.lists(pieces, max_size=6))
def test_any_bytes(kind: str, sent: list[bytes]) -> None:
    answer = ASKED[kind]()
    try:
        said = feed(answer, sent)
    except AdapterError as error:
        str(error).encode()
        return
    if answer.streaming:
        if said:
            events(said)
    else:
        assert json.loads(said)["model"] == "m"


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.integers(300, 599), documents | st.binary(max_size=40))
def test_any_error(status: int, body: bytes) -> None:
    answered, document = ask(TRITON, CHAT).error(status, body)
    assert answered >= 400
    assert json.loads(document)["error"]["message"]
