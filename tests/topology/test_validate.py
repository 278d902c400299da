"""The interpreter bites: schedules that lose or repeat a contribution are refused."""

import pytest

from trainmesh.errors import PlanError
from trainmesh.topology.validate import Message, Schedule, interpret, schedule
from trainmesh.types import Plan

RING = Plan(algorithm="ring", world_size=3, order=(0, 2, 1))


def rounds() -> list[list[Message]]:
    return [list(messages) for messages in schedule(RING).rounds]


def run(messages: list[list[Message]]) -> None:
    interpret(3, Schedule(schedule(RING).chunks, tuple(messages)))


def test_the_right_schedule_passes() -> None:
    run(rounds())


def test_leaving_out_any_one_message_is_noticed() -> None:
    for number, messages in enumerate(rounds()):
        for place in range(len(messages)):
            broken = rounds()
            del broken[number][place]
            with pytest.raises(PlanError):
                run(broken)


def test_repeating_a_reduction_is_noticed() -> None:
    broken = rounds()
    broken.insert(1, broken[0])
    with pytest.raises(PlanError, match="twice"):
        run(broken)


def test_storing_where_it_should_add_is_noticed() -> None:
    broken = rounds()
    first = broken[0][0]
    broken[0][0] = Message(first.src, first.dst, first.chunk, reduce=False)
    with pytest.raises(PlanError, match="without rank"):
        run(broken)
