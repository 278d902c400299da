"""Triton's generate extension: requests as both LLM backends read them, and answers as documented
(extension_generate.md), recorded in TensorRT-LLM's and vLLM's backends, and broken."""

import json
from typing import Any

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
    events,
    feed,
    reason_of,
    text_of,
)
from trainmesh.serving.adapters import AdapterError
from trainmesh.serving.config.types import Runtime

TRITON = adapter(Runtime.TRITON)

# The README of tensorrtllm_backend.
TRTLLM = json.dumps(
    {
        "model_name": "ensemble",
        "model_version": "1",
        "sequence_end": False,
        "sequence_id": 0,
        "sequence_start": False,
        "text_output": "\n\nMachine learning is a method of learning",
    }
).encode()


def event(text: object, **more: Any) -> bytes:
    """An event as Triton's http_server.cc writes it."""
    said = {"model_name": "vllm", "model_version": "1", "text_output": text, **more}
    return b"data: " + json.dumps(said, ensure_ascii=False).encode() + b"\n\n"


def vllm_event(text: str, reason: str = "None", tokens: int = 1) -> bytes:
    return event(text, finish_reason=reason, num_input_tokens=7, num_output_tokens=tokens)


STREAM = vllm_event("Gr\xfc\xdfe") + vllm_event(" \U0001f600") + vllm_event("", "length", 0)


def test_one_request_serves_both_backends() -> None:
    sent = TRITON.outbound(
        CHAT,
        body(
            CHAT,
            messages=[
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
            ],
            max_completion_tokens=9,
            temperature=0,
            top_p=0.5,
            seed=3,
            stop=["X", "Y"],
            stream=True,
        ),
    )
    assert (sent.path, sent.content_type) == (
        b"/v2/models/m/generate_stream",
        b"application/json",
    )
    request = json.loads(sent.body)
    sampling = json.loads(request.pop("sampling_parameters"))
    assert sampling == {
        "max_tokens": 9,
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 3,
        "stop": ["X", "Y"],
    }
    assert request == {
        "text_input": "system: be brief\nuser: a\nassistant: b\nuser: c\nassistant:",
        "stream": True,
        "exclude_input_in_output": True,
        "return_finish_reason": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
        "bad_words": "",
        "stop_words": "",  # a list would be refused as a request parameter by Triton
        "max_tokens": 9,
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 3,
        "random_seed": 3,
    }


def test_one_stop_reaches_both_backends() -> None:
    sent = TRITON.outbound(COMPLETIONS, body(COMPLETIONS, stop="\n"))
    request = json.loads(sent.body)
    assert sent.path == b"/v2/models/m/generate"
    assert request["stop_words"] == "\n"
    assert json.loads(request["sampling_parameters"]) == {"max_tokens": 16, "stop": ["\n"]}


def test_the_url_s_path_and_the_served_name_are_in_the_path() -> None:
    far = adapter(Runtime.TRITON, "http://h/gw/", served_model="org/x y")
    sent = far.outbound(COMPLETIONS, body(COMPLETIONS))
    assert sent.path == b"/gw/v2/models/org%2Fx%20y/generate"


def test_documented_answer_becomes_a_chat_completion() -> None:
    answer = ask(TRITON, CHAT)
    assert not answer.streaming
    assert json.loads(feed(answer, [TRTLLM])) == {
        "id": "chatcmpl-r1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "\n\nMachine learning is a method of learning",
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
    }


def test_counts_become_usage_and_tell_the_reason() -> None:
    whole = b'{"text_output":["a b"],"num_input_tokens":5,"num_output_tokens":[16]}'
    got = json.loads(feed(ask(TRITON, COMPLETIONS), [whole]))
    assert got["object"] == "text_completion"
    assert got["id"] == "cmpl-r1"
    assert got["usage"] == {"prompt_tokens": 5, "completion_tokens": 16, "total_tokens": 21}
    assert got["choices"] == [
        {"index": 0, "text": "a b", "logprobs": None, "finish_reason": "length"}
    ]


def test_a_stream_cut_at_every_byte() -> None:
    expected = feed(ask(TRITON, CHAT, stream=True), [STREAM])
    assert text_of(expected) == "Gr\xfc\xdfe \U0001f600"
    assert reason_of(expected) == "length"
    first, *_ = events(expected)
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    for cut in range(len(STREAM) + 1):
        pieces = [STREAM[:cut], STREAM[cut:]]
        assert feed(ask(TRITON, CHAT, stream=True), pieces) == expected
    single = [STREAM[at : at + 1] for at in range(len(STREAM))]
    assert feed(ask(TRITON, CHAT, stream=True), single) == expected


def test_crlf_comments_and_other_fields() -> None:
    data = b": hello\r\nevent: x\r\n" + STREAM.replace(b"\n\n", b"\r\n\r\n")
    assert text_of(feed(ask(TRITON, COMPLETIONS, stream=True), [data])) == "Gr\xfc\xdfe \U0001f600"


def test_usage_at_the_end_of_a_stream_only_if_asked() -> None:
    asked = ask(TRITON, CHAT, stream=True, stream_options={"include_usage": True})
    *_, last = events(feed(asked, [STREAM]))
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert b"usage" not in feed(ask(TRITON, CHAT, stream=True), [STREAM])
    # TensorRT-LLM's events don't say whether counts add up, so none are made of them.
    silent = event("a", num_input_tokens=1, num_output_tokens=1)
    asked = ask(TRITON, CHAT, stream=True, stream_options={"include_usage": True})
    assert b"usage" not in feed(asked, [silent])


def test_a_character_cut_between_two_tensors() -> None:
    data = event("@@") + event("@@")
    euro = "\u20ac".encode()
    data = data.replace(b"@@", euro[:2], 1).replace(b"@@", euro[2:] + b"!", 1)
    assert text_of(feed(ask(TRITON, COMPLETIONS, stream=True), [data])) == "\u20ac!"
    lost = event("@@").replace(b"@@", euro[:2]) + event("b")
    assert text_of(feed(ask(TRITON, COMPLETIONS, stream=True), [lost])) == "\ufffdb"
    cut = event("@@").replace(b"@@", b"a" + euro[:2])
    assert text_of(feed(ask(TRITON, COMPLETIONS, stream=True), [cut])) == "a\ufffd"
    whole = cut.removeprefix(b"data: ").strip()
    got = json.loads(feed(ask(TRITON, COMPLETIONS), [whole]))
    assert got["choices"][0]["text"] == "a\ufffd"


@pytest.mark.parametrize("escape", [r"\ud800", r"\udc41", r"\udfff\ud800", r"\u0000"])
def test_odd_escapes_do_not_break_the_answer(escape: str) -> None:
    whole = f'{{"text_output":"a{escape}b"}}'.encode()
    text = json.loads(feed(ask(TRITON, COMPLETIONS), [whole]))["choices"][0]["text"]
    assert text[0] + text[-1] == "ab"
    text.encode()


def test_several_stops_end_the_stream_at_once() -> None:
    answer = ask(TRITON, COMPLETIONS, stream=True, stop=["END", "ENOUGH"])
    first = answer.body(event("one E"))
    assert b'"text":"one "' in first
    second = answer.body(event("N") + event("Ds") + event("three"))
    assert answer.done
    assert text_of(first + second) == "one "
    assert reason_of(first + second) == "stop"
    assert answer.body(event("four")) == b""
    assert answer.end() == b""


def test_what_only_looked_like_a_stop_is_shown() -> None:
    answer = ask(TRITON, COMPLETIONS, stream=True, stop=["END", "ENOUGH"])
    assert text_of(feed(answer, [event("the EN"), event("GINE E")])) == "the ENGINE E"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"error":"generate expects model to produce exactly 1 response"}', "exactly 1"),
        (b'{"model_name":"resnet","model_version":"1"}', "text_output"),
        (b'{"text_output":["a","b"]}', "2 texts"),
        (b'{"text_output":5}', "protocol"),
        (b'{"text_output":"a","finish_reason":"abort"}', "abort"),
        (b'{"text_output":"a"', "JSON"),
        (b"[" * 100_000, "protocol"),
        (b"", "JSON"),
        (b'{"error":"\xff\xfe"}', "error"),
        (b'{"x":' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_whole_answer_that_makes_no_sense(data: bytes, why: str) -> None:
    with pytest.raises(AdapterError, match=why) as caught:
        feed(ask(TRITON, COMPLETIONS), [data])
    str(caught.value).encode()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "without an event"),
        (b'{"error":"no such model"}', "without an event"),
        (STREAM[:-1], "before the text was finished"),
        (vllm_event("a"), "before the text was finished"),
        (vllm_event("a") + b'data: {"error":"CUDA out of memory"}\n\n', "CUDA"),
        (vllm_event("a", "abort"), "in the middle"),
        (b"data: [DONE]\n\n", "protocol"),
    ],
)
def test_a_stream_that_breaks_never_says_done(data: bytes, why: str) -> None:
    answer = ask(TRITON, CHAT, stream=True)
    said: list[bytes] = []
    with pytest.raises(AdapterError, match=why):
        said.extend(answer.end() if one is None else answer.body(one) for one in (data, None))
    assert b"[DONE]" not in b"".join(said)


@pytest.mark.parametrize("piece", [b"x" * (1 << 20), b"\ndata: " + b"x" * (1 << 20)])
def test_an_endless_event_is_refused(piece: bytes) -> None:
    answer = ask(TRITON, CHAT, stream=True)
    pieces = [b'data: {"text_output":"', *[piece] * 5]
    with pytest.raises(AdapterError, match="larger than"):
        feed(answer, pieces)


def test_errors_keep_their_status_and_words() -> None:
    said = b'{"error":"Request for unknown model: \'x\' is not found"}'
    status, document = ask(TRITON, CHAT).error(400, said)
    error = json.loads(document)["error"]
    assert status == 400
    assert error["message"] == "Request for unknown model: 'x' is not found"
    assert error["type"] == "invalid_request_error"
    status, document = ask(TRITON, CHAT, stream=True).error(503, b"\xff<html>busy")
    assert status == 503
    assert "busy" in json.loads(document)["error"]["message"]
    status, document = ask(TRITON, CHAT).error(500, b"")
    assert json.loads(document)["error"]["message"] == "the endpoint answered 500"


def test_embeddings_go_through_infer_with_a_batch_dimension() -> None:
    sent = TRITON.outbound(EMBEDDINGS, body(EMBEDDINGS, input=["a", "b"]))
    assert sent.path == b"/v2/models/m/infer"
    assert json.loads(sent.body)["inputs"][0]["shape"] == [2, 1]


texts = st.lists(st.text(max_size=8), min_size=1, max_size=6)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(texts, st.lists(st.integers(0, 600), max_size=6), st.booleans())
def test_any_text_in_any_pieces_arrives(parts: list[str], cuts: list[int], chat: bool) -> None:
    data = b"".join(vllm_event(part) for part in parts) + vllm_event("", "stop", 0)
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    got = feed(ask(TRITON, CHAT if chat else COMPLETIONS, stream=True), pieces)
    assert text_of(got) == "".join(parts)
    assert reason_of(got) == "stop"


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=3), max_size=3))
def test_a_stop_cuts_alike_whole_and_in_single_characters(text: str, stops: list[str]) -> None:
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    expected = text[: min(found)[1]] if found else text
    whole = ask(TRITON, COMPLETIONS, stop=stops)
    answer = json.loads(feed(whole, [json.dumps({"text_output": text}).encode()]))
    assert answer["choices"][0]["text"] == expected
    stream = ask(TRITON, COMPLETIONS, stop=stops, stream=True)
    assert text_of(feed(stream, [event(one) for one in text] or [event("")])) == expected
