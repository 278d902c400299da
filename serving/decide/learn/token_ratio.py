"""The ratio of real tokens, as answers count them (``usage``), to estimated ones."""

from __future__ import annotations

from typing import Final

__all__ = ["TokenRatio"]

KEEP: Final = 0.98
"""Of what was counted before, with each answer."""
DOUBT_TOKENS: Final = 2_000.0
"""The weight of the estimate itself, as if so many of its tokens had been right."""
MOST_TOKENS: Final = 8_192.0
"""What one answer counts at most, so that none decides alone."""
LEAST_TOKENS: Final = 64
"""Of shorter prompts the template is a large part, which long ones don't have."""
TEXT_WITHIN: Final = 4.0
"""Times more or less: 1 to 16 bytes a token. No tokenizer is beyond that."""
MEDIA_WITHIN: Final = 16.0
"""Models differ more in what an image is to them."""


class _Ratio:
    __slots__ = ("_counted", "_estimated", "_least", "_most", "value")

    def __init__(self, within: float) -> None:
        self._least, self._most = 1.0 / within, within
        self._counted = self._estimated = 0.0
        self.value = 1.0

    def learn(self, estimated: float, counted: float) -> None:
        counted = min(max(counted, self._least * estimated), self._most * estimated)
        part = min(1.0, MOST_TOKENS / estimated)
        self._estimated = KEEP * self._estimated + part * estimated
        self._counted = KEEP * self._counted + part * counted
        value = (self._counted + DOUBT_TOKENS) / (self._estimated + DOUBT_TOKENS)
        self.value = min(max(value, self._least), self._most)


class TokenRatio:
    """Of one model: its tokenizer, and what it makes of images, audio, video and files."""

    __slots__ = ("_media", "_text")

    def __init__(self) -> None:
        self._text = _Ratio(TEXT_WITHIN)
        self._media = _Ratio(MEDIA_WITHIN)

    def tokens(self, text: int, media: int, exact: int) -> int:
        """What the prompt of these estimates will probably be counted as; ``exact`` tokens are."""
        return int(self._text.value * text + self._media.value * media) + exact

    def counted(self, text: int, media: int, exact: int, tokens: int) -> None:
        """An answer says that the prompt had so many tokens."""
        if tokens <= exact or text + media < LEAST_TOKENS:
            return
        if not media:
            self._text.learn(text, tokens - exact)
        elif media > text:  # else the text's error would hide in it
            self._media.learn(media, tokens - exact - self._text.value * text)
