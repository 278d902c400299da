"""The coordinator follows every change of the job's world, and a store that loses things."""

import pytest
from msgspec.structs import replace

from tests.elastic import MB, ElasticJob
from tests.topology.graphs import racks
from trainmesh.coordinator.tuning.settings import Settings
from trainmesh.topology.graph import LinkGraph
from trainmesh.types import RankReport

FUSED = Settings(only="native", fusion_bytes=8 * MB)
TREE = Settings(only="tree")
UNEQUAL = racks([0, 2, 1, 3], uplink=1, nic=1, per_rack=2)


def assert_in_force(job: ElasticJob, *, ticks: int = 40) -> None:
    """Within a bounded time all ranks run a plan that was made for exactly them."""
    size = len(job.ranks)
    for _ in range(ticks):
        job.tick()
    status = job.coordinator.status(job.now_s)
    assert status.world_size == size
    assert {one.node for one in status.ranks} == set(job._names())
    if size < 2:
        return  # nothing to agree on
    epochs = {rank.epoch for rank in job.ranks}
    assert len(epochs) == 1
    assert epochs == {status.epoch}
    assert status.epoch > 0
    assert job.stored is not None
    assert job.stored == status.hint
    assert job.stored.epoch == status.epoch
    assert (job.stored.world, job.stored.plan.world_size) == (job.world, size)


@pytest.mark.parametrize("settings", [FUSED, TREE])
@pytest.mark.parametrize(
    "sizes", [("abcd", "ab", "abcd"), ("a", "ab", "a", "ab"), ("ab", "ac"), ("abc", "cab")]
)
def test_after_every_change_of_size_a_plan_is_made(
    settings: Settings, sizes: tuple[str, ...]
) -> None:
    job = ElasticJob(1, settings)
    for names in sizes:
        job.start(names)
        assert_in_force(job)


def test_a_restart_at_a_late_step_costs_no_blind_steps() -> None:
    job = ElasticJob(1, FUSED)
    job.start("ab")
    job.step = 100_000
    assert_in_force(job)
    assert job.stored is not None
    assert job.stored.effective_step > 100_000
    job.start("ab")
    job.tick()
    assert job.stored.world == job.world
    assert job.stored.effective_step < 20
    assert "as before the restart" in job.stored.reason
    job.tick()
    assert {rank.epoch for rank in job.ranks} == {job.stored.epoch}


def test_a_plan_that_never_proved_itself_is_not_carried_over() -> None:
    """It may be what has ended the processes."""
    job = ElasticJob(1, TREE)
    job.start("ab")
    while not job.coordinator.status(job.now_s).epoch:
        job.tick(2)
    job.start("ab")
    job.tick(1)
    assert job.stored is not None
    assert "as before the restart" not in job.stored.reason
    assert_in_force(job)


def test_a_key_of_an_earlier_job_is_replaced() -> None:
    earlier = ElasticJob(1, FUSED)
    earlier.start("ab")
    earlier.step = 100_000
    assert_in_force(earlier)
    job = ElasticJob(2, FUSED)
    job.store(earlier.stored)
    job.start("ab")
    assert_in_force(job, ticks=4)
    assert job.stored is not None
    assert earlier.stored is not None
    assert job.stored.epoch > earlier.stored.epoch


@pytest.mark.parametrize("heard", [True, False])
def test_a_deleted_hint_is_stored_again(heard: bool) -> None:
    job = ElasticJob(1, FUSED)
    job.start("ab")
    assert_in_force(job)
    before = job.stored
    job.store(None, heard=heard)
    for _ in range(6):
        job.tick()
    assert job.stored == before
    assert_in_force(job)


def test_a_new_coordinator_on_an_empty_store_goes_above_what_ranks_run() -> None:
    job = ElasticJob(1, FUSED)
    job.start("ab")
    assert_in_force(job)
    for _ in range(3):
        before = job.ranks[0].epoch
        job._lose_everything()
        assert_in_force(job)
        assert job.ranks[0].epoch > before


def test_an_epoch_that_ranks_have_passed_is_given_again() -> None:
    """A new coordinator publishes what is asked for before it has heard what they run."""
    job = ElasticJob(1, FUSED)
    job.start("ab")
    assert_in_force(job)
    for rank in job.ranks:
        rank.epoch, rank.plan = 33, (33, 0)
    job._lose_everything()
    for rank in job.ranks:
        job._send(rank, RankReport(hello=rank.hello))
    job._deliver()
    job.decide()
    assert job.stored is not None
    assert job.stored.epoch < 33
    assert_in_force(job, ticks=6)
    assert job.stored.epoch == 34


def test_the_last_epoch_is_said_and_nothing_breaks() -> None:
    job = ElasticJob(1, FUSED)
    job.start("ab")
    assert_in_force(job)
    assert job.stored is not None
    job.store(replace(job.stored, epoch=2**63 - 1, world=1))
    job.start("abc")
    for _ in range(40):
        job.tick()
    texts = [event.text for event in job.coordinator.status(job.now_s).events]
    assert texts.count("no epoch is left for another plan") == 1


@pytest.mark.parametrize("declared", [None, UNEQUAL])
@pytest.mark.parametrize("settings", [FUSED, TREE])
@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_the_ranks_get_a_plan_when_it_is_over(
    seed: int, settings: Settings, declared: LinkGraph | None
) -> None:
    mishaps(seed, settings, declared)


@pytest.mark.soak
@pytest.mark.fault
@pytest.mark.parametrize("seed", range(1000, 1300))
def test_mishaps_at_length(seed: int) -> None:
    mishaps(seed, (FUSED, TREE, Settings())[seed % 3], (None, UNEQUAL)[seed % 2], rounds=6)


def mishaps(seed: int, settings: Settings, declared: LinkGraph | None, rounds: int = 2) -> None:
    job = ElasticJob(seed, settings, declared, loss=0.05, delay=0.1)
    job.start("ab")
    for _ in range(rounds):
        job.loss, job.delay = 0.05, 0.1
        for _ in range(12):
            for _ in range(job.draw.randrange(3)):
                job.disturb()
            job.tick(job.draw.randrange(1, 8))
        job.calm()
        if settings.only is not None:
            assert_in_force(job)
