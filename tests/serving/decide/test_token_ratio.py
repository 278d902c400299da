"""What is learned of a model's tokenizer from what answers count."""

import pytest

from trainmesh.serving.decide.learn.token_ratio import (
    LEAST_TOKENS,
    MEDIA_WITHIN,
    TEXT_WITHIN,
    TokenRatio,
)


def learned(*samples: tuple[int, int, int, int], times: int = 300) -> TokenRatio:
    ratio = TokenRatio()
    for _ in range(times):
        for text, media, exact, counted in samples:
            ratio.counted(text, media, exact, counted)
    return ratio


def test_it_begins_with_the_estimates() -> None:
    assert TokenRatio().tokens(1000, 500, 7) == 1507


def test_text_and_media_are_told_apart() -> None:
    ratio = learned((1000, 0, 0, 1500), (200, 1000, 0, 300 + 3000))
    assert ratio.tokens(1000, 0, 0) == pytest.approx(1500, rel=0.05)
    assert ratio.tokens(0, 1000, 0) == pytest.approx(3000, rel=0.05)
    assert ratio.tokens(0, 0, 50) == 50


def test_exact_tokens_teach_nothing() -> None:
    assert learned((0, 0, 500, 500)).tokens(1000, 0, 0) == 1000
    assert learned((1000, 0, 500, 2500)).tokens(1000, 0, 0) == pytest.approx(2000, rel=0.05)


def test_short_prompts_teach_nothing() -> None:
    """A template of 200 tokens around a word says nothing of a long text."""
    assert learned((LEAST_TOKENS - 1, 0, 0, 10 * LEAST_TOKENS)).tokens(1000, 0, 0) == 1000


@pytest.mark.parametrize("counted", [1, 10_000_000])
def test_nonsense_is_bounded(counted: int) -> None:
    least, most = 1 / TEXT_WITHIN, TEXT_WITHIN
    text = learned((1000, 0, 0, counted)).tokens(1000, 0, 0)
    assert 1000 * least <= text <= 1000 * most
    assert text != 1000
    least, most = 1 / MEDIA_WITHIN, MEDIA_WITHIN
    media = learned((0, 1000, 0, counted)).tokens(0, 1000, 0)
    assert 1000 * least <= media <= 1000 * most
    assert media != 1000


def test_one_answer_does_not_decide() -> None:
    ratio = learned((1000, 0, 0, 1000))
    ratio.counted(1_000_000, 0, 0, 4_000_000)
    assert ratio.tokens(1000, 0, 0) < 1600
