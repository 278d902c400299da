"""TorchServe handlers without OpenAI's API: the answers of its vLLM handler (JSON objects one
after another), of its streaming example (plain text), and its errors."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.adapters.speech import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    adapter,
    ask,
    body,
    feed,
    reason_of,
    text_of,
)
from trainmesh.serving.adapters import AdapterError, Unsupported
from trainmesh.serving.config.types import Runtime

HANDLER = adapter(Runtime.TORCHSERVE, "http://h:8080/predictions/llama")

VLLM = b'{"text": " Gr\xc3\xbc\xc3\x9fe", "tokens": 5}{"text": "\\ud83d\\ude00}", "tokens": 6}\n'
PLAIN = "hello hello Gr\xfc\xdfe ".encode()


def test_the_request_is_what_its_vllm_handler_reads() -> None:
    sent = HANDLER.outbound(COMPLETIONS, body(COMPLETIONS, stop=["x", "y"], temperature=0))
    assert sent.path == b"/predictions/llama"
    assert json.loads(sent.body) == {
        "prompt": "hi",
        "max_tokens": 16,
        "temperature": 0.0,
        "stop": ["x", "y"],
    }


@pytest.mark.parametrize(
    ("data", "text"), [(VLLM, " Gr\xfc\xdfe\U0001f600}"), (PLAIN, "hello hello Gr\xfc\xdfe ")]
)
def test_both_kinds_of_answers_cut_at_every_byte(data: bytes, text: str) -> None:
    for cut in range(len(data) + 1):
        pieces = [data[:cut], data[cut:]]
        stream = feed(ask(HANDLER, CHAT, stream=True), pieces)
        assert text_of(stream) == text
        assert reason_of(stream) == "stop"
        whole = json.loads(feed(ask(HANDLER, CHAT), pieces))
        assert whole["choices"][0]["message"]["content"] == text


def test_the_first_token_does_not_wait_for_the_last() -> None:
    answer = ask(HANDLER, COMPLETIONS, stream=True)
    assert b'"text":"a"' in answer.body(b'{"text": "a", "tokens": 1}')
    assert answer.body(b'{"text": "b", ') == b""
    assert b'"text":"b"' in answer.body(b'"tokens": 2}')


def test_a_stop_ends_the_stream_at_once() -> None:
    answer = ask(HANDLER, COMPLETIONS, stream=True, stop="lo")
    stream = answer.body(b"hello ")
    assert answer.done
    assert text_of(stream) == "hel"
    assert answer.body(b"hello") == b""
    assert answer.end() == b""


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b'{"text": "a"', "in the middle"),
        (b'{"text": "a"}{"te', "in the middle"),
        (b'{"text": "a"} tail', "in the middle"),
        (b'{"code":507,"type":"InternalServerException","message":"Worker died."}', "Worker died"),
        (b'{"n02123045": 0.4}', "no text"),
        (b'{"text": 5}', "no text"),
        (b'{"text":' + b"[" * 100_000 + b"}", "deeply"),
    ],
)
def test_answers_that_make_no_sense(data: bytes, why: str) -> None:
    for streaming in (False, True):
        answer = ask(HANDLER, CHAT, stream=streaming)
        with pytest.raises(AdapterError, match=why):
            feed(answer, [data])


def test_no_embeddings_and_no_endless_object() -> None:
    with pytest.raises(Unsupported, match="embeddings"):
        HANDLER.outbound(EMBEDDINGS, body(EMBEDDINGS))
    answer = ask(HANDLER, CHAT)
    with pytest.raises(AdapterError, match="larger than"):
        feed(answer, [b"{" + b" " * (1 << 20)] * 6)


def test_its_errors() -> None:
    said = b'{"code": 503, "type": "ServiceUnavailableException", "message": "No worker"}'
    status, document = ask(HANDLER, CHAT).error(503, said)
    assert (status, json.loads(document)["error"]["message"]) == (503, "No worker")


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=6), min_size=1, max_size=5), st.integers(1, 7))
def test_objects_in_pieces_of_any_size(texts: list[str], size: int) -> None:
    data = "\n".join(json.dumps({"text": one, "tokens": 1}) for one in texts).encode()
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert text_of(feed(ask(HANDLER, CHAT, stream=True), pieces)) == "".join(texts)


def test_a_stop_in_the_very_last_bytes() -> None:
    cut = "\xe9".encode()[:1]  # becomes U+FFFD only when the answer is complete
    stream = feed(ask(HANDLER, CHAT, stream=True, stop="\ufffd"), [b"ab", cut])
    assert text_of(stream) == "ab"
    assert reason_of(stream) == "stop"
