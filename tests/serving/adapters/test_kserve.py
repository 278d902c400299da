"""KServe v2 (Open Inference Protocol), as its inference_rest.md and Triton's and OVMS's documents
show it: text through BYTES tensors, embeddings through floating-point ones."""

import base64
import json
import struct
from typing import Any

import pytest

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
from trainmesh.serving.adapters import AdapterError
from trainmesh.serving.config.types import Runtime

KSERVE = adapter(Runtime.KSERVE)


def tensor(name: str, datatype: str, shape: list[int], data: object) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def said(*outputs: dict[str, Any]) -> bytes:
    """An answer of the protocol."""
    whole = {"model_name": "m", "model_version": "1", "outputs": outputs}
    return json.dumps(whole, ensure_ascii=False).encode()


def test_a_completion_is_a_bytes_tensor_with_parameters() -> None:
    sent = KSERVE.outbound(
        COMPLETIONS, body(COMPLETIONS, max_tokens=5, temperature=0.5, stop=["x"], seed=1)
    )
    assert sent.path == b"/v2/models/m/infer"
    assert json.loads(sent.body) == {
        "inputs": [{"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["hi"]}],
        "parameters": {"max_tokens": 5, "temperature": 0.5, "stop": "x", "seed": 1},
    }


def test_stops_that_the_protocol_can_not_carry_are_applied_here() -> None:
    sent = KSERVE.outbound(COMPLETIONS, body(COMPLETIONS, stop=["x", "y"]))
    assert "stop" not in json.loads(sent.body)["parameters"]
    answer = KSERVE.inbound(sent, request_id="r", created_s=0)
    got = json.loads(feed(answer, [said(tensor("text_output", "BYTES", [1], ["a b y c x"]))]))
    assert got["choices"][0]["text"] == "a b "


@pytest.mark.parametrize(
    "outputs",
    [
        [tensor("text_output", "BYTES", [1], ["Gr\xfc\xdfe"])],
        [tensor("text_output", "BYTES", [1, 1], [["Gr\xfc\xdfe"]])],
        [tensor("anything", "BYTES", [1], ["Gr\xfc\xdfe"])],
        [
            tensor("reason", "BYTES", [1], ["x"]),
            tensor("text_output", "BYTES", [1], ["Gr\xfc\xdfe"]),
            tensor("logits", "FP32", [1, 2], [0.0, 0.1]),
        ],
    ],
)
def test_the_text_is_found(outputs: list[dict[str, Any]]) -> None:
    data = said(*outputs)
    for cut in range(len(data) + 1):
        got = json.loads(feed(ask(KSERVE, CHAT), [data[:cut], data[cut:]]))
        assert got["choices"][0]["message"] == {"role": "assistant", "content": "Gr\xfc\xdfe"}
    assert "usage" not in got


def test_a_stream_is_one_piece() -> None:
    answer = ask(KSERVE, CHAT, stream=True)
    assert answer.streaming
    got = feed(answer, [said(tensor("text_output", "BYTES", [1], ["all of it"]))])
    assert text_of(got) == "all of it"
    assert reason_of(got) == "stop"


def test_bytes_that_are_no_utf8() -> None:
    data = said(tensor("text_output", "BYTES", [1], ["@"])).replace(b"@", b"a\xe2\x82")
    assert json.loads(feed(ask(KSERVE, COMPLETIONS), [data]))["choices"][0]["text"] == "a\ufffd"


@pytest.mark.parametrize("data", [[1.0, 0.1, 2, -2.5], [[1.0, 0.1], [2, -2.5]]])
def test_embeddings_as_numbers_and_in_base64(data: object) -> None:
    sent = KSERVE.outbound(EMBEDDINGS, body(EMBEDDINGS, input=["a", "b"]))
    request = json.loads(sent.body)
    assert request == {
        "inputs": [{"name": "text_input", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}]
    }
    answer = said(tensor("vectors", "FP32", [2, 2], data))
    got = json.loads(feed(ask(KSERVE, EMBEDDINGS, input=["a", "b"]), [answer]))
    assert got == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [1.0, 0.1]},
            {"object": "embedding", "index": 1, "embedding": [2, -2.5]},
        ],
        "model": "m",
    }
    packed = ask(KSERVE, EMBEDDINGS, input=["a", "b"], encoding_format="base64")
    got = json.loads(feed(packed, [answer]))
    raw = base64.b64decode(got["data"][1]["embedding"])
    assert struct.unpack("<2f", raw) == (2.0, -2.5)


@pytest.mark.parametrize("word", [b"NaN", b"-Infinity"])
def test_a_vector_with_words_for_numbers(word: bytes) -> None:
    data = said(tensor("e", "FP32", [1, 1], ["@"])).replace(b'"@"', word)
    with pytest.raises(AdapterError, match="finite"):
        feed(ask(KSERVE, EMBEDDINGS), [data])


def test_an_endless_document_is_refused() -> None:
    with pytest.raises(AdapterError, match="larger than"):
        feed(ask(KSERVE, CHAT), [b" " * (1 << 20)] * 65)


def test_one_text_may_come_back_as_one_row() -> None:
    answer = said(tensor("embedding", "FP32", [3], [1.0, 2.0, 3.0]))
    got = json.loads(feed(ask(KSERVE, EMBEDDINGS), [answer]))
    assert [one["embedding"] for one in got["data"]] == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        ([], "none"),
        ([tensor("logits", "FP32", [1], [0.5])], r"logits \(FP32\)"),
        ([tensor("a", "BYTES", [1], ["x"]), tensor("b", "BYTES", [1], ["y"])], "a .BYTES., b"),
        ([tensor("text_output", "BYTES", [2], ["x", "y"])], "one string"),
        ([tensor("text_output", "BYTES", [2], ["x"])], "shape says 2"),
        ([tensor("text_output", "BYTES", [-1], ["x"])], "shape says -1"),
        ([tensor("text_output", "BYTES", [1], [5])], "one string"),
        ([tensor("text_output", "BYTES", [1], None)], "no data"),
        ([tensor("text_output", "BYTES", [1], "x")], "protocol"),
    ],
)
def test_text_that_makes_no_sense(outputs: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(AdapterError, match=why):
        feed(ask(KSERVE, CHAT), [said(*outputs)])


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (tensor("e", "FP32", [1, 2, 2], [1, 2, 3, 4]), "shape"),
        (tensor("e", "FP32", [3, 2], [1, 2, 3, 4, 5, 6]), "2 texts need"),
        (tensor("e", "FP32", [2], [1, 2]), "2 texts need"),
        (tensor("e", "FP32", [2, 0], []), "dimensions"),
        (tensor("e", "FP32", [2, 1], [1, "x"]), "finite"),
        (tensor("e", "FP32", [2, 1], [1, True]), "finite"),
        (tensor("e", "FP32", [2, 1], [1, None]), "finite"),
        (tensor("e", "BYTES", [2, 1], ["a", "b"]), "no vectors"),
        (tensor("e", "FP64", [2, 1], [1, 1e300]), "float32"),
    ],
)
def test_vectors_that_make_no_sense(output: dict[str, Any], why: str) -> None:
    answer = ask(KSERVE, EMBEDDINGS, input=["a", "b"], encoding_format="base64")
    with pytest.raises(AdapterError, match=why):
        feed(answer, [said(output)])


def test_errors() -> None:
    with pytest.raises(AdapterError, match="not ready"):
        feed(ask(KSERVE, CHAT), [b'{"error":"model m is not ready"}'])
    status, document = ask(KSERVE, CHAT).error(404, b'{"error":"Model not found"}')
    assert (status, json.loads(document)["error"]["message"]) == (404, "Model not found")
    status, document = ask(KSERVE, CHAT).error(302, b"")
    assert status == 502
