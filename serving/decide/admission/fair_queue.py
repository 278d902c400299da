"""The queue of one model: fair between tenants, by priority, bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import inf
from typing import Any, Final

from trainmesh.serving.decide.admission.quota import Quota
from trainmesh.serving.decide.pool import Pool
from trainmesh.serving.decide.types import RequestFacts

__all__ = ["FairQueue", "Ticket"]

RATE_SAMPLES: Final = 64
MIN_RATE_SAMPLES: Final = 8
RATE_FOR_S: Final = 30.0


class Ticket:
    """A request that asks to be let in; ``owner`` is whatever the caller knows it by."""

    __slots__ = ("facts", "line", "owner", "queued_at_s", "quota", "start", "waiting")

    def __init__(self, facts: RequestFacts, owner: Any) -> None:
        self.facts = facts
        self.owner = owner
        self.line: FairQueue
        self.quota: Quota
        self.start = 0.0
        """Its tag in the fair queue, in tokens over weight."""
        self.queued_at_s = 0.0
        self.waiting = False

    @property
    def tokens(self) -> int:
        return self.facts.prompt_tokens + self.facts.output_tokens


class TenantQueue:
    """What one tenant has waiting at one priority, the oldest first."""

    __slots__ = ("finish", "priority", "tickets", "weight")

    def __init__(self, priority: int, weight: float) -> None:
        self.priority = priority
        self.weight = weight
        self.tickets: deque[Ticket] = deque()
        self.finish = 0.0
        """The tag that its next ticket begins at."""


class FairQueue:
    """The lanes of one model, and what of it is let in."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.inflight = 0
        """Requests let in and not ended."""
        self.waiting = 0
        self.capacity = 0
        self._lanes: dict[tuple[int, str], TenantQueue] = {}
        self._now_tag = 0.0
        self._ended_s: deque[float] = deque(maxlen=RATE_SAMPLES)
        self.measure()

    def measure(self) -> None:
        """Asks the pool how much it can take."""
        self.capacity = self.pool.capacity()

    @property
    def has_room(self) -> bool:
        """Also where no endpoint is in service: then the pool says why, at once."""
        return self.inflight < self.capacity or not self.pool.in_service

    def ended(self, now_s: float) -> None:
        self.inflight -= 1
        self._ended_s.append(now_s)

    def wait_s(self, ticket: Ticket, now_s: float) -> float:
        """How long it would wait, at the rate at which requests ended lately; 0 if unknown."""
        ended = self._ended_s
        while ended and now_s - ended[0] > RATE_FOR_S:
            ended.popleft()
        if len(ended) < MIN_RATE_SAMPLES:
            return 0.0
        return (self._ahead(ticket) + 1) * max(now_s - ended[0], 1e-9) / len(ended)

    def add(self, ticket: Ticket, now_s: float) -> None:
        """Lets it wait."""
        lane = self._lane(ticket)
        ticket.start = max(self._now_tag, lane.finish)
        lane.finish = ticket.start + (ticket.tokens + 1) / lane.weight
        lane.tickets.append(ticket)
        ticket.queued_at_s = now_s
        ticket.waiting = True
        self.waiting += 1

    def put_back(self, ticket: Ticket, now_s: float) -> None:
        """Lets it wait, before all others of its tenant."""
        lane = self._lane(ticket)
        first = lane.tickets[0].start if lane.tickets else self._now_tag
        ticket.start = min(ticket.start or first, first)
        lane.tickets.appendleft(ticket)
        lane.finish = max(lane.finish, ticket.start)
        ticket.queued_at_s = ticket.queued_at_s or now_s
        ticket.waiting = True
        self.waiting += 1

    def remove(self, ticket: Ticket) -> None:
        """It waits no longer: its client went, or it was pushed out."""
        lane = self._lane(ticket)
        lane.tickets.remove(ticket)
        lane.finish = max(ticket.start, lane.finish - (ticket.tokens + 1) / lane.weight)
        self._left(ticket)

    def take(self) -> Ticket | None:
        """The next one whose tenant may have more in flight."""
        best: TenantQueue | None = None
        for lane in self._lanes.values():
            if not lane.tickets or lane.tickets[0].quota.full:
                continue
            if best is None or _order(lane) < _order(best):
                best = lane
        if best is None:
            return None
        ticket = best.tickets.popleft()
        self._now_tag = max(self._now_tag, ticket.start)
        self._left(ticket)
        return ticket

    def expire(self, before_s: float) -> Iterator[Ticket]:
        """Takes out those that wait since before ``before_s``."""
        for lane in tuple(self._lanes.values()):
            while lane.tickets and lane.tickets[0].queued_at_s <= before_s:
                ticket = lane.tickets.popleft()
                self._left(ticket)
                yield ticket
        self._lanes = {
            key: lane
            for key, lane in self._lanes.items()
            if lane.tickets or lane.finish > self._now_tag
        }

    def worst(self, ticket: Ticket) -> Ticket | None:
        """Who should go if the line is full and ``ticket`` comes: the newest of the worst
        priority and there of the tenant with the most waiting; None: ``ticket`` itself."""
        lanes = [lane for lane in self._lanes.values() if lane.tickets]
        if not lanes:
            return None
        worst = max(lanes, key=_badness)
        own = self._lane(ticket)
        if (own.priority, (len(own.tickets) + 1) / own.weight) >= _badness(worst):
            return None
        return worst.tickets[-1]

    def drain(self) -> Iterator[Ticket]:
        """Takes out all."""
        yield from self.expire(inf)

    def _lane(self, ticket: Ticket) -> TenantQueue:
        key = (ticket.facts.priority, ticket.facts.tenant)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = TenantQueue(key[0], ticket.quota.config.weight)
        return lane

    def _left(self, ticket: Ticket) -> None:
        ticket.waiting = False
        self.waiting -= 1

    def _ahead(self, ticket: Ticket) -> float:
        """Requests that would go before one that joins now: all of better priorities, and of the
        same one what each tenant may send until it is this one's turn."""
        own = self._lane(ticket)
        turns = (len(own.tickets) + 1) / own.weight
        ahead = float(len(own.tickets))
        for lane in self._lanes.values():
            if lane.priority < own.priority:
                ahead += len(lane.tickets)
            elif lane.priority == own.priority and lane is not own:
                ahead += min(len(lane.tickets), turns * lane.weight)
        return ahead


def _order(lane: TenantQueue) -> tuple[int, float]:
    return lane.priority, lane.tickets[0].start


def _badness(lane: TenantQueue) -> tuple[int, float]:
    return lane.priority, len(lane.tickets) / lane.weight
