"""Tokens of a request by the kind of each part, corrected by what answers count."""

import base64
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.proxy.backend import STREAM_HEAD as STREAM
from tests.serving.proxy.backend import Backend, answer, backends, chunked, event
from tests.serving.running import RunningRouter, ask, running_router, until
from trainmesh.serving.proxy.reading.api import parse_body, prefix_blocks
from trainmesh.serving.proxy.reading.prompt import (
    AUDIO,
    FILE,
    HEAD_BYTES,
    IMAGE,
    MAX_FILE,
    MAX_IMAGE,
    MAX_VIDEO,
    MIN_IMAGE,
    VIDEO,
    Prompt,
)
from trainmesh.serving.proxy.reading.usage import USAGE_BYTES, USAGE_PIECES, find_usage

WORDS = "a word or two, " * 40  # 600 bytes
PICTURE = base64.b64encode(random.Random(1).randbytes(1_425_000)).decode()  # 1.9 MB


def prompt_of(**members: Any) -> Prompt:
    return parse_body(json.dumps({"model": "m", **members}).encode()).prompt


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def data(kind: str, content: str) -> dict[str, str]:
    return {"url": f"data:{kind};base64,{content}"}


SIGNED = "https://store.example/x?" + "signature=abc&" * 60

MEDIA = {
    "a large picture": ({"type": "image_url", "image_url": data("image/png", PICTURE)}, MAX_IMAGE),
    "one of a response": ({"type": "input_image", "image_url": f"data:,{PICTURE}"}, MAX_IMAGE),
    "a small one": ({"type": "image_url", "image_url": data("image/png", "A" * 4000)}, MIN_IMAGE),
    "elsewhere": ({"type": "image_url", "image_url": {"url": "https://h/x.png"}}, IMAGE),
    "at a long address": ({"type": "image_url", "image_url": {"url": SIGNED}}, IMAGE),
    "in low detail": (
        {"type": "image_url", "image_url": {**data("image/png", PICTURE), "detail": "low"}},
        MIN_IMAGE,
    ),
    "by its id": ({"type": "input_image", "file_id": "file-1"}, IMAGE),
    "sound": ({"type": "input_audio", "input_audio": {"data": "A" * 40_000, "format": "wav"}}, 30),
    "sound elsewhere": ({"type": "audio_url", "audio_url": {"url": "https://h/x.wav"}}, AUDIO),
    "a document": ({"type": "file", "file": {"file_data": "A" * 64_000, "filename": "a.pdf"}}, 750),
    "a huge document": ({"type": "input_file", "file_data": PICTURE * 6}, MAX_FILE),
    "a document by its id": ({"type": "file", "file": {"file_id": "file-1"}}, FILE),
    "a film": ({"type": "video_url", "video_url": data("video/mp4", PICTURE)}, 712),
    "a long film": ({"type": "video_url", "video_url": data("video/mp4", PICTURE * 30)}, MAX_VIDEO),
    "a film elsewhere": ({"type": "video_url", "video_url": {"url": "https://h/x.mp4"}}, VIDEO),
}


@pytest.mark.parametrize("name", MEDIA)
def test_what_is_no_text_has_a_measure_of_its_own(name: str) -> None:
    part, tokens = MEDIA[name]
    found = prompt_of(messages=user({"type": "text", "text": WORDS}, part))
    assert found.media == pytest.approx(tokens, abs=2)
    assert 150 <= found.text < 160
    assert prompt_of(input=user({"type": "input_text", "text": WORDS}, part)).media == found.media


@pytest.mark.parametrize(
    ("members", "text", "exact"),
    [
        ({"prompt": WORDS}, 150, 0),
        ({"prompt": [WORDS, WORDS]}, 300, 0),
        ({"prompt": list(range(100_000, 100_700))}, 0, 700),
        ({"prompt": [[1, 2, 3], [4, 5]]}, 0, 5),
        ({"input": WORDS}, 150, 0),
        ({"input": [WORDS] * 3}, 450, 0),
        ({"input": [[1] * 10, [2] * 20]}, 0, 30),
        ({"instructions": WORDS, "input": WORDS}, 300, 0),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": WORDS}]}, 165, 0),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, 155, 0),
        ({"messages": [], "tools": [{"type": "function", "function": {"d": WORDS}}]}, 160, 0),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [WORDS]}]}, 160, 0),
        ({"messages": "none", "prompt": None, "input": 3}, 1, 0),
        ({"messages": [None, 3, [], {}, {"content": {"a": 1}}]}, 8, 0),
        ({"messages": user(*[{"type": "text", "text": 3}] * 2, {"type": ["x"]})}, 20, 0),
        ({"messages": [{"role": "user", "content": "文" * 200}]}, 155, 0),
    ],
)
def test_text_and_token_numbers(members: dict[str, Any], text: int, exact: int) -> None:
    found = prompt_of(**members)
    assert found.exact == exact
    assert found.media == 0
    assert found.text == pytest.approx(text, abs=6)


def test_what_only_python_reads_is_measured_too() -> None:
    """Half of a surrogate pair, and a byte-order mark."""
    part = {"type": "image_url", "image_url": data("image/png", PICTURE)}
    body = json.dumps({"model": "m", "messages": user({"type": "text", "text": "\ud800"}, part)})
    for text in (body.encode(), b"\xef\xbb\xbf" + body.encode()):
        assert parse_body(text).prompt.tokens < 2 * MAX_IMAGE


def blocks(body: str) -> list[int]:
    return list(prefix_blocks("m", parse_body(body.encode()).prompt.head))


def test_a_prefix_is_what_messages_say_not_how_it_is_written() -> None:
    first = {"role": "system", "content": WORDS * 4}
    for changed in (
        {"model": "m", "messages": [first], "temperature": 1, "stream": True},
        {"user": "someone else", "messages": [dict(reversed(first.items()))], "model": "m"},
        {"stream": False, "seed": 4, "max_tokens": 9, "messages": [first], "model": "m"},
    ):
        for style in ({}, {"indent": 2}, {"separators": (",", ":")}):
            found = blocks(json.dumps(changed, **style))
            assert found == blocks(json.dumps({"messages": [first], "model": "m"}))
            assert len(found) == 4
    other = [{"role": "user", "content": WORDS * 4}]
    assert (
        blocks(json.dumps({"model": "m", "messages": other}))[0]
        != blocks(json.dumps({"model": "m", "messages": [first]}))[0]
    )
    longer = blocks(json.dumps({"model": "m", "messages": [first, *other]}))
    assert longer[:4] == blocks(json.dumps({"model": "m", "messages": [first]}))
    assert len(longer) > 8


def test_a_picture_is_a_prefix_of_as_many_tokens_as_it_has() -> None:
    seen = user({"type": "image_url", "image_url": data("image/png", PICTURE)})
    again = user({"type": "image_url", "image_url": data("image/png", PICTURE[:-8] + "AAAAAAA=")})
    found = blocks(json.dumps({"messages": seen}))
    assert len(found) == MAX_IMAGE * 4 // 512
    assert found == blocks(json.dumps({"messages": seen, "model": "m"}))
    assert found[1] != blocks(json.dumps({"messages": again}))[1]
    assert len(prompt_of(messages=seen * 40).head) == HEAD_BYTES
    ids = prompt_of(prompt=list(range(50_000)))
    assert len(ids.head) == HEAD_BYTES
    assert ids.exact == 50_000


@pytest.mark.parametrize(
    ("end", "found"),
    [
        (b'"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}', (7, 2)),
        (b'"usage": {"input_tokens": 7, "input_tokens_details": {"cached_tokens": 3},'
         b' "output_tokens": 2}, "user": null}', (7, 2)),
        (b'"usage":{"completion_tokens":2,"total_tokens":9,"prompt_tokens":7}', (7, 2)),
        (b'"usage":{"prompt_tokens":7,"total_tokens":7}', (7, 0)),
        (b'"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\ndata: {"usage":null}', (0, 0)),
        (b'"usage":null', (0, 0)),
        (rb'"content":"\"usage\":{\"prompt_tokens\":99}"', (0, 0)),
        (b'"usage":{"prompt_tokens":-7,"completion_tokens":1.5}', (0, 0)),
        (b'"usage":{"prompt_tokens":99999999999,"completion_tokens":999999999}', (0, 10_000_000)),
        (b"", (0, 0)),
    ],
)  # fmt: skip
def test_counts_are_found_in_the_end_of_an_answer(end: bytes, found: tuple[int, int]) -> None:
    assert find_usage(end) == found


RATE = 100
BURST_S = 100  # 10 000 tokens at once


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[RunningRouter, Backend, str]]:
    with backends(1) as (backend,):
        models = {"m": {"endpoints": [{"url": backend.url}], "hedge": {"enabled": False}}}
        tenants = {
            name: {"keys": [f"env:{name.upper()}"], "tokens_per_s": RATE, "burst_s": BURST_S}
            for name in ("a", "b", "c", "d", "e")
        }
        keys = {name.upper(): f"key-of-{name}" for name in tenants}
        with running_router({"models": models, "tenants": tenants}, env=keys) as router:
            yield router, backend, router.admin


def post(
    router: RunningRouter, who: str, body: dict[str, Any], path: str = "chat/completions"
) -> int:
    headers = {"authorization": f"Bearer key-of-{who}"}
    whole = json.dumps({"model": "m", **body}).encode()
    return ask(router.name, "POST", f"/v1/{path}", whole, headers)[0]


def counted(prompt: int, completion: int = 1) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return answer(json.dumps({"object": "chat.completion", "usage": usage}).encode())


def metric(admin: str, name: str, tenant: str) -> int:
    page = ask(admin, "GET", "/metrics")[1].decode()
    wanted = f'trainmesh_serve_{name}{{tenant="{tenant}"}} '
    return int(
        float(next(line for line in page.splitlines() if line.startswith(wanted)).split()[1])
    )


def test_pictures_do_not_use_up_a_rate(served: tuple[RunningRouter, Backend, str]) -> None:
    """1.9 MB were 633 381 tokens, and the next request was refused for an hour."""
    router, backend, admin = served
    backend.say(counted(1_300))
    part = {"type": "image_url", "image_url": data("image/png", PICTURE)}
    body = {"messages": user({"type": "text", "text": "hi"}, part), "max_tokens": 10}
    assert [post(router, "a", body) for _ in range(3)] == [200] * 3
    assert 3 * 1_400 < metric(admin, "tenant_prompt_tokens_total", "a") < 3 * 1_600


def test_a_rate_is_charged_what_the_answer_counts(
    served: tuple[RunningRouter, Backend, str],
) -> None:
    """1 500 estimated, 10 counted: far more fit than by the estimate."""
    router, backend, admin = served
    body = {"messages": [{"role": "user", "content": "x" * 6_000}], "max_tokens": 1}
    backend.say(counted(10))
    assert [post(router, "b", body) for _ in range(12)] == [200] * 12
    backend.say(counted(9_000))
    statuses = [post(router, "c", body) for _ in range(4)]
    assert statuses[0] == 200
    assert statuses[-1] == 429
    assert metric(admin, "tenant_output_tokens_total", "b") == 12


def test_embeddings_generate_nothing(served: tuple[RunningRouter, Backend, str]) -> None:
    router, backend, admin = served
    numbers = json.dumps({"data": [{"embedding": [0.123456] * 20_000}]}).encode()
    backend.say(answer(numbers))
    body = {"input": [[5] * 100, [6] * 50]}
    assert [post(router, "d", body, "embeddings") for _ in range(20)] == [200] * 20
    assert metric(admin, "tenant_output_tokens_total", "d") == 0
    assert metric(admin, "tenant_prompt_tokens_total", "d") == 20 * 150


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_streams_counts_are_used(served: tuple[RunningRouter, Backend, str], pieces: int) -> None:
    router, backend, admin = served
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":77}}\n\n'
    ends = [chunked(usage), chunked(b"data: [DONE]\n\n"), b"0\r\n\r\n"]
    sent = [STREAM + chunked(event(0)), *ends]
    backend.say(*(sent if pieces > 1 else [b"".join(sent)]), pause_s=0.02)
    before = metric(admin, "tenant_output_tokens_total", "e")
    assert post(router, "e", {"messages": [], "stream": True}) == 200
    until(lambda: metric(admin, "tenant_output_tokens_total", "e") == before + 77)
    assert len(ends) <= USAGE_PIECES
    assert len(usage) <= USAGE_BYTES


def test_responses_are_passed_on(served: tuple[RunningRouter, Backend, str]) -> None:
    router, backend, _ = served
    backend.say(answer(b'{"object":"response"}'))
    backend.asked.clear()
    assert post(router, "e", {"input": "hi", "max_output_tokens": 5}, "responses") == 200
    assert backend.asked[0].lines[0] == "POST /v1/responses HTTP/1.1"
