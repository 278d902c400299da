"""OpenAI's own client, as it comes, against real servers behind the router."""

import asyncio
import hashlib
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.serving.running import RunningRouter, running_router
from tests.serving.runtime.replicas import Replica

KEY, SLOW_KEY, NARROW_KEY = "key-of-a-test", "key-of-a-slow-tenant", "key-of-a-narrow-one"


def digest(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


TENANTS = {
    "lab": {"keys": [digest(KEY)]},
    "narrow": {"keys": [digest(NARROW_KEY)], "models": ["gone"]},
    "slow": {
        "keys": [digest(SLOW_KEY)],
        "requests_per_s": 0.01,
        "burst_s": 100,
    },
}
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def router(module_replicas: list[Replica]) -> Iterator[RunningRouter]:
    endpoints = [{"url": replica.url, "runtime": "llamacpp"} for replica in module_replicas]
    models = {
        "tiny": {"endpoints": endpoints, "aliases": ["gpt-tiny"]},
        "gone": {"endpoints": [{"url": "http://127.0.0.1:9"}]},
    }
    with running_router({"models": models, "tenants": TENANTS}) as running:
        yield running


def client(router: RunningRouter, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{router.url}/v1", api_key=key, max_retries=0, timeout=10)


def chat_text(client: openai.OpenAI, model: str = "tiny") -> str:
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=16, temperature=0
    )
    return answer.choices[0].message.content or ""


def test_all_calls_answer_as_they_do_without_the_router(
    router: RunningRouter, replicas: list[Replica]
) -> None:
    direct = openai.OpenAI(base_url=f"{replicas[0].direct}/v1", api_key="none", max_retries=0)
    with client(router) as routed, direct:
        assert chat_text(routed) == chat_text(direct)
        assert chat_text(routed, "gpt-tiny") == chat_text(direct)
        assert completion(routed) == completion(direct)
        assert embedding(routed) == embedding(direct)
        assert {model.id for model in routed.models.list()} >= {"tiny", "gone"}
        assert routed.models.retrieve("tiny").id == "tiny"


def completion(client: openai.OpenAI) -> str:
    answer = client.completions.create(model="tiny", prompt="once", max_tokens=16, temperature=0)
    return answer.choices[0].text


def embedding(client: openai.OpenAI) -> list[list[float]]:
    answer = client.embeddings.create(model="tiny", input=["one", "two"])
    return [each.embedding for each in answer.data]


def test_a_stream_has_the_same_words_and_its_usage(router: RunningRouter) -> None:
    with client(router) as routed:
        chunks = list(
            routed.chat.completions.create(
                model="tiny",
                messages=MESSAGES,
                max_tokens=16,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == chat_text(routed)
        assert len(chunks) > 10
        (usage,) = [chunk.usage for chunk in chunks if chunk.usage]
        assert usage.completion_tokens == 16


def test_the_asynchronous_client(router: RunningRouter) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key=KEY) as routed:
            stream = await routed.chat.completions.create(
                model="tiny", messages=MESSAGES, max_tokens=16, temperature=0, stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream])

    with client(router) as routed:
        assert asyncio.run(ask()) == chat_text(routed)


def test_each_refusal_is_the_exception_that_programs_catch(router: RunningRouter) -> None:
    with client(router) as routed:
        with pytest.raises(openai.NotFoundError, match="nothing"):
            chat_text(routed, "nothing")
        with pytest.raises(openai.BadRequestError):
            routed.chat.completions.create(model="", messages=MESSAGES)
        with pytest.raises(openai.InternalServerError) as unreachable:
            chat_text(routed, "gone")
        assert unreachable.value.status_code in (502, 503)
    with client(router, NARROW_KEY) as narrow, pytest.raises(openai.NotFoundError):
        chat_text(narrow)
    with client(router, "wrong") as stranger, pytest.raises(openai.AuthenticationError):
        chat_text(stranger)


def test_an_endpoints_own_refusal_comes_through(router: RunningRouter) -> None:
    wrong: Any = [{"role": "user", "content": {"no": "list"}}]
    with client(router) as routed, pytest.raises(openai.APIStatusError) as refused:
        routed.chat.completions.create(model="tiny", messages=wrong)
    assert refused.value.status_code in (400, 500)


def test_too_many_requests_say_when_to_come_back(router: RunningRouter) -> None:
    with client(router, SLOW_KEY) as routed:
        chat_text(routed)
        with pytest.raises(openai.RateLimitError) as refused:
            chat_text(routed)
    assert int(refused.value.response.headers["retry-after"]) >= 1


def test_a_broken_stream_raises_instead_of_ending(
    router: RunningRouter, replicas: list[Replica]
) -> None:
    for replica in replicas:
        replica.tap.piece_bytes, replica.tap.delay_s = 512, 0.01
    with client(router) as routed:
        stream = routed.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=1000, temperature=0, stream=True
        )
        next(stream)
        for replica in replicas:
            replica.kill()
        with pytest.raises(openai.APIError, match="broke"):
            list(stream)
