"""What a worker counts: of itself and its tenants, and of each model and its endpoints.

Each object is made for one row of a counters file; after a reload there are others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trainmesh.serving.decide.endpoint import Attempt, Endpoint
from trainmesh.serving.decide.policies.shadow import Versus
from trainmesh.serving.decide.types import AttemptKind, AttemptOutcome
from trainmesh.serving.observe.cells import state_index, status_index
from trainmesh.serving.observe.shared_counters import SharedCounters, WorkerRow

__all__ = ["ModelCounters", "WorkerCounters"]


class WorkerCounters:
    """Of a worker and its tenants."""

    __slots__ = ("_cells", "_layout", "_own", "_reals", "_statuses")

    def __init__(self, row: WorkerRow) -> None:
        self._cells, self._reals = row.cells, row.reals
        self._layout = row.layout
        self._own = row.layout.worker
        self._statuses = row.layout.statuses

    def connection_accepted(self) -> None:
        self._cells[self._own.accepted] += 1

    def connection_refused(self) -> None:
        self._cells[self._own.refused_connections] += 1

    def bad_request(self) -> None:
        """The framing of a request was refused."""
        self._cells[self._own.bad_requests] += 1

    def answered(self, status: int) -> None:
        self._cells[self._statuses + status_index(status)] += 1

    def decided(self, took_s: float, limit_s: float) -> None:
        """A pool was asked; ``limit_s``: more is slow."""
        cells, own = self._cells, self._own
        cells[own.decisions] += 1
        self._reals[own.decision_s] += took_s
        if took_s > limit_s:
            cells[own.slow_decisions] += 1

    def refused(self, tenant: str) -> None:
        """A request was refused by admission."""
        cells, own = self._cells, self._layout.tenant(tenant)
        cells[own.requests] += 1
        cells[own.refused] += 1

    def taken(self, tenant: str, prompt_tokens: int) -> None:
        """A request was let in, or waits."""
        cells, own = self._cells, self._layout.tenant(tenant)
        cells[own.requests] += 1
        cells[own.prompt_tokens] += prompt_tokens
        cells[own.inflight] += 1

    def ended(self, tenant: str, status: int, output_tokens: int) -> None:
        """A request that was taken is over."""
        cells, own = self._cells, self._layout.tenant(tenant)
        cells[own.inflight] -= 1
        cells[own.output_tokens] += output_tokens
        cells[self._statuses + status_index(status)] += 1

    def ticked(self, now_s: float, late_s: float) -> None:
        reals, own = self._reals, self._own
        reals[own.alive_at_s] = now_s
        reals[own.loop_lag_s] = late_s

    def publish_snapshot(self, version: int) -> None:
        self._cells[self._own.snapshot] = version

    def publish(
        self, *, connections: int, streams: int, buffered_bytes: int, draining: bool
    ) -> None:
        """Write what is true now."""
        cells, own = self._cells, self._own
        cells[own.connections] = connections
        cells[own.streams] = streams
        cells[own.buffered_bytes] = buffered_bytes
        cells[own.draining] = draining

    def publish_ledger(self, records: int, dropped: int) -> None:
        self._cells[self._own.ledger_records] = records
        self._cells[self._own.ledger_dropped] = dropped


class ModelCounters:
    """Of a model and its endpoints."""

    __slots__ = ("_at_url", "_cells", "_duration", "_endpoints", "_gap", "_own", "_queue_wait",
                 "_reals", "_statuses", "_ttft")  # fmt: skip

    def __init__(self, row: WorkerRow, model: str, endpoints: Sequence[Endpoint]) -> None:
        layout = row.layout
        self._cells, self._reals = row.cells, row.reals
        self._own = layout.models[model]
        self._statuses = layout.model_statuses[model]
        self._ttft = layout.histograms[model, "ttft"]
        self._duration = layout.histograms[model, "duration"]
        self._gap = layout.histograms[model, "gap"]
        self._queue_wait = layout.histograms[model, "queue_wait"]
        self._endpoints = {e: layout.endpoints[model, e.name] for e in endpoints}
        self._at_url = {e: [own] for e, own in self._endpoints.items()}
        """Cells of the endpoint and of those of other models at its URL."""

    # -- requests --------------------------------------------------------------------------

    def requested(self) -> None:
        self._cells[self._own.requests] += 1

    def refused(self) -> None:
        """By admission."""
        self._cells[self._own.refused] += 1

    def queued(self) -> None:
        self._cells[self._own.queued_total] += 1

    def unroutable(self) -> None:
        """No endpoint could take it."""
        self._cells[self._own.unroutable] += 1

    def retried(self) -> None:
        self._cells[self._own.retries] += 1

    def retry_denied(self) -> None:
        self._cells[self._own.retries_denied] += 1

    def hedged(self, tokens: int) -> None:
        cells, own = self._cells, self._own
        cells[own.hedges] += 1
        cells[own.hedge_tokens] += tokens

    def hedge_denied(self) -> None:
        self._cells[self._own.hedges_denied] += 1

    def stream_broken(self) -> None:
        self._cells[self._own.broken_streams] += 1

    def waited(self, seconds: float) -> None:
        """A request has left the queue."""
        self._queue_wait.observe(self._cells, self._reals, seconds)

    def finished(self, status: int, duration_s: float) -> None:
        """A request is over."""
        self._cells[self._statuses + status_index(status)] += 1
        self._duration.observe(self._cells, self._reals, duration_s)

    # -- attempts --------------------------------------------------------------------------

    def began(self, attempt: Attempt) -> None:
        """An attempt is made."""
        cells, own = self._cells, self._endpoints.get(attempt.endpoint)
        if own is None:
            return
        cells[own.attempts] += 1
        cells[own.prompt_tokens] += attempt.prompt_tokens
        if attempt.kind is AttemptKind.RETRY:
            cells[own.retries] += 1
        elif attempt.kind is AttemptKind.HEDGE:
            cells[own.hedges] += 1
        elif attempt.kind is AttemptKind.TRIAL:
            cells[own.trials] += 1

    def first_byte(self, attempt: Attempt, request_started_s: float, now_s: float) -> None:
        """The body of an attempt's good answer has begun, and the attempt has won."""
        cells, reals = self._cells, self._reals
        self._ttft.observe(cells, reals, now_s - request_started_s)
        own = self._endpoints.get(attempt.endpoint)
        if own is not None:
            cells[own.ttft_count] += 1
            reals[own.ttft_s] += now_s - attempt.started_s
            if attempt.kind is AttemptKind.HEDGE:
                cells[own.hedge_wins] += 1
                cells[self._own.hedge_wins] += 1

    def observe_gap(self, seconds: float) -> None:
        """Between two pieces of a stream."""
        self._gap.observe(self._cells, self._reals, seconds)

    def ended(
        self,
        attempt: Attempt,
        outcome: AttemptOutcome,
        sent_bytes: int,
        received_bytes: int,
        output_tokens: int,
    ) -> None:
        """An attempt is over."""
        cells, own = self._cells, self._endpoints.get(attempt.endpoint)
        if own is None:
            return  # a reload has removed it
        cells[own.outcome(outcome)] += 1
        cells[own.received_bytes] += received_bytes
        cells[own.sent_bytes] += sent_bytes
        cells[own.output_tokens] += output_tokens

    # -- what is true now ------------------------------------------------------------------

    def publish(self, inflight: int, queued: int, versus: Versus) -> None:
        """Write the state of the model.

        Args:
            inflight: requests of this worker.
            queued: requests that wait.
            versus: the comparison with its shadow policy.
        """
        cells, reals, own = self._cells, self._reals, self._own
        cells[own.queued] = queued
        cells[own.inflight] = inflight
        cells[own.shadow_compared] = versus.compared
        cells[own.shadow_same] = versus.same
        cells[own.shadow_wins] = versus.wins
        cells[own.shadow_losses] = versus.losses
        cells[own.base_requests], cells[own.arm_requests] = versus.answered
        reals[own.base_ttft_s], reals[own.arm_ttft_s] = versus.ttft_sums_s

    def publish_endpoint(self, endpoint: Endpoint, connections: int) -> None:
        """Write the state of one of its endpoints."""
        cells, reals, own = self._cells, self._reals, self._endpoints[endpoint]
        cells[own.inflight] = endpoint.own_inflight
        cells[own.inflight_tokens] = endpoint.own_tokens
        cells[own.waiting_tokens] = endpoint.own_waiting_tokens
        cells[own.connections] = connections
        cells[own.state] = state_index(endpoint.health.state)
        reals[own.base_s] = endpoint.base_s
        reals[own.s_per_token] = endpoint.s_per_token

    # -- other workers ---------------------------------------------------------------------

    def share(self, models: Iterable[ModelCounters]) -> None:
        """Count what other workers have in flight at an endpoint's URL for any of ``models``."""
        cells = {e: own for model in models for e, own in model._endpoints.items()}
        self._at_url = {e: [cells[one] for one in (e, *e.twins)] for e in self._endpoints}

    def hear_others(self, counters: SharedCounters, worker: int) -> None:
        """Take over what other workers have in flight."""
        others = counters.others
        for endpoint, cells in self._at_url.items():
            endpoint.set_others(
                sum([others(each.inflight, worker) for each in cells]),
                sum([others(each.inflight_tokens, worker) for each in cells]),
                sum([others(each.waiting_tokens, worker) for each in cells]),
            )
