"""Names of the metrics: cell or signal -> name without prefix and ``_total``, and its help.

Names follow Prometheus's conventions (base units, ``_total``) and, where there is one, the name
that OpenTelemetry gives the quantity for generative AI (``time_to_first_token``,
``request.duration``, ``time_per_output_chunk``). docs/serve_operations.md lists them.
"""

from __future__ import annotations

from trainmesh.serving.observe.cells import (
    Cells,
    EndpointCells,
    ModelCells,
    TenantCells,
    WorkerCells,
    is_gauge,
)

__all__ = [
    "ENDPOINT",
    "HISTOGRAMS",
    "MODEL",
    "PREFIX",
    "SIGNALS",
    "SPECIAL",
    "TENANT",
    "WORKER",
    "catalogue",
]

PREFIX = "trainmesh_serve_"

WORKER = {
    "snapshot": ("snapshot_version", "Version of the snapshot that the worker decides with"),
    "alive_at_s": ("worker_alive_monotonic_seconds", "Monotonic time of the worker's last tick"),
    "draining": ("worker_draining", "1 while the worker takes no new requests"),
    "connections": ("connections", "Open client connections"),
    "streams": ("streams", "Answers being streamed"),
    "buffered_bytes": ("buffered_bytes", "Request bodies in memory"),
    "loop_lag_s": ("loop_lag_seconds", "How late the event loop's last tick was"),
    "accepted": ("connections_accepted", "Client connections accepted"),
    "refused_connections": ("connections_refused", "Client connections over the limit"),
    "bad_requests": ("bad_requests", "Requests whose framing was refused"),
    "decisions": ("decisions", "Routing decisions"),
    "decision_s": ("decision_seconds", "Time spent deciding"),
    "slow_decisions": ("slow_decisions", "Decisions over the time budget"),
    "ledger_records": ("ledger_records", "Records given to the ledger"),
    "ledger_dropped": ("ledger_dropped", "Records the disk didn't take"),
    "log_dropped": (
        "log_dropped",
        "Log lines that were not written: nobody read, or the disk was full",
    ),
}
MODEL = {
    "inflight": ("requests_inflight", "Requests being answered"),
    "queued": ("requests_queued", "Requests waiting for an endpoint"),
    "requests": ("requests_started", "Requests accepted for the model"),
    "queued_total": ("requests_queued_ever", "Requests that had to wait"),
    "refused": ("requests_refused", "Refused by admission with 429"),
    "unroutable": ("requests_unroutable", "Answered 503 as no endpoint could take them"),
    "retries": ("retries", "Attempts after a failed one"),
    "retries_denied": ("retries_denied", "Retries that the budget didn't allow"),
    "hedges": ("hedges", "Second attempts beside a slow one"),
    "hedges_denied": ("hedges_denied", "Hedges that the budget or the load didn't allow"),
    "hedge_wins": ("hedge_wins", "Hedges that answered first"),
    "hedge_tokens": ("hedge_tokens", "Estimated tokens sent a second time by hedges"),
    "broken_streams": ("broken_streams", "Answers that ended in their middle"),
    "shadow_compared": ("shadow_compared", "Decisions compared with the shadow policy's"),
    "shadow_same": ("shadow_same", "Of these, where it would have gone to the same endpoint"),
    "shadow_wins": ("shadow_wins", "Where the shadow policy was, or expected to be, faster"),
    "shadow_losses": ("shadow_losses", "Where it was slower"),
    "base_requests": ("ab_base_requests", "Answered requests that the model's policy decided"),
    "base_ttft_s": ("ab_base_ttft_seconds", "Their times to the first byte, added up"),
    "arm_requests": ("ab_shadow_requests", "Answered requests that the shadow policy decided"),
    "arm_ttft_s": ("ab_shadow_ttft_seconds", "Their times to the first byte, added up"),
}
ENDPOINT = {
    "inflight": ("endpoint_inflight", "Attempts in flight"),
    "inflight_tokens": ("endpoint_inflight_tokens", "Estimated tokens in flight"),
    "waiting_tokens": ("endpoint_waiting_tokens", "Prompt tokens sent and not answered yet"),
    "connections": ("endpoint_connections", "Open connections to the endpoint"),
    "attempts": ("endpoint_attempts", "Attempts begun"),
    "retries": ("endpoint_retries", "Attempts that were retries"),
    "hedges": ("endpoint_hedges", "Attempts that were hedges"),
    "hedge_wins": ("endpoint_hedge_wins", "Hedges that answered first"),
    "trials": ("endpoint_trials", "Copies sent to see whether it has recovered"),
    "ejections": ("endpoint_ejections", "Times it was ejected"),
    "sent_bytes": ("endpoint_sent_bytes", "Bytes sent to it"),
    "received_bytes": ("endpoint_received_bytes", "Bytes received from it"),
    "prompt_tokens": ("endpoint_prompt_tokens", "Prompt tokens, estimated"),
    "output_tokens": ("endpoint_output_tokens", "Output tokens, counted or estimated"),
    "ttft_count": ("endpoint_first_bytes", "Attempts that had a first byte"),
    "ttft_s": ("endpoint_first_byte_seconds", "Their times to it, added up"),
}
TENANT = {
    "inflight": ("tenant_inflight", "Requests being answered"),
    "queued": ("tenant_queued", "Requests waiting"),
    "requests": ("tenant_requests", "Requests accepted"),
    "refused": ("tenant_refused", "Requests refused by its quota"),
    "prompt_tokens": ("tenant_prompt_tokens", "Prompt tokens, estimated"),
    "output_tokens": ("tenant_output_tokens", "Output tokens, counted or estimated"),
}
HISTOGRAMS = {
    "ttft": ("time_to_first_token_seconds", "From the request's end to the answer's first byte"),
    "duration": ("request_duration_seconds", "From the request's end to the answer's end"),
    "gap": ("time_per_output_chunk_seconds", "Between two pieces of a streamed answer"),
    "queue_wait": ("queue_wait_seconds", "In the queue before the first attempt"),
}
SIGNALS = {
    "up": ("endpoint_up", "0 while the control process keeps requests from it"),
    "rtt_s": ("endpoint_rtt_seconds", "Round trip, 0 if unknown"),
    "derate": ("endpoint_derate", "Part of its nominal rate that its hardware delivers"),
    "queued": ("endpoint_reported_queued", "Requests queued, as the runtime reports"),
    "running": ("endpoint_reported_running", "Requests running, as the runtime reports"),
    "kv_use": ("endpoint_kv_use_ratio", "Use of its KV cache, as the runtime reports"),
}
SPECIAL = {
    "requests": (
        "counter",
        "model, code",
        "Answers to clients by HTTP status; 499: the client left, 0: any other",
    ),
    "responses": ("counter", "worker, code", "The same, with those that named no model of ours"),
    "endpoint_results": ("counter", "model, endpoint, outcome", "Attempts by how they ended"),
    "endpoint_state": (
        "gauge",
        "model, endpoint, worker",
        "0 healthy, 1 slow start, 2 backoff (it is full), 3 ejected",
    ),
}
"""Names with other labels than their group: type, labels, help."""


def catalogue() -> list[tuple[str, str, str, str]]:
    """Every metric: name, type, labels, help; sorted."""
    rows = [
        *_rows(WorkerCells, WORKER, "worker"),
        *_rows(ModelCells, MODEL, "model"),
        *_rows(EndpointCells, ENDPOINT, "model, endpoint"),
        *_rows(TenantCells, TENANT, "tenant"),
    ]
    rows += [(_full(n, kind == "gauge"), kind, lb, text) for n, (kind, lb, text) in SPECIAL.items()]
    rows += [(PREFIX + n, "histogram", "model", text) for n, text in HISTOGRAMS.values()]
    rows += [(PREFIX + n, "gauge", "model, endpoint", text) for n, text in SIGNALS.values()]
    return sorted(rows)


def _rows(
    group: type[Cells], table: dict[str, tuple[str, str]], labels: str
) -> list[tuple[str, str, str, str]]:
    return [
        (_full(name, gauge), "gauge" if gauge else "counter", labels, text)
        for field, (name, text) in table.items()
        for gauge in (is_gauge(group, field),)
    ]


def _full(name: str, gauge: bool) -> str:
    return PREFIX + name + ("" if gauge else "_total")
