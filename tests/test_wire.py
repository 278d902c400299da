"""What enters from outside is checked before it becomes an object."""

from collections.abc import Iterator
from enum import StrEnum

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from trainmesh.errors import WireError
from trainmesh.types import (
    MAX_INT,
    BucketTiming,
    Collective,
    Hint,
    Hop,
    Plan,
    RankReport,
    StepReport,
    Tree,
)
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


TREE = Tree(0, 0.5, (Hop(1, 0, ("s",)), Hop(2, 0, ("s",))), (Hop(0, 1, ("s",)), Hop(0, 2, ("s",))))
FULL = Hint(
    job="j",
    epoch=4,
    effective_step=9,
    plan=Plan(
        algorithm="forest",
        world_size=3,
        order=(0, 2, 1),
        collective=Collective.ALLGATHER,
        rings=((0, 1, 2), (0, 2, 1)),
        shares=(0.25, 0.75),
        islands=((0,), (1, 2)),
        levels=(((0,), (1, 2)), ((0, 1, 2),)),
        trees=(TREE, TREE),
        num_chunks=8,
        nbytes=1000,
        predicted_s=0.5,
        busy_s=0.25,
        bound_s=0.25,
        bound_kind="cut",
        bound_cut=("a", "b"),
        bottleneck=("a->b",),
        graph_version=3,
        reason="it is fast",
    ),
    reason="because",
    world=2**62,
    fusion_bytes=8_000_000,
    codec="powersgd:4",
    probe_bytes=65_536,
)
"""A hint in which no field is empty or has its default."""
EXPLAINS = {
    *("reason", "plan.reason", "plan.predicted_s", "plan.busy_s", "plan.bound_s"),
    *("plan.bound_kind", "plan.bound_cut", "plan.bottleneck", "plan.graph_version"),
}
"""All that a hint says without changing what is sent; whatever isn't named here does."""


def test_depth_is_refused_in_our_words() -> None:
    with pytest.raises(WireError, match="^hint: nested too deeply$"):
        decode(b'{"job":' + b"[" * 100_000, dict, what="hint")


def other(value: object) -> object:
    """Another value of the same type."""
    match value:
        case StrEnum():
            return next(one for one in type(value) if one is not value)
        case str():
            return value + "x"
        case int() | float():
            return value + 1
    raise AssertionError(f"no other value is known for {value!r}: extend this test")


def variants(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every value that differs from ``value`` in one leaf, or in the length of one tuple, and the
    path of the field in which it does."""
    if isinstance(value, Struct):
        for name in value.__struct_fields__:
            inner = f"{path}.{name}".lstrip(".")
            for where, changed in variants(getattr(value, name), inner):
                yield where, msgspec.structs.replace(value, **{name: changed})
    elif isinstance(value, tuple):
        assert value, f"{path} is empty here: give it a value"
        yield path, value[:-1]
        yield path, (*value, value[-1])
        for place, item in enumerate(value):
            for where, changed in variants(item, path):
                yield where, (*value[:place], changed, *value[place + 1 :])
    else:
        yield path, other(value)


def test_the_digest_covers_every_field_that_changes_what_is_sent() -> None:
    """A field that is added later is covered, or fails here until it is named in EXPLAINS."""
    digest, seen = hint_digest(FULL), set()
    for path, changed in variants(FULL):
        field = ".".join(path.split(".")[:2])
        seen.add(field)
        assert isinstance(changed, Hint)
        assert changed != FULL
        assert (hint_digest(changed) == digest) == (field in EXPLAINS), path
    assert seen >= EXPLAINS
    plan = {f"plan.{name}" for name in Plan.__struct_fields__}
    assert plan | {name for name in Hint.__struct_fields__ if name != "plan"} <= seen


def test_each_optional_field_changes_the_digest_of_a_hint_without_it() -> None:
    """Fields with their default aren't encoded: a value must still be told from none."""
    digests = {hint_digest(HINT)}
    optional = [
        name
        for name in Plan.__struct_fields__
        if f"plan.{name}" not in EXPLAINS and getattr(PLAN, name) != getattr(FULL.plan, name)
    ]
    for name in optional:
        plan = msgspec.structs.replace(PLAN, **{name: getattr(FULL.plan, name)})
        digests.add(hint_digest(msgspec.structs.replace(HINT, plan=plan)))
    assert len(digests) == 1 + len(optional) > 8


@settings(derandomize=True)
@given(st.integers(1, MAX_INT), st.integers(0, MAX_INT), st.text(max_size=20))
def test_a_digest_and_its_negative_are_64_bit_integers(epoch: int, step: int, job: str) -> None:
    hint = msgspec.structs.replace(HINT, epoch=epoch, effective_step=step, job=job)
    assert 0 <= hint_digest(hint) <= MAX_INT
    assert hint_digest(hint) == hint_digest(decode(encode(hint), Hint, what="hint"))
