"""The harness itself: replicas that agree, taps that keep every byte and show every fault."""

import json
import socket
from http.client import HTTPConnection

import pytest

from tests.serving.runtime.replicas import Replica


def chat(words: str, tokens: int = 16, stream: bool = False) -> bytes:
    messages = [{"role": "user", "content": words}]
    body = {"model": "tiny", "messages": messages, "max_tokens": tokens, "temperature": 0}
    return json.dumps({**body, "stream": stream}).encode()


def ask(name: str, body: bytes, request_id: str = "r", timeout_s: float = 10) -> bytes:
    connection = HTTPConnection(name, timeout=timeout_s)
    try:
        headers = {"content-type": "application/json", "x-request-id": request_id}
        connection.request("POST", "/v1/chat/completions", body, headers)
        return connection.getresponse().read()
    finally:
        connection.close()


def content(answer: bytes) -> str:
    text: str = json.loads(answer)["choices"][0]["message"]["content"]
    return text


def test_replicas_say_the_same_and_other_prompts_get_other_answers(
    replicas: list[Replica],
) -> None:
    said = [[content(ask(r.name, chat(f"prompt {n}", 48))) for n in range(16)] for r in replicas]
    assert said[0] == said[1] == said[2]
    assert len(set(said[0])) == 16


def test_a_tap_keeps_what_was_asked_and_answered(replicas: list[Replica]) -> None:
    body = chat("hello", 8, stream=True)
    answer = ask(replicas[0].name, body, "one")
    (exchange,) = replicas[0].tap.of("one")
    assert (exchange.method, exchange.path) == ("POST", "/v1/chat/completions")
    assert exchange.request_body == body
    assert exchange.body == answer
    assert answer.endswith(b"data: [DONE]\n\n")
    assert exchange.complete
    assert not replicas[0].tap.errors


def test_a_killed_replica_refuses_and_a_healed_one_answers_again(
    replicas: list[Replica],
) -> None:
    before = content(ask(replicas[0].name, chat("hello")))
    replicas[0].kill()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", replicas[0].tap.port))
    replicas[0].heal()
    assert content(ask(replicas[0].name, chat("hello"))) == before


def test_a_stopped_replica_accepts_and_is_silent(replicas: list[Replica]) -> None:
    replicas[0].stop()
    with pytest.raises(TimeoutError):
        ask(replicas[0].name, chat("hello"), timeout_s=0.3)
    replicas[0].go_on()
    assert content(ask(replicas[0].name, chat("hello")))
