"""Shared counters: cells that workers write and others read, over restarts and reloads."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainmesh.errors import WireError
from trainmesh.serving.config.types import Config, EndpointConfig, ModelConfig, TenantConfig
from trainmesh.serving.decide.types import AttemptOutcome
from trainmesh.serving.observe.cells import (
    BOUNDS_S,
    OTHER,
    STATUSES,
    CellLayout,
    EndpointCells,
    ModelCells,
    Names,
    SharedHistogram,
    TenantCells,
    WorkerCells,
    is_gauge,
    is_real,
    names_of,
    status_index,
)
from trainmesh.serving.observe.shared_counters import SharedCounters, WorkerRow

NAMES = Names(models=(("m", ("a", "b")), ("n", ("a",))), tenants=("gold", OTHER))


@pytest.fixture
def counters(tmp_path: Path) -> SharedCounters:
    return SharedCounters.create(tmp_path / "board-1", NAMES, workers=2)


def test_names_come_from_the_config() -> None:
    endpoint = EndpointConfig(url="http://127.0.0.1:9001", name="a")
    config = Config(
        version=1, models={"m": ModelConfig(endpoints=(endpoint,))}, tenants={"t": TenantConfig()}
    )
    assert names_of(config) == Names(models=(("m", ("a",)),), tenants=("t", "anonymous", OTHER))


def test_no_two_names_share_a_cell() -> None:
    layout = CellLayout(NAMES)
    used = [offset for _, offsets in layout.blocks() for offset in offsets]
    assert sorted(used) == list(range(layout.num_cells))


def test_rows_add_up_and_stay_apart(counters: SharedCounters) -> None:
    cells = counters.layout.endpoints["m", "b"]
    counters.row(0).cells[cells.attempts] += 3
    counters.row(1).cells[cells.attempts] += 4
    counters.row(1).reals[cells.ttft_s] += 0.25
    assert counters.total(cells.attempts) == 7
    assert counters.others(cells.attempts, 1) == 3
    assert counters.total_real(cells.ttft_s) == 0.25
    assert counters.total(counters.layout.endpoints["m", "a"].attempts) == 0


def test_another_process_sees_what_is_counted_and_the_other_way_round(
    counters: SharedCounters,
) -> None:
    cells = counters.layout.models["m"]
    counters.row(0).cells[cells.requests] = 41
    script = (
        "import sys; from pathlib import Path\n"
        "from trainmesh.serving.observe.shared_counters import SharedCounters\n"
        "counters = SharedCounters.open(Path(sys.argv[1])); cells = counters.layout.models['m']\n"
        "counters.row(1).cells[cells.requests] = counters.row(0).cells[cells.requests] + 1\n"
    )
    subprocess.run([sys.executable, "-c", script, counters.path], check=True, timeout=30)
    assert counters.row(1).cells[cells.requests] == 42


def test_every_outcome_has_its_own_cell() -> None:
    cells = CellLayout(NAMES).endpoints["m", "a"]
    assert len({cells.outcome(outcome) for outcome in AttemptOutcome}) == len(AttemptOutcome)


def test_fields_say_what_they_are() -> None:
    assert is_gauge(EndpointCells, "inflight")
    assert not is_gauge(EndpointCells, "attempts")
    assert is_real(EndpointCells, "ttft_s")
    assert not is_real(WorkerCells, "pid")
    for group in (WorkerCells, ModelCells, EndpointCells, TenantCells):
        for field in group._fields:
            assert is_real(group, field) == field.endswith(("_s", "s_per_token")), field


def test_statuses_that_are_not_listed_count_as_others() -> None:
    assert STATUSES[status_index(429)] == 429
    assert STATUSES[status_index(418)] == 0


def test_tenants_that_are_not_listed_count_as_other(counters: SharedCounters) -> None:
    assert counters.layout.tenant("gold") == counters.layout.tenants["gold"]
    assert counters.layout.tenant("who?") == counters.layout.tenants[OTHER]


@settings(derandomize=True, max_examples=200)
@given(st.floats(0, 2000))
def test_a_duration_falls_into_the_bucket_that_holds_it(seconds: float) -> None:
    data = memoryview(bytearray(8 * SharedHistogram.NUM_CELLS))
    cells, reals = data.cast("q"), data.cast("d")
    SharedHistogram(0).observe(cells, reals, seconds)
    bucket = list(cells[: len(BOUNDS_S) + 1]).index(1)
    assert bucket == len(BOUNDS_S) or seconds <= BOUNDS_S[bucket]
    assert bucket == 0 or seconds > BOUNDS_S[bucket - 1]
    assert reals[SharedHistogram(0).sum_offset] == seconds


def test_a_worker_that_comes_again_forgets_what_was_in_flight(counters: SharedCounters) -> None:
    cells = counters.layout.endpoints["m", "a"]
    row = counters.row(0)
    row.cells[cells.inflight], row.cells[cells.attempts] = 5, 9
    row.reals[cells.base_s] = 0.1
    row.clear_gauges()
    assert (row.cells[cells.inflight], row.cells[cells.attempts]) == (0, 9)
    assert row.reals[cells.base_s] == 0


def test_counters_of_names_that_stay_survive_a_reload(
    counters: SharedCounters, tmp_path: Path
) -> None:
    cells = counters.layout.endpoints["m", "b"]
    for worker in (0, 1):
        counters.row(worker).cells[cells.attempts] = 10
        counters.row(worker).cells[cells.inflight] = 1
        counters.row(worker).cells[counters.layout.endpoints["n", "a"].attempts] = 5
    names = Names(models=(("new", ("a",)), ("m", ("b", "c"))), tenants=(OTHER,))
    after = SharedCounters.create(
        tmp_path / "board-2", names, workers=1, generation=2, old=counters
    )
    moved = after.layout.endpoints["m", "b"]
    assert after.generation == 2
    assert after.total(moved.attempts) == 20, "also those of the worker that is no more"
    assert after.total(moved.inflight) == 1, "but not what it had in flight"
    assert after.total(after.layout.endpoints["new", "a"].attempts) == 0

    # The worker goes on counting in the old one until it moves; nothing is lost or counted twice.
    counters.row(0).cells[cells.attempts] += 7
    assert after.total(moved.attempts) == 20
    after.row(0).adopt(counters.row(0))
    assert after.total(moved.attempts) == 27


def test_an_unlinked_board_stays_mapped(counters: SharedCounters) -> None:
    counters.remove()
    counters.remove()
    counters.row(0).cells[counters.layout.worker.pid] = 7
    assert counters.total(counters.layout.worker.pid) == 7
    counters.close()


def _cut(data: bytes) -> bytes:
    return data[:-8]


def _other_magic(data: bytes) -> bytes:
    return b"X" + data[1:]


def _long_header(data: bytes) -> bytes:
    return data[:8] + (1 << 40).to_bytes(8, "little") + data[16:]


def _bad_header(data: bytes) -> bytes:
    return data[:16] + b"!" + data[17:]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut, "bytes instead of"),
        (_other_magic, "not a counters file of this version"),
        (_long_header, "a header of 1099511627776 bytes"),
        (_bad_header, "malformed"),
        (lambda _: b"", "can't map"),
    ],
)
def test_a_damaged_board_is_refused_in_words(
    counters: SharedCounters, damage: object, said: str
) -> None:
    assert callable(damage)
    counters.path.write_bytes(damage(counters.path.read_bytes()))
    with pytest.raises(WireError, match=said):
        SharedCounters.open(counters.path)


def test_a_missing_board_and_folder_are_reported(tmp_path: Path) -> None:
    with pytest.raises(WireError, match="can't map"):
        SharedCounters.open(tmp_path / "none")
    with pytest.raises(OSError, match="none/board"):
        SharedCounters.create(tmp_path / "none" / "board", NAMES, workers=1)


def test_adopt_between_equal_layouts_copies_everything() -> None:
    layout = CellLayout(NAMES)
    old, new = (WorkerRow(layout, memoryview(bytearray(8 * layout.num_cells))) for _ in range(2))
    for index in range(layout.num_cells):
        old.cells[index] = index
    new.adopt(old)
    assert list(new.cells) == list(range(layout.num_cells))
