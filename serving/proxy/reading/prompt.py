"""What of a body goes into the model: how many tokens that is, and its beginning.

Tokens are estimated by the kind of each part, as bytes of text say nothing of those of an image;
what answers count corrects the estimates (``decide.token_ratio``). The beginning is what engines'
prefix caches see: the content in its order, not the JSON that it came in.

Bodies are the endpoint's business: what has another form than OpenAI's counts as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec

__all__ = ["HEAD_BYTES", "Prompt", "read_prompt"]

HEAD_BYTES: Final = 32_768
"""Prefixes are told apart by so much of their beginning."""
BYTES_PER_TOKEN: Final = 4
"""Of English text in common tokenizers."""
MESSAGE_BYTES: Final = 16
"""What a chat template puts around a message, some four tokens."""
MIN_IMAGE: Final = 85
"""OpenAI's count for detail ``low``."""
MAX_IMAGE: Final = 1_500
"""Engines scale larger images down: 1 369 patches of 28 pixels are a square of 1 036."""
IMAGE: Final = 1_000
"""One that is somewhere else: about 900 pixels square at a token for 28 x 28 of them, OpenAI's 765
for 1 024 pixels square."""
IMAGE_BYTES: Final = 256
"""A token of a JPEG: 28 x 28 pixels at 2.6 bits each."""
AUDIO_BYTES: Final = 1_000
"""Between WAV (16 kHz, 16 bits) and MP3 at 25 tokens a second."""
AUDIO: Final = 750
"""Half a minute of it."""
FILE_BYTES: Final = 64
"""PDF: a page of 50 kB has some 800 tokens of text and image."""
MAX_FILE: Final = 100_000
FILE: Final = 4_000
VIDEO_BYTES: Final = 2_000
"""1 MB/s at 500 tokens a second: two frames of 250."""
VIDEO: Final = 8_000
MAX_VIDEO: Final = 16_384
"""What Qwen's models take of one."""

_KINDS: Final = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "document": "file",
    "file": "file",
    "input_file": "file",
    "video": "video",
    "video_url": "video",
    "input_video": "video",
}
_SIZES: Final = {
    # bytes of a token, least, most, where the bytes are elsewhere
    "image": (IMAGE_BYTES, MIN_IMAGE, MAX_IMAGE, IMAGE),
    "audio": (AUDIO_BYTES, 1, 1 << 20, AUDIO),
    "file": (FILE_BYTES, 1, MAX_FILE, FILE),
    "video": (VIDEO_BYTES, 1, MAX_VIDEO, VIDEO),
}
MIN_INLINE: Final = 256
"""A text that is no address and longer than any id is the content itself, in base64."""


class Prompt:
    """Estimated tokens by kind, and the first ``HEAD_BYTES`` of the content; four bytes stand for a
    token there, also of what is no text."""

    __slots__ = ("_head", "_room", "exact", "media", "text_bytes")

    def __init__(self) -> None:
        self.text_bytes = 0
        self.media = 0
        """Tokens of images, audio, video and files."""
        self.exact = 0
        """Tokens that came as numbers, or were otherwise counted."""
        self._head: list[bytes] = []
        self._room = HEAD_BYTES

    @property
    def text(self) -> int:
        """Tokens of text."""
        return self.text_bytes // BYTES_PER_TOKEN

    @property
    def tokens(self) -> int:
        """All of them, uncorrected."""
        return self.text + self.media + self.exact

    @property
    def head(self) -> bytes:
        return b"".join(self._head)

    def add_text(self, text: str) -> None:
        if text.isascii():
            self.text_bytes += len(text)
        else:
            self.text_bytes += len(text.encode("utf-8", "replace"))
        room = self._room
        if room > 0 and text:
            self._begin(text[:room].encode("utf-8", "replace")[:room])

    def add_ids(self, ids: list[Any]) -> None:
        """Token numbers."""
        self.exact += len(ids)
        if self._room > 0:
            some = ids[: self._room // BYTES_PER_TOKEN]
            numbers = [one if isinstance(one, int) else 0 for one in some]
            self._begin(b"".join([(n & 0xFFFFFFFF).to_bytes(4, "little") for n in numbers]))

    def add_media(self, kind: str, value: object) -> None:
        """An image, audio, video or file: with its bytes in it, or at an address."""
        per_token, least, most, elsewhere = _SIZES[kind]
        found, low = _content(value)
        if kind == "image" and low:
            tokens = MIN_IMAGE
        elif len(found) > MIN_INLINE and "://" not in found[:16]:
            tokens = min(max(len(found) * 3 // 4 // per_token, least), most)
        else:
            tokens = elsewhere
        self.media += tokens
        if self._room > 0:
            mark = (hash(found) & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")
            self._begin((mark * (tokens // 2 + 1))[: min(tokens * BYTES_PER_TOKEN, self._room)])

    def _begin(self, data: bytes) -> None:
        self._head.append(data)
        self._room -= len(data)


def read_prompt(
    messages: object, prompt: object, inputs: object, instructions: object, tools: object
) -> Prompt:
    """The prompt of a body, whichever of these members it has.

    Args:
        messages: of a chat.
        prompt: of a completion: text, texts, token numbers or lists of them.
        inputs: of embeddings (as ``prompt``), or of a response: text or items.
        instructions: of a response.
        tools: their schemas, which templates put in front of all else.
    """
    found = Prompt()
    if tools:
        _add_json(found, tools)
    if isinstance(instructions, str):
        found.add_text(instructions)
    for value in (messages, prompt, inputs):
        if value is not None:
            _add(found, value)
    return found


def _add(found: Prompt, value: object) -> None:
    """A member that holds the prompt, or a list in it."""
    if isinstance(value, str):
        found.add_text(value)
    elif isinstance(value, list):
        if value and isinstance(value[0], int):
            found.add_ids(value)
            return
        for item in value:
            if isinstance(item, dict):
                _add_item(found, cast("Mapping[str, object]", item))
            else:
                _add(found, item)
    elif value is not None:
        _add_json(found, value)


def _add_item(found: Prompt, item: Mapping[str, object]) -> None:
    """A message, an item of a response, or a part of a content."""
    kind = item.get("type")
    if isinstance(kind, str) and kind in _KINDS:
        found.add_media(_KINDS[kind], item)
        return
    role = item.get("role")
    if isinstance(role, str) or "content" in item:
        found.add_text(f"\n{role}\n")
        found.text_bytes += MESSAGE_BYTES
        _add(found, item.get("content"))
        for more in ("reasoning_content", "tool_calls", "function_call"):
            if value := item.get(more):
                _add_json(found, value)
        return
    text = item.get("text")
    if isinstance(text, str):
        found.add_text(text)
    else:
        _add_json(found, item)


def _add_json(found: Prompt, value: object) -> None:
    """What templates write out as it is."""
    if isinstance(value, str):
        found.add_text(value)
        return
    try:
        found.add_text(msgspec.json.encode(value).decode())
    except (TypeError, ValueError, OverflowError):
        found.add_text(str(value))


def _content(part: object) -> tuple[str, bool]:
    """The longest text in a part (its data, address or id), and whether it asks for detail low."""
    longest, low = "", False
    left = [part]
    while left:
        value = left.pop()
        if isinstance(value, str):
            if len(value) > len(longest):
                longest = value
        elif isinstance(value, dict):
            low = low or value.get("detail") == "low"
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return longest, low
