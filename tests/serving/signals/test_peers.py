"""What several routers tell each other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainmesh.serving.cluster.cordons import (
    Cordon,
    CordonState,
    cordon_prefix,
    newest,
    read_cordons,
)
from trainmesh.serving.cluster.peers import (
    MAX_AGE_S,
    Heard,
    Load,
    RouterState,
    demand_of,
    encoded,
    loads_of,
    read_states,
)
from trainmesh.wire import MAX_BYTES, encode


def heard(name: str, at_s: float, inflight: int = 1, demand: float = 0.0) -> Heard:
    state = RouterState(
        name=name, sequence=1, loads={"u": Load(inflight, 10)}, demand={"m": demand}
    )
    return Heard(state, at_s)


def test_loads_add_up_and_old_ones_do_not_count() -> None:
    others = [heard("a", 10.0, 2), heard("b", 9.0, 3), heard("c", 9.0 - MAX_AGE_S, 50)]
    assert loads_of(others, 10.0) == {"u": Load(5, 20)}
    assert loads_of(others, 100.0) == {}


def test_demand_fades() -> None:
    others = [heard("a", 10.0, demand=8.0)]
    assert demand_of(others, 10.0) == {"m": 8.0}
    assert demand_of(others, 15.0) == {"m": pytest.approx(4.0)}
    assert demand_of(others, 15.1) == {}


def test_own_and_broken_states_are_left_out() -> None:
    good = RouterState(name="b", sequence=3)
    entries = [
        ("k/a", encode(RouterState(name="a", sequence=1)), 1.0),
        ("k/b", encode(good), 2.0),
        ("k/c", b"{}", 3.0),
        ("k/d", b'{"name":"d","sequence":1,"loads":{"u":[-1,0]}}', 3.0),
    ]
    found, problems = read_states(entries, "a")
    assert found == [Heard(good, 2.0)]
    assert len(problems) == 2


def test_a_state_that_is_too_large_says_less() -> None:
    urls = [f"http://{'h' * 200}{n}:1" for n in range(900)]
    state = RouterState(
        name="a",
        sequence=1,
        loads={url: Load(int(n % 10 == 0), 5) for n, url in enumerate(urls)},
        rtts_s=dict.fromkeys(urls, 0.001),
        demand={"m": 1.0},
    )
    assert len(encode(state)) > MAX_BYTES
    data = encoded(state)
    assert len(data) <= MAX_BYTES
    [kept], problems = read_states([("k", data, 1.0)], "b")
    assert sum(load.inflight for load in kept.state.loads.values()) == 90
    assert kept.state.demand == {"m": 1.0}
    assert not problems


def word(since_unix_s: float, state: CordonState = CordonState.CORDON) -> Cordon:
    return Cordon(state=state, by="admin:eve", since_unix_s=since_unix_s)


@given(
    st.dictionaries(st.sampled_from("abc"), st.floats(0, 100)),
    st.dictionaries(st.sampled_from("abc"), st.floats(0, 100)),
)
@settings(derandomize=True, max_examples=100)
def test_the_newest_word_counts(ours: dict[str, float], theirs: dict[str, float]) -> None:
    merged = newest(
        {name: word(at) for name, at in ours.items()},
        {name: word(at, CordonState.OPEN) for name, at in theirs.items()},
    )
    assert merged.keys() == ours.keys() | theirs.keys()
    for name, cordon in merged.items():
        assert cordon.since_unix_s == max(ours.get(name, -1), theirs.get(name, -1))
        assert (cordon.state is CordonState.OPEN) == (theirs.get(name, -1) >= ours.get(name, -1))


def test_cordons_are_read_by_name_and_broken_ones_left_out() -> None:
    prefix = cordon_prefix("g")
    found, problems = read_cordons(
        {f"{prefix}h:1": encode(word(1.0)), f"{prefix}h:2": b'{"state":"shut"}'}, "g"
    )
    assert found == {"h:1": word(1.0)}
    assert len(problems) == 1
