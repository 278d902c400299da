"""Decides which requests are let in, which wait and which are refused.

Each model has a line with lanes by priority and tenant. Lanes of the best priority go first;
among them the one whose first request has the least start tag (start-time fair queueing; Goyal,
Vin and Cheng, 1997: tags grow by tokens over weight), so each tenant gets its share of tokens
whatever others send. A request that would wait longer than it may is refused at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Final

from trainmesh.serving.config.types import Config, TenantConfig
from trainmesh.serving.decide.admission.fair_queue import FairQueue, Ticket
from trainmesh.serving.decide.admission.quota import Quota
from trainmesh.serving.decide.pool import Pool
from trainmesh.serving.refusal import Refusal

__all__ = ["Admission", "Admitted", "Queued", "Ticket"]

MAX_RETRY_AFTER_S: Final = 60.0


@dataclass(frozen=True)
class Admitted:
    """It may be sent now."""


@dataclass(frozen=True)
class Queued:
    """It waits: a later call returns its ticket, to be sent or to be refused."""


_ADMITTED: Final = Admitted()
_QUEUED: Final = Queued()


class Admission:
    """One worker's, for all models.

    Args:
        config: limits and tenants.
        pools: by the names of their models.
        now_s: monotonic seconds.
        previous: the one that this one replaces after a reload: what waits or was let in there
            goes on here. It must not be used any more.
    """

    def __init__(
        self,
        config: Config,
        pools: Mapping[str, Pool],
        *,
        now_s: float,
        previous: Admission | None = None,
    ) -> None:
        self._limits = config.limits
        self._tickets: dict[object, Ticket] = {}
        self._out: list[tuple[Ticket, Refusal]] = []
        old_lines: dict[str, FairQueue] = {}
        old_quotas: dict[str, Quota] = {}
        if previous is not None:
            self._tickets, self._out = previous._tickets, previous._out
            old_lines, old_quotas = dict(previous._lines), previous._quotas
        self._quotas: dict[str, Quota] = _quotas(config, now_s, old_quotas)
        self._unlisted = Quota(TenantConfig(), now_s)
        self._lines: dict[str, FairQueue] = {}
        for name, pool in pools.items():
            line = old_lines.pop(name) if name in old_lines else FairQueue(pool)
            self._lines[name] = line
            line.pool = pool
            line.measure()
        for name, line in old_lines.items():
            gone = _overloaded(404, f"the model {name!r} is not served any more", 1)
            self._out.extend((ticket, gone) for ticket in line.drain())

    def waiting(self, model: str) -> int:
        """Requests of this worker that wait for a model."""
        return self._lines[model].waiting

    def offer(self, ticket: Ticket, now_s: float) -> Admitted | Queued | Refusal:
        """A request came, for a model that there is."""
        facts = ticket.facts
        line = ticket.line = self._lines[facts.model]
        quota = ticket.quota = self._quotas.get(facts.tenant, self._unlisted)
        if line.pool.shares:
            line.measure()
        wait_s = quota.wait_s(ticket.tokens, now_s)
        if wait_s > 0:
            return _refused(f"tenant {facts.tenant}: more than its rate allows", wait_s)
        if line.has_room and not quota.full:
            self._let_in(ticket)
            return _ADMITTED
        refused = self._cannot_wait(ticket, now_s)
        if refused is not None:
            return refused
        quota.take(1, ticket.tokens)
        self._tickets[ticket.owner] = ticket
        line.add(ticket, now_s)
        return _QUEUED

    def release(
        self,
        owner: object,
        now_s: float,
        output_tokens: int | None = None,
        prompt_tokens: int | None = None,
    ) -> list[Ticket]:
        """A request is over, let in or not; returns those that are let in now.

        Args:
            owner: of its ticket; an unknown one is ignored.
            now_s: monotonic seconds.
            output_tokens: what the answer had; what was expected beyond is given back.
            prompt_tokens: what the endpoint counted; what was estimated beyond is given back.
        """
        ticket = self._tickets.pop(owner, None)
        if ticket is None:
            return []
        if ticket.waiting:
            ticket.line.remove(ticket)
            ticket.quota.give_back(ticket.tokens)
            return []
        ticket.line.ended(now_s)
        ticket.quota.inflight -= 1
        if output_tokens is not None:
            ticket.quota.give_back(ticket.facts.output_tokens - output_tokens)
        if prompt_tokens is not None:
            ticket.quota.give_back(ticket.facts.prompt_tokens - prompt_tokens)
        for line in self._lines.values():
            if line.waiting:
                return self._start()
        return []

    def put_back(self, ticket: Ticket, now_s: float) -> None:
        """It was let in, but no endpoint has room after all, as other workers or models have taken
        it: it waits again, as the first of its tenant."""
        ticket.line.inflight -= 1
        ticket.quota.inflight -= 1
        ticket.line.put_back(ticket, now_s)

    def withdraw(self, ticket: Ticket, now_s: float) -> list[Ticket]:
        """The client went; as ``release``."""
        return self.release(ticket.owner, now_s)

    def ready(self, now_s: float) -> list[Ticket]:
        """Those that are let in because the pools can take more than before; to be called every
        0.1 s or so."""
        for line in self._lines.values():
            line.measure()
        return self._start()

    def expire(self, now_s: float) -> list[tuple[Ticket, Refusal]]:
        """Those that have waited too long or were pushed out, and what to tell them."""
        out, self._out = self._out, []
        limit_s = self._limits.queue_timeout_s
        for line in self._lines.values():
            if not line.waiting:
                continue
            for ticket in line.expire(now_s - limit_s):
                out.append((ticket, _refused(f"no endpoint was free for {limit_s:g} s", 1.0)))
        for ticket, _ in out:
            if self._tickets.pop(ticket.owner, None) is not None:
                ticket.quota.give_back(ticket.tokens)
        return out

    def hear_others(self, tenant: str, requests: int, tokens: int, inflight: int = 0) -> None:
        """What a tenant was given by other workers: totals so far, and in flight now."""
        quota = self._quotas.get(tenant)
        if quota is not None:
            quota.hear_others(requests, tokens)
            quota.others_inflight = inflight

    def _let_in(self, ticket: Ticket) -> None:
        ticket.quota.take(1, ticket.tokens)
        self._count_in(ticket)

    def _count_in(self, ticket: Ticket) -> None:
        ticket.line.inflight += 1
        ticket.quota.inflight += 1
        self._tickets[ticket.owner] = ticket

    def _start(self) -> list[Ticket]:
        started = []
        for line in self._lines.values():
            if line.waiting and line.pool.shares:
                line.measure()
            while line.waiting and line.has_room:
                ticket = line.take()
                if ticket is None:
                    break
                self._count_in(ticket)
                started.append(ticket)
        return started

    def _cannot_wait(self, ticket: Ticket, now_s: float) -> Refusal | None:
        line = ticket.line
        limit_s = self._limits.queue_timeout_s
        wait_s = line.wait_s(ticket, now_s)
        if wait_s > limit_s:
            reason = f"all endpoints are busy; it would wait {wait_s:.0f} s"
            return _refused(reason, wait_s - limit_s)
        if line.waiting < self._limits.queue:
            return None
        full = _refused(f"all endpoints are busy and {line.waiting} requests wait", wait_s)
        pushed = line.worst(ticket)
        if pushed is None:
            return full
        line.remove(pushed)
        self._out.append((pushed, full))
        return None


def _quotas(config: Config, now_s: float, old: Mapping[str, Quota]) -> dict[str, Quota]:
    quotas = {}
    for name, tenant in config.tenants.items():
        quota = old.get(name)
        if quota is None:
            quota = Quota(tenant, now_s)
        elif quota.config != tenant:
            quota.configure(tenant, now_s)
        quotas[name] = quota
    return quotas


def _refused(reason: str, wait_s: float) -> Refusal:
    return _overloaded(429, reason, ceil(min(max(wait_s, 1.0), MAX_RETRY_AFTER_S)))


def _overloaded(status: int, reason: str, retry_after_s: int) -> Refusal:
    return Refusal(status, reason, code="overloaded", retry_after_s=retry_after_s)
