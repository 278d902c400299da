"""What enters from outside is checked before it becomes an object."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainmesh.errors import WireError
from trainmesh.types import BucketTiming, Hint, Plan, RankReport, StepReport
from trainmesh.wire import MAX_BYTES, decode, encode, hint_digest

PLAN = Plan(algorithm="ring", world_size=3, order=(0, 2, 1), predicted_s=0.5, bound_s=0.25)
HINT = Hint(job="j", epoch=4, effective_step=9, plan=PLAN, reason="because")

naturals = st.integers(0, 2**62)
buckets = st.builds(BucketTiming, naturals, naturals, naturals, naturals, naturals)
steps = st.builds(
    StepReport,
    st.integers(0, 65_535),
    naturals,
    naturals,
    naturals,
    naturals,
    naturals,
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    st.lists(buckets, max_size=3).map(tuple),
)


@settings(derandomize=True)
@given(st.lists(steps, max_size=4).map(tuple), naturals)
def test_reports_survive_the_round_trip(reports: tuple[StepReport, ...], dropped: int) -> None:
    report = RankReport(steps=reports, dropped=dropped)
    assert decode(encode(report), RankReport, what="report") == report


def test_equal_values_have_equal_bytes() -> None:
    again = decode(encode(HINT), Hint, what="hint")
    assert encode(again) == encode(HINT)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04N.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"[" * 100_000,
        b'{"job":"j"}',
        b'{"job":"j","epoch":0,"effective_step":1,"plan":null,"reason":""}',
        encode(HINT).replace(b'"epoch":4', b'"epoch":-4'),
        encode(HINT).replace(b'"epoch":4', b'"epoch":4.5'),
        encode(HINT).replace(b'"epoch":4', b'"epoch":9999999999999999999999'),
        encode(HINT).replace(b"0.5", b"NaN"),
        encode(HINT).replace(b"0.5", b"-1"),
        encode(HINT).replace(b"0.5", b"1e999"),
        encode(HINT).replace(b"[0,2,1]", b"[0,2,-1]"),
        encode(HINT).replace(b"[0,2,1]", b"[0,2,70000]"),
        encode(HINT)[:-1],
        b" " * (MAX_BYTES + 1),
        "ünïcödé".encode("latin1"),
    ],
)
def test_anything_else_is_one_line_of_refusal(data: bytes) -> None:
    with pytest.raises(WireError) as refusal:
        decode(data, Hint, what="hint")
    assert str(refusal.value).startswith("hint: ")
    assert "\n" not in str(refusal.value)


def test_digest_covers_what_ranks_must_agree_on_and_nothing_else() -> None:
    def changed(**plan: object) -> int:
        values = {name: getattr(PLAN, name) for name in PLAN.__struct_fields__}
        new = Plan(**{**values, **plan})  # type: ignore[arg-type]
        return hint_digest(Hint(job="j", epoch=4, effective_step=9, plan=new, reason=""))

    same = hint_digest(HINT)
    assert 0 <= same < 2**63
    assert changed() == same
    assert changed(predicted_s=9.0, reason="other words") == same
    assert changed(order=(0, 1, 2)) != same
    assert changed(algorithm="native") != same
    assert changed(islands=((0,), (1, 2))) != same


def test_depth_is_refused_in_our_words() -> None:
    with pytest.raises(WireError, match="^hint: nested too deeply$"):
        decode(b'{"job":' + b"[" * 100_000, dict, what="hint")
