"""Small servers that answer as Triton, KServe v2 and TorchServe are documented to, over real
sockets.

They "generate" the words of the prompt in reverse. Words of a prompt that are orders:
``FAIL`` an error before the first word, ``BREAK`` one in the middle of a stream, ``DIE`` the
connection ends in the middle, ``BUSY`` 503. Run alone: ``python -m tests.serving.fakes triton``.
"""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.serving.tap import loop_thread

VLLM_INPUTS = {
    "text_input",
    "stream",
    "sampling_parameters",
    "exclude_input_in_output",
    "return_finish_reason",
    "return_num_input_tokens",
    "return_num_output_tokens",
}
TRTLLM_INPUTS = {
    "text_input",
    "stream",
    "exclude_input_in_output",
    "max_tokens",
    "bad_words",
    "stop_words",
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "return_num_input_tokens",
    "return_num_output_tokens",
}


@dataclass
class Fake:
    """A running server. ``asked``: (path, parsed body) of each request in its order."""

    word_s: float = 0.0
    """Seconds a word takes."""
    url: str = ""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    cancelled: int = 0
    """Requests whose sender left before the answer was complete."""


def app(kind: str, fake: Fake) -> web.Application:
    """The server of ``kind``: triton, kserve or torchserve."""
    made = web.Application()
    made.router.add_get("/v2/health/live", _ready)
    made.router.add_get("/v2/health/ready", _ready)
    made.router.add_get("/v2/models/{model}/ready", _ready)
    made.router.add_get("/ping", _ready)
    if kind == "triton":
        made.router.add_post("/v2/models/{model}/generate", _counted(fake, _generate))
        made.router.add_post("/v2/models/{model}/generate_stream", _counted(fake, _generate_stream))
    if kind in ("triton", "kserve"):
        made.router.add_post("/v2/models/{model}/infer", _counted(fake, _infer))
    if kind == "torchserve":
        made.router.add_post("/predictions/{model}", _counted(fake, _predict))
    return made


@contextmanager
def running(kind: str, *, word_s: float = 0.0) -> Iterator[Fake]:
    """A server of ``kind`` in a thread of its own, for as long as the context lasts."""
    fake = Fake(word_s=word_s)
    with loop_thread() as thread:
        runner = thread.run(start(kind, fake))
        try:
            yield fake
        finally:
            thread.run(runner.cleanup())


async def start(kind: str, fake: Fake, port: int = 0) -> web.AppRunner:
    """Listen on 127.0.0.1 and set ``fake.url``; clean up the runner to stop."""
    runner = web.AppRunner(app(kind, fake), handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    return runner


async def _ready(request: web.Request) -> web.Response:
    return web.json_response({})


def _counted(fake: Fake, handler: Any) -> Any:
    async def counted(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        fake.asked.append((request.path, body))
        try:
            answer: web.StreamResponse = await handler(fake, request, body)
        except asyncio.CancelledError:
            fake.cancelled += 1
            raise
        except ConnectionResetError:
            fake.cancelled += 1
            return web.Response()
        return answer

    return counted


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def _refusal(prompt: str) -> web.Response | None:
    if "FAIL" in prompt.split():
        return _error(500, "the model failed")
    return _error(503, "the queue is full") if "BUSY" in prompt.split() else None


@dataclass
class _Text:
    """A text in the making: ``words`` and why it ends."""

    words: list[str]
    reason: str
    prompt_tokens: int


def _generated(prompt: str, max_tokens: int) -> _Text:
    asked = prompt.split()
    words = [f" {word}" for word in reversed(asked)]
    reason = "length" if len(words) > max_tokens else "stop"
    return _Text(words[:max_tokens], reason, len(asked))


def _tensors(model: str, body: dict[str, Any]) -> dict[str, Any] | web.Response:
    """What Triton makes of a generate request: inputs of the model become tensors, the rest
    parameters, which may not be lists (``http_server.cc``)."""
    inputs = TRTLLM_INPUTS if model == "ensemble" else VLLM_INPUTS
    for name, value in body.items():
        if name not in inputs and isinstance(value, list | dict):
            return _error(400, f"parameter '{name}' has invalid type")
    missing = {"text_input", "max_tokens"} & inputs - body.keys()
    if missing:
        return _error(400, f"expected input '{min(missing)}'")
    return {name: value for name, value in body.items() if name in inputs}


def _triton_text(model: str, tensors: dict[str, Any]) -> _Text:
    if model == "ensemble":
        return _generated(tensors["text_input"], tensors["max_tokens"])
    sampling = json.loads(tensors.get("sampling_parameters", "{}"))
    return _generated(tensors["text_input"], sampling.get("max_tokens", 16))


def _response(model: str, tensors: dict[str, Any], text: _Text, words: list[str]) -> dict[str, Any]:
    said: dict[str, Any] = {
        "model_name": model,
        "model_version": "1",
        "text_output": "".join(words),
    }
    if model == "ensemble":
        said |= {"sequence_end": False, "sequence_id": 0, "sequence_start": False}
    if not tensors.get("exclude_input_in_output"):
        said["text_output"] = tensors["text_input"] + said["text_output"]
    if tensors.get("return_num_input_tokens"):
        said["num_input_tokens"] = text.prompt_tokens
    if tensors.get("return_num_output_tokens"):
        said["num_output_tokens"] = len(words)
    return said


async def _generate(fake: Fake, request: web.Request, body: dict[str, Any]) -> web.Response:
    model = request.match_info["model"]
    tensors = _tensors(model, body)
    if isinstance(tensors, web.Response):
        return tensors
    if refused := _refusal(tensors["text_input"]):
        return refused
    text = _triton_text(model, tensors)
    await asyncio.sleep(fake.word_s * len(text.words))
    said = _response(model, tensors, text, text.words)
    if tensors.get("return_finish_reason"):
        said["finish_reason"] = text.reason
    return web.json_response(said)


async def _generate_stream(
    fake: Fake, request: web.Request, body: dict[str, Any]
) -> web.StreamResponse:
    model = request.match_info["model"]
    tensors = _tensors(model, body)
    if isinstance(tensors, web.Response):
        return tensors
    if refused := _refusal(tensors["text_input"]):
        return refused
    text = _triton_text(model, tensors)

    async def pieces() -> AsyncIterator[bytes]:
        for at, word in enumerate(text.words):
            if word == " BREAK":
                yield b'data: {"error":"CUDA out of memory"}\n\n'
                return
            if word == " DIE":
                assert request.transport is not None
                request.transport.abort()
                return
            await asyncio.sleep(fake.word_s)
            said = _response(model, tensors, text, [word])
            if tensors.get("return_finish_reason"):
                said["finish_reason"] = text.reason if at + 1 == len(text.words) else "None"
            yield b"data: %s\n\n" % json.dumps(said).encode()

    return await _stream(request, "text/event-stream; charset=utf-8", pieces())


async def _stream(
    request: web.Request, kind: str, pieces: AsyncIterator[bytes]
) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"content-type": kind})
    answer.enable_chunked_encoding()
    await answer.prepare(request)
    async for piece in pieces:
        await answer.write(piece)
    if request.transport is not None and not request.transport.is_closing():
        await answer.write_eof()
    return answer


async def _infer(fake: Fake, request: web.Request, body: dict[str, Any]) -> web.Response:
    tensor = body["inputs"][0]
    if (tensor["name"], tensor["datatype"]) != ("text_input", "BYTES"):
        return _error(400, f"unexpected inference input '{tensor['name']}'")
    texts = tensor["data"]
    if len(texts) != tensor["shape"][0]:
        return _error(400, "the shape does not fit the data")
    if refused := _refusal(texts[0]):
        return refused
    model = request.match_info["model"]
    if "embed" in model:
        vectors = [vector(text) for text in texts]
        output = {
            "name": "embedding",
            "datatype": "FP32",
            "shape": [len(vectors), len(vectors[0])],
            "data": [number for row in vectors for number in row],
        }
    else:
        text = _generated(texts[0], body.get("parameters", {}).get("max_tokens", 16))
        await asyncio.sleep(fake.word_s * len(text.words))
        output = {
            "name": "text_output",
            "datatype": "BYTES",
            "shape": [1],
            "data": ["".join(text.words)],
        }
    return web.json_response({"model_name": model, "model_version": "1", "outputs": [output]})


def vector(text: str) -> list[float]:
    """The embedding of ``text``: four numbers that float32 holds exactly."""
    raw = text.encode()
    return list(struct.unpack("<4B", (raw + b"\0\0\0\0")[:4])) + [float(len(raw))]


async def _predict(fake: Fake, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    prompt = body["prompt"]
    if refused := _refusal(prompt):
        message = {"code": refused.status, "type": "ServiceUnavailableException"}
        return web.json_response({**message, "message": "No worker"}, status=refused.status)
    text = _generated(prompt, body.get("max_tokens", 16))

    async def pieces() -> AsyncIterator[bytes]:
        for at, word in enumerate(text.words):
            if word == " DIE":
                assert request.transport is not None
                request.transport.abort()
                return
            await asyncio.sleep(fake.word_s)
            yield json.dumps({"text": word, "tokens": at}).encode()

    return await _stream(request, "text/plain", pieces())
