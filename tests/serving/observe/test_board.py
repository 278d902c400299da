"""The board: cells that workers write and others read, over restarts and reloads."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainmesh.errors import WireError
from trainmesh.serving.config.types import Config, EndpointConfig, ModelConfig, TenantConfig
from trainmesh.serving.decide.types import Outcome
from trainmesh.serving.observe.board import Board, Row
from trainmesh.serving.observe.cells import (
    BOUNDS_S,
    OTHER,
    STATUSES,
    EndpointCells,
    Histogram,
    Layout,
    ModelCells,
    Names,
    TenantCells,
    WorkerCells,
    is_gauge,
    is_real,
    names_of,
    status_index,
)

NAMES = Names(models=(("m", ("a", "b")), ("n", ("a",))), tenants=("gold", OTHER))


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board.create(tmp_path / "board-1", NAMES, workers=2)


def test_names_come_from_the_config() -> None:
    endpoint = EndpointConfig(url="http://127.0.0.1:9001", name="a")
    config = Config(
        version=1, models={"m": ModelConfig(endpoints=(endpoint,))}, tenants={"t": TenantConfig()}
    )
    assert names_of(config) == Names(models=(("m", ("a",)),), tenants=("t", "anonymous", OTHER))


def test_no_two_names_share_a_cell() -> None:
    layout = Layout(NAMES)
    used = [offset for _, offsets in layout.blocks() for offset in offsets]
    assert sorted(used) == list(range(layout.num_cells))


def test_rows_add_up_and_stay_apart(board: Board) -> None:
    cells = board.layout.endpoints["m", "b"]
    board.row(0).cells[cells.attempts] += 3
    board.row(1).cells[cells.attempts] += 4
    board.row(1).reals[cells.ttft_s] += 0.25
    assert board.total(cells.attempts) == 7
    assert board.others(cells.attempts, 1) == 3
    assert board.total_real(cells.ttft_s) == 0.25
    assert board.total(board.layout.endpoints["m", "a"].attempts) == 0


def test_another_process_sees_what_is_counted_and_the_other_way_round(board: Board) -> None:
    cells = board.layout.models["m"]
    board.row(0).cells[cells.requests] = 41
    script = (
        "import sys; from pathlib import Path; from trainmesh.serving.observe.board import Board\n"
        "board = Board.open(Path(sys.argv[1])); cells = board.layout.models['m']\n"
        "board.row(1).cells[cells.requests] = board.row(0).cells[cells.requests] + 1\n"
    )
    subprocess.run([sys.executable, "-c", script, board.path], check=True, timeout=30)
    assert board.row(1).cells[cells.requests] == 42


def test_every_outcome_has_its_own_cell() -> None:
    cells = Layout(NAMES).endpoints["m", "a"]
    assert len({cells.outcome(outcome) for outcome in Outcome}) == len(Outcome)


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


def test_tenants_that_are_not_listed_count_as_other(board: Board) -> None:
    assert board.layout.tenant("gold") == board.layout.tenants["gold"]
    assert board.layout.tenant("who?") == board.layout.tenants[OTHER]


@settings(derandomize=True, max_examples=200)
@given(st.floats(0, 2000))
def test_a_duration_falls_into_the_bucket_that_holds_it(seconds: float) -> None:
    data = memoryview(bytearray(8 * Histogram.NUM_CELLS))
    cells, reals = data.cast("q"), data.cast("d")
    Histogram(0).observe(cells, reals, seconds)
    bucket = list(cells[: len(BOUNDS_S) + 1]).index(1)
    assert bucket == len(BOUNDS_S) or seconds <= BOUNDS_S[bucket]
    assert bucket == 0 or seconds > BOUNDS_S[bucket - 1]
    assert reals[Histogram(0).sum_offset] == seconds


def test_a_worker_that_comes_again_forgets_what_was_in_flight(board: Board) -> None:
    cells = board.layout.endpoints["m", "a"]
    row = board.row(0)
    row.cells[cells.inflight], row.cells[cells.attempts] = 5, 9
    row.reals[cells.base_s] = 0.1
    row.clear_gauges()
    assert (row.cells[cells.inflight], row.cells[cells.attempts]) == (0, 9)
    assert row.reals[cells.base_s] == 0


def test_counters_of_names_that_stay_survive_a_reload(board: Board, tmp_path: Path) -> None:
    cells = board.layout.endpoints["m", "b"]
    for worker in (0, 1):
        board.row(worker).cells[cells.attempts] = 10
        board.row(worker).cells[cells.inflight] = 1
        board.row(worker).cells[board.layout.endpoints["n", "a"].attempts] = 5
    names = Names(models=(("new", ("a",)), ("m", ("b", "c"))), tenants=(OTHER,))
    after = Board.create(tmp_path / "board-2", names, workers=1, generation=2, old=board)
    moved = after.layout.endpoints["m", "b"]
    assert after.generation == 2
    assert after.total(moved.attempts) == 20, "also those of the worker that is no more"
    assert after.total(moved.inflight) == 1, "but not what it had in flight"
    assert after.total(after.layout.endpoints["new", "a"].attempts) == 0

    # The worker goes on counting in the old one until it moves; nothing is lost or counted twice.
    board.row(0).cells[cells.attempts] += 7
    assert after.total(moved.attempts) == 20
    after.row(0).adopt(board.row(0))
    assert after.total(moved.attempts) == 27


def test_an_unlinked_board_stays_mapped(board: Board) -> None:
    board.remove()
    board.remove()
    board.row(0).cells[board.layout.worker.pid] = 7
    assert board.total(board.layout.worker.pid) == 7
    board.close()


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
        (_other_magic, "not a board of this version"),
        (_long_header, "a header of 1099511627776 bytes"),
        (_bad_header, "malformed"),
        (lambda _: b"", "can't map"),
    ],
)
def test_a_damaged_board_is_refused_in_words(board: Board, damage: object, said: str) -> None:
    assert callable(damage)
    board.path.write_bytes(damage(board.path.read_bytes()))
    with pytest.raises(WireError, match=said):
        Board.open(board.path)


def test_a_missing_board_and_folder_are_reported(tmp_path: Path) -> None:
    with pytest.raises(WireError, match="can't map"):
        Board.open(tmp_path / "none")
    with pytest.raises(OSError, match="none/board"):
        Board.create(tmp_path / "none" / "board", NAMES, workers=1)


def test_adopt_between_equal_layouts_copies_everything() -> None:
    layout = Layout(NAMES)
    old, new = (Row(layout, memoryview(bytearray(8 * layout.num_cells))) for _ in range(2))
    for index in range(layout.num_cells):
        old.cells[index] = index
    new.adopt(old)
    assert list(new.cells) == list(range(layout.num_cells))
