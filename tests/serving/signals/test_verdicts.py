"""Who may say what about a subject, and what of it holds."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainmesh.errors import StoreError
from trainmesh.serving.cluster.verdicts import (
    AUTOMATION,
    QUARANTINE,
    Overruled,
    SubjectKind,
    Verdict,
    in_force,
    judge,
    key_of,
    link_names,
    read_verdicts,
)
from trainmesh.store.base import Entry
from trainmesh.store.memory import MemoryStore
from trainmesh.wire import encode


def verdict(
    owner: str, since_unix_s: float = 1.0, *, until: float | None = None, released: bool = False
) -> Verdict:
    return Verdict(
        kind=SubjectKind.LINK,
        subject="a->b",
        reason="",
        owner=owner,
        since_unix_s=since_unix_s,
        until_unix_s=until,
        released=released,
    )


def held(store: MemoryStore) -> Verdict:
    [entry] = store.list(QUARANTINE)[0]
    return msgspec.json.decode(entry.value, type=Verdict)


@pytest.mark.parametrize("released", [False, True])
def test_a_person_is_never_overruled_by_automation(released: bool) -> None:
    store = MemoryStore()
    word = verdict("admin:eve", released=released)
    assert judge(store, word) is None
    for later in (verdict(AUTOMATION, 2.0), verdict(AUTOMATION, 3.0, released=True)):
        with pytest.raises(Overruled, match="by admin:eve, which only a person may change"):
            judge(store, later)
    assert held(store) == word
    other = verdict("admin:bob", 4.0, released=not released)
    assert judge(store, other) == word
    assert held(store) == other


def test_a_word_that_has_ended_binds_nobody() -> None:
    store = MemoryStore()
    judge(store, verdict("admin:eve", until=10.0))
    with pytest.raises(Overruled):
        judge(store, verdict(AUTOMATION, 9.0))
    judge(store, verdict(AUTOMATION, 11.0))
    assert held(store).owner == AUTOMATION


def test_automation_changes_its_own_word_and_a_person_any() -> None:
    store = MemoryStore()
    judge(store, verdict(AUTOMATION, 1.0))
    judge(store, verdict(AUTOMATION, 2.0, released=True))
    judge(store, verdict("admin:eve", 3.0))
    assert held(store).by_person


@given(
    st.lists(
        st.tuples(st.sampled_from(["admin:a", "admin:b", AUTOMATION]), st.booleans()), max_size=20
    )
)
@settings(derandomize=True, max_examples=100)
def test_the_last_person_decides(words: list[tuple[str, bool]]) -> None:
    store = MemoryStore()
    for number, (owner, released) in enumerate(words):
        try:
            judge(store, verdict(owner, float(number), released=released))
        except Overruled:
            assert owner == AUTOMATION
    people = [word for word in words if word[0] != AUTOMATION]
    if words:
        expected = (people or words)[-1]
        assert (held(store).owner, held(store).released) == expected
    store.close()


class Contended(MemoryStore):
    """Somebody else writes between every read and write."""

    def __init__(self, meddle: int) -> None:
        super().__init__()
        self._meddle = meddle

    def get(self, key: str) -> Entry | None:
        entry = super().get(key)
        if self._meddle:
            self._meddle -= 1
            self.put(key, encode(verdict("admin:eve", float(self._meddle))))
        return entry


def test_a_writer_decides_on_what_the_store_holds() -> None:
    store = Contended(1)
    with pytest.raises(Overruled):  # the verdict came after automation had looked
        judge(store, verdict(AUTOMATION))
    store = Contended(2)
    judge(store, verdict("admin:bob", 9.0))
    assert held(store).owner == "admin:bob"
    with pytest.raises(StoreError, match="changed 5 times meanwhile"):
        judge(Contended(99), verdict("admin:bob"))


def test_what_holds_now() -> None:
    verdicts = [
        verdict("admin:a"),
        verdict("admin:b", until=10.0),
        verdict("admin:c", released=True),
    ]
    assert [v.owner for v in in_force(verdicts, 9.0)] == ["admin:a", "admin:b"]
    assert [v.owner for v in in_force(verdicts, 10.0)] == ["admin:a"]


def test_values_that_make_no_sense_are_named_and_left_out() -> None:
    good = verdict("admin:a")
    entries = {
        key_of(SubjectKind.LINK, "a->b"): encode(good),
        key_of(SubjectKind.LINK, "b->c"): encode(good),
        key_of(SubjectKind.NODE, "h1"): b"\x80\x04pickle",
        key_of(SubjectKind.NODE, "h2"): b'{"kind": "node"}',
        key_of(SubjectKind.NODE, "h3"): b"[" * 100_000,
    }
    verdicts, problems = read_verdicts(entries)
    assert verdicts == [good]
    assert len(problems) == 4
    assert any("b->c: it holds a verdict on a->b" in problem for problem in problems)
    assert all(len(problem) < 300 and problem.startswith("ignored: ") for problem in problems)


def test_a_broken_value_does_not_stop_a_new_verdict() -> None:
    store = MemoryStore()
    store.put(key_of(SubjectKind.LINK, "a->b"), b"broken")
    assert judge(store, verdict(AUTOMATION)) is None
    assert held(store).owner == AUTOMATION


def test_links_in_one_direction_and_in_both() -> None:
    assert link_names("a->b") == ("a->b",)
    assert link_names("a<->b") == ("a->b", "b->a")
