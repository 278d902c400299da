"""Requests through ``trainmesh serve`` to servers of other protocols."""

import json
from collections.abc import Iterator

import pytest

from tests.serving.adapters.speech import CHAT, COMPLETIONS, EMBEDDINGS, body, reason_of, text_of
from tests.serving.fakes.servers import Fake, running, vector
from tests.serving.running import RunningRouter, ask, running_router, until

ORDER = "one two three four"
REVERSED = " four three two one"


@pytest.fixture(scope="module")
def fakes() -> Iterator[dict[str, Fake]]:
    with running("triton") as triton, running("kserve") as kserve, running("torchserve") as torch:
        yield {"triton": triton, "kserve": kserve, "torchserve": torch}


@pytest.fixture(scope="module")
def router(fakes: dict[str, Fake]) -> Iterator[RunningRouter]:
    def model(kind: str, path: str = "", **more: str) -> dict[str, object]:
        return {"endpoints": [{"url": fakes[kind].url + path, "runtime": kind, **more}]}

    models = {
        "triton": model("triton", served_model="vllm"),
        "ensemble": model("triton"),
        "kserve": model("kserve"),
        "torchserve": model("torchserve", "/predictions/m"),
        "embed": model("kserve"),
    }
    with running_router({"models": models}) as running_one:
        yield running_one


def post(router: RunningRouter, path: bytes, **request: object) -> tuple[int, bytes]:
    headers = {"content-type": "application/json"}
    return ask(router.name, "POST", path.decode(), body(path, **request), headers)


@pytest.mark.parametrize("model", ["triton", "ensemble", "kserve", "torchserve"])
def test_whole_and_streamed(router: RunningRouter, model: str) -> None:
    status, said = post(router, COMPLETIONS, model=model, prompt=ORDER)
    assert (status, json.loads(said)["choices"][0]["text"]) == (200, REVERSED)
    status, said = post(router, CHAT, model=model, stream=True)
    assert (status, text_of(said)) == (200, " assistant: hi user:")
    status, said = post(
        router, COMPLETIONS, model=model, prompt=ORDER, stream=True, stop=["o", "x"]
    )
    assert (status, text_of(said), reason_of(said)) == (200, " f", "stop")


def test_embeddings(router: RunningRouter) -> None:
    status, said = post(router, EMBEDDINGS, model="embed", input=["ab", "cde"])
    got = [one["embedding"] for one in json.loads(said)["data"]]
    assert (status, got) == (200, [vector("ab"), vector("cde")])


def test_what_has_no_translation_is_refused_and_reaches_no_endpoint(
    router: RunningRouter, fakes: dict[str, Fake]
) -> None:
    before = len(fakes["triton"].asked)
    status, said = post(router, CHAT, model="triton", tools=[{"type": "function"}])
    error = json.loads(said)["error"]
    assert (status, error["param"], error["type"]) == (400, "tools", "invalid_request_error")
    assert len(fakes["triton"].asked) == before


def test_a_stream_that_breaks_ends_without_done(
    router: RunningRouter, fakes: dict[str, Fake]
) -> None:
    fakes["triton"].word_s = 0.05
    try:
        status, said = post(
            router, COMPLETIONS, model="triton", prompt="x BREAK a b c", stream=True
        )
    finally:
        fakes["triton"].word_s = 0
    assert status == 200
    assert said.endswith(b"\n\n")
    *_, last, nothing = said.split(b"\n\n")
    assert nothing == b""
    assert json.loads(last.removeprefix(b"data: "))["error"]["message"]
    assert b"[DONE]" not in said


def test_a_stream_that_breaks_before_its_first_word_is_an_error(router: RunningRouter) -> None:
    status, said = post(router, COMPLETIONS, model="triton", prompt="x BREAK", stream=True)
    assert status == 502
    assert json.loads(said)["error"]["message"]


def test_an_engine_that_goes_on_after_a_stop_is_cut_off(
    router: RunningRouter, fakes: dict[str, Fake]
) -> None:
    engine = fakes["triton"]
    before = engine.cancelled  # an earlier test's stop may have cut it off too
    engine.word_s = 0.05
    try:
        words = "x " * 200 + "two"
        asked = {"prompt": words, "max_tokens": 400, "stream": True, "stop": ["wo", "q"]}
        status, said = post(router, COMPLETIONS, model="ensemble", **asked)
        assert (status, text_of(said), reason_of(said)) == (200, " t", "stop")
        until(lambda: engine.cancelled > before, 8, "the connection stayed open")
    finally:
        engine.word_s = 0


def test_a_full_endpoint_says_so(router: RunningRouter) -> None:
    for stream in (False, True):
        status, said = post(router, COMPLETIONS, model="kserve", prompt="BUSY", stream=stream)
        assert status == 503
        assert json.loads(said)["error"]["message"]
