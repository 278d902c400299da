"""What etcd keeps of a value, and what comes back."""

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.launchjob import wait_for
from trainmesh.store.base import Change
from trainmesh.store.etcd import EtcdStore, connect
from trainmesh.store.rpc import rpc
from trainmesh.store.value import LEAST_BYTES, MARK, MOST_BYTES, packed, unpacked

STATUS = json.dumps(
    {"ranks": [{"rank": n, "node": "host-a", "step": 70 + n, "skew_s": n / 7} for n in range(64)]}
).encode()


@given(st.binary(max_size=3 * LEAST_BYTES))
def test_what_was_stored_comes_back(value: bytes) -> None:
    for full in (value, value * 9):
        assert unpacked(packed(full)) == full
        assert len(packed(full)) <= len(full)


@pytest.mark.parametrize(
    "stored",
    [
        b"{}",
        MARK,
        MARK + b"garbage",
        (MARK + zlib.compress(STATUS))[:-1],
        MARK + zlib.compress(bytes(MOST_BYTES + 1)),
    ],
    ids=["plain", "empty", "garbage", "cut", "bomb"],
)
def test_anything_else_is_left_as_it_is(stored: bytes) -> None:
    assert unpacked(stored) == stored


@pytest.mark.etcd
def test_a_status_takes_a_fifth_in_etcd_and_readers_see_all_of_it(etcd_url: str) -> None:
    store: EtcdStore = connect(etcd_url, timeout_s=20)
    seen: list[Change] = []
    watch = store.watch("/values/", seen.extend)
    store.put("/values/put", STATUS)
    assert store.cas("/values/cas", STATUS, expected_revision=0) is not None
    assert [entry.value for entry in store.list("/values/")[0]] == [STATUS, STATUS]
    kept = store._connection.kv.Range(rpc.RangeRequest(key=b"/values/put")).kvs[0].value
    assert len(kept) < len(STATUS) / 5
    store.put("/values/last", b"1")
    wait_for(lambda: len(seen) == 3)
    watch.close()
    assert [change.value for change in seen] == [STATUS, STATUS, b"1"]
    store.close()
