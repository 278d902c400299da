"""Clients that keep asking, and what became of each of their requests."""

import asyncio
import itertools
import json
from dataclasses import dataclass, field

import aiohttp

__all__ = ["Asked", "Load", "chat", "content"]


def chat(words: str, *, tokens: int = 32, stream: bool = False, model: str = "tiny") -> bytes:
    messages = [{"role": "user", "content": words}]
    body = {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0}
    return json.dumps({**body, "stream": stream}).encode()


def content(body: bytes, *, stream: bool) -> str:
    """The text of an answer, in whichever form."""
    if not stream:
        text: str = json.loads(body)["choices"][0]["message"]["content"]
        return text
    text = ""
    for event in body.split(b"\n\n"):
        data = event.removeprefix(b"data: ")
        if data.startswith(b"{"):
            for choice in json.loads(data).get("choices", ()):
                text += choice["delta"].get("content") or ""
    return text


@dataclass
class Asked:
    """One request of a client and its end."""

    request_id: str
    words: str
    stream: bool
    status: int = 0
    body: bytes = field(default=b"", repr=False)
    broken: str = ""
    """Why the answer is not complete."""

    @property
    def done(self) -> bool:
        return self.body.endswith(b"data: [DONE]\n\n") if self.stream else not self.broken


@dataclass
class Load:
    """``clients`` of them, each with one request at a time, every second one a stream."""

    url: str
    clients: int = 8
    words: int = 16
    """How many different prompts."""
    tokens: int = 32
    asked: list[Asked] = field(default_factory=list)
    _stopping: bool = False

    async def run(self) -> None:
        """Until ``stop``."""
        numbers = itertools.count()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
            await asyncio.gather(*(self._client(session, numbers) for _ in range(self.clients)))

    def stop(self) -> None:
        """No more requests; those that run are finished."""
        self._stopping = True

    async def _client(
        self, session: aiohttp.ClientSession, numbers: "itertools.count[int]"
    ) -> None:
        while not self._stopping:
            number = next(numbers)
            asked = Asked(f"load-{number}", f"prompt {number % self.words}", number % 2 == 1)
            self.asked.append(asked)
            await self._ask(session, asked)

    async def _ask(self, session: aiohttp.ClientSession, asked: Asked) -> None:
        data = chat(asked.words, tokens=self.tokens, stream=asked.stream)
        headers = {"x-request-id": asked.request_id, "content-type": "application/json"}
        try:
            async with session.post(
                f"{self.url}/v1/chat/completions", data=data, headers=headers
            ) as answer:
                asked.status = answer.status
                async for piece in answer.content.iter_any():
                    asked.body += piece
        except (aiohttp.ClientError, TimeoutError) as error:
            asked.broken = repr(error)
