"""``trainmesh endpoints``: what the routers on this machine see, and an admin's orders to them."""

from __future__ import annotations

import argparse
import sys
import time

import msgspec

from trainmesh.errors import ConfigError
from trainmesh.launcher import routers
from trainmesh.launcher.commands.quarantine import duration_s
from trainmesh.launcher.terminal import Output
from trainmesh.serving.admin.views import EndpointView, ModelView, Overview
from trainmesh.units import count, duration, percent, rate

__all__ = ["add_arguments", "run"]

WATCH_EVERY_S = 1.0
"""Routers publish what they know of endpoints about once a second."""
MAX_WAIT_S = 86_400.0
"""No answer takes longer: limits.stream_timeout_s is a day at most."""
ANSWER_S = 3600.0
"""For the router's answer where the router says how long it waits."""
HEAD = (
    *("endpoint", "state", "in flight", "share", "RTT", "bandwidth", "rate", "first byte"),
    *("queue", "KV", "faults", "why"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=("cordon", "drain", "uncordon"),
        help="cordon: no new requests; drain: the same, and wait until it is idle; "
        "uncordon: take either back",
    )
    parser.add_argument("endpoint", nargs="?", help="the endpoint's name")
    parser.add_argument(
        "--wait",
        nargs="?",
        metavar="DURATION",
        type=duration_s,
        const=MAX_WAIT_S,
        help="how long drain waits at most, such as 90s, 30m or 2h; without a value until it is "
        "idle (default: limits.drain_s of the router)",
    )
    parser.add_argument("--watch", action="store_true", help="show it again every second")
    routers.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.action is not None:
        return _tell(args)
    if args.wait is not None:
        raise ConfigError("--wait is for drain")
    output = Output()
    while True:
        views = [_view(router) for router in routers.choose_routers(args.router)]
        if args.json:
            sys.stdout.write(msgspec.json.encode(views).decode() + "\n")
        else:
            if args.watch:
                output.clear()
            _show(views, output)
        if not args.watch:
            return 0
        sys.stdout.flush()
        time.sleep(WATCH_EVERY_S)


def _tell(args: argparse.Namespace) -> int:
    if not args.endpoint:
        raise ConfigError(f"name the endpoint to {args.action}; trainmesh endpoints lists them")
    if args.wait is not None and args.action != "drain":
        raise ConfigError(f"--wait is for drain; {args.action} takes effect at once")
    router = routers.one_router(args.router)
    answer = routers.tell(
        router, args.endpoint, args.action, wait_s=args.wait,
        timeout_s=ANSWER_S if args.wait is None else args.wait + routers.TIMEOUT_S,
    )  # fmt: skip
    if args.json:
        sys.stdout.write(answer.decode() + "\n")
        return 0
    inflight = msgspec.json.decode(answer)["inflight"]
    left = f", {count(inflight, 'request')} in flight" if inflight else ", idle"
    done = {
        "cordon": "cordoned",
        "drain": "draining" if inflight else "drained",
        "uncordon": "takes requests again",
    }
    Output().text(f"{args.endpoint}: {done[args.action]}{left}")
    return 1 if args.action == "drain" and inflight else 0


def _view(router: routers.Router) -> Overview:
    return msgspec.json.decode(routers.ask(router, "/endpoints"), type=Overview)


def _show(views: list[Overview], output: Output) -> None:
    if not views:
        output.text("no router is running on this machine as this user")
    for view in views:
        output.text(
            f"router {view.router} (pid {view.pid}) at {view.listen}: "
            f"{count(len(view.workers), 'worker')}, snapshot {view.snapshot} of "
            f"{duration(view.snapshot_age_s)} ago",
        )
        if view.routers:
            output.text(f"shares its load with {', '.join(view.routers)}")
        if view.store:
            output.text(f"etcd: {view.store}")
        for worker in view.workers:
            if worker.age_s > 1 or worker.draining:
                state = "drains" if worker.draining else f"silent for {duration(worker.age_s)}"
                output.text(f"worker {worker.index} (pid {worker.pid}): {state}")
        for model in view.models:
            _show_model(model, output)


def _show_model(model: ModelView, output: Output) -> None:
    output.heading(
        f"{model.name}: policy {model.policy}, {count(model.requests, 'request')}, "
        f"{model.inflight} in flight, {model.queued} waiting"
    )
    if model.shadow:
        output.text(_shadow(model))
    rows = [_row(endpoint) for endpoint in model.endpoints]
    output.table(HEAD, rows, "ttnnnnnnnnnt")


def _shadow(model: ModelView) -> str:
    judged = model.shadow_wins + model.shadow_losses
    won = f"faster in {percent(model.shadow_wins / judged)} of the rest" if judged else "no rest"
    if model.arm_requests:
        means = ", ".join(
            f"{name} {duration(mean_s or 0)} over {requests}"
            for name, mean_s, requests in (
                (model.policy, model.base_mean_ttft_s, model.base_requests),
                (model.shadow, model.arm_mean_ttft_s, model.arm_requests),
            )
        )
        return f"A/B with {model.shadow}: mean first byte {means}; {won}"
    same = percent(model.shadow_same / model.shadow_compared) if model.shadow_compared else "-"
    return f"shadow {model.shadow}: the same choice in {same}, {won}"


def _row(view: EndpointView) -> list[str]:
    inflight = str(view.inflight)
    if view.others_inflight:
        inflight += f" + {view.others_inflight}"
    queue = "-" if view.queued is None else f"{view.queued} + {view.running} running"
    return [
        view.name + (" (standby)" if view.standby else ""),
        view.state,
        inflight,
        percent(view.share),
        _aged(duration(view.rtt_s) if view.rtt_s else "-", view.rtt_age_s),
        rate(view.bandwidth_bytes_per_s) if view.bandwidth_bytes_per_s else "-",
        percent(view.derate),
        duration(view.expected_ttft_s) if view.expected_ttft_s else "-",
        _aged(queue, view.report_age_s),
        "-" if view.kv_use is None else percent(view.kv_use),
        f"{view.faults} of {view.attempts}",
        "; ".join(filter(None, (view.reason, view.derate_reason))),
    ]


def _aged(text: str, age_s: float | None) -> str:
    """Ages are said where they matter: beyond what a probe every second explains."""
    return text if age_s is None or age_s < 3 else f"{text} ({duration(age_s)} ago)"
