"""What keeps an endpoint out, in which order of reasons, and which of several numbers counts."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.signals.builds import config
from trainmesh.serving.cluster.cordons import Cordon, CordonState
from trainmesh.serving.cluster.graph import RoundTrip
from trainmesh.serving.cluster.peers import Load
from trainmesh.serving.cluster.verdicts import SubjectKind, Verdict
from trainmesh.serving.control.snapshot import Observations, Snapshot, assemble
from trainmesh.serving.decide.types import EndpointSignal
from trainmesh.serving.signals.gpu import Derate
from trainmesh.serving.signals.probe_state import DOWN_AFTER, ProbeState
from trainmesh.serving.signals.scrape import EngineLoad

URL = "http://h:1"
CONFIG = config([{"url": URL, "name": "a", "node": "h3", "revision": "r1"}])
TWO = config([*msgspec.to_builtins(CONFIG.models["m"].endpoints), {"url": "http://h:2"}])
"""Another one, so that health checks have somebody to leave."""
UNHEALTHY = ProbeState(failures=DOWN_AFTER, problem="GET /health was answered with 503")
NEAR = ProbeState().passed(0.001, 5.0)
FAR = ProbeState().passed(0.1, 5.0)


def verdict(kind: SubjectKind, subject: str) -> Verdict:
    return Verdict(kind=kind, subject=subject, reason="bad", owner="admin:eve", since_unix_s=1.0)


def cordoned(state: CordonState) -> dict[str, Cordon]:
    return {"a": Cordon(state=state, by="admin:eve", since_unix_s=1.0)}


def signal(seen: Observations, previous: Snapshot | None = None) -> EndpointSignal:
    return assemble(TWO, seen, 10.0, previous=previous).signals["m"][0]


EVERYTHING = Observations(
    probe_states={URL: replace(UNHEALTHY, rtts_s=(0.1,))},
    ways={"h3": RoundTrip(blocked="link a->b in quarantine (admin:eve), on the way")},
    verdicts=[verdict(SubjectKind.ENDPOINT, "a"), verdict(SubjectKind.NODE, "h3")],
    cordons=cordoned(CordonState.DRAIN),
    revisions={URL: ("r0",)},
)


def test_the_first_reason_counts_and_the_next_one_follows() -> None:
    seen = EVERYTHING
    reasons = [
        ("draining by admin:eve", {"cordons": cordoned(CordonState.OPEN)}),
        ("endpoint in quarantine: bad (admin:eve)", {"verdicts": seen.verdicts[1:]}),
        ("node h3 in quarantine: bad (admin:eve)", {"verdicts": []}),
        ("link a->b in quarantine (admin:eve), on the way", {"ways": {}}),
        ("serves revision r0, not r1", {"revisions": {URL: ("r1",)}}),
        (
            "its round trip is beyond the limit of 80 ms: a client only",
            {"probe_states": {URL: replace(UNHEALTHY, rtts_s=(0.01,))}},
        ),
        ("health checks fail: GET /health was answered with 503", {"probe_states": {URL: NEAR}}),
        ("", {}),
    ]
    for reason, cure in reasons:
        assert signal(seen).excluded == reason
        seen = replace(seen, **cure)  # type: ignore[arg-type]
    assert signal(replace(seen, cordons=cordoned(CordonState.CORDON))).excluded == (
        "cordoned by admin:eve"
    )


def test_an_endpoint_is_counted_on_once_a_check_has_gone_well() -> None:
    unasked = ProbeState()
    refused = unasked.failed("no connection", 1.0)
    well = refused.passed(0.0, 2.0)
    once = well.failed("no connection", 3.0)
    assert unasked.unready == "not asked yet"
    assert refused.unready == "the first health check failed: no connection"
    assert (well.unready, once.unready) == ("", "")
    thrice = once.failed("x", 4.0).failed("x", 5.0)
    assert thrice.unready == thrice.down != ""
    first = assemble(TWO, Observations(probe_states={URL: refused}), 1.0).signals["m"][0]
    assert (first.excluded, first.unready) == ("", refused.unready)


def test_health_checks_alone_leave_somebody() -> None:
    down = Observations(probe_states={URL: UNHEALTHY, "http://h:2": UNHEALTHY})
    assert [one.excluded for one in assemble(TWO, down, 1.0).signals["m"]] == ["", ""]
    beside = replace(down, cordons={"": cordoned(CordonState.CORDON)["a"]})
    first, second = assemble(TWO, beside, 1.0).signals["m"]
    assert (first.excluded, second.excluded) == ("", "cordoned by admin:eve")
    one = replace(down, probe_states={URL: UNHEALTHY})
    first, second = assemble(TWO, one, 1.0).signals["m"]
    assert "health checks fail" in first.excluded
    assert second.excluded == ""


def test_what_is_unknown_is_no_reason() -> None:
    found = signal(Observations())
    assert found == EndpointSignal(name="a", unready="not asked yet")
    assert signal(Observations(revisions={URL: ()})).excluded == ""
    one_failure = Observations(probe_states={URL: ProbeState().failed("refused", 1.0)})
    assert signal(one_failure).excluded == ""


@pytest.mark.parametrize(
    ("probe_state", "way", "estimate_s", "expected_s"),
    [
        (NEAR, RoundTrip(rtt_s=0.002), 0.003, 0.001),
        (ProbeState(), RoundTrip(rtt_s=0.002), 0.003, 0.002),
        (ProbeState(), None, 0.003, 0.003),
        (ProbeState(), None, 0.0, 0.0),
    ],
)
def test_measured_before_declared_before_estimated(
    probe_state: ProbeState, way: RoundTrip | None, estimate_s: float, expected_s: float
) -> None:
    seen = Observations(
        probe_states={URL: probe_state},
        ways={"h3": way} if way else {},
        estimates_s={URL: estimate_s},
    )
    found = signal(seen)
    assert found.rtt_s == expected_s
    assert found.rtt_at_s == (5.0 if probe_state.rtts_s else 0.0)


def test_an_endpoint_at_the_limit_does_not_come_and_go() -> None:
    def at(rtt_s: float) -> Observations:
        return Observations(probe_states={URL: ProbeState().passed(rtt_s, 1.0)})

    out = assemble(CONFIG, at(0.081), 1.0)
    assert "client only" in out.signals["m"][0].excluded
    for rtt_s, excluded in ((0.079, True), (0.0719, False)):
        after = assemble(CONFIG, at(rtt_s), 2.0, previous=out)
        assert bool(after.signals["m"][0].excluded) is excluded
    fresh = assemble(CONFIG, at(0.079), 1.0)
    assert fresh.signals["m"][0].excluded == ""


def test_all_numbers_arrive() -> None:
    seen = Observations(
        probe_states={URL: NEAR},
        reports={URL: EngineLoad(queued=3, running=4, kv_use=0.5, at_s=9.0)},
        derates={URL: Derate(0.5, "GPU 0: hot")},
        ways={"h3": RoundTrip(rtt_s=1.0, bandwidth_bytes_per_s=1e9)},
        loads={URL: Load(7, 800)},
        demand={"m": 2.5},
        routers=("r2",),
        store="answers",
    )
    found = assemble(CONFIG, seen, 10.0)
    assert found == Snapshot(
        version=1,
        taken_at_s=10.0,
        signals={
            "m": (
                EndpointSignal(
                    name="a",
                    rtt_s=0.001,
                    rtt_at_s=5.0,
                    bandwidth_bytes_per_s=1e9,
                    derate=0.5,
                    queued=3,
                    running=4,
                    kv_use=0.5,
                    reported_at_s=9.0,
                    others_inflight=7,
                    others_tokens=800,
                ),
            )
        },
        demand={"m": 2.5},
        derates={URL: "GPU 0: hot"},
        routers=("r2",),
        store="answers",
    )
    assert assemble(CONFIG, seen, 11.0, previous=found).version == 2


@given(st.lists(st.one_of(st.none(), st.floats(1e-6, 10.0)), max_size=30))
@settings(derandomize=True, max_examples=200)
def test_three_failures_in_a_row_and_only_they_are_down(checks: list[float | None]) -> None:
    probe_state = ProbeState()
    for number, rtt_s in enumerate(checks):
        probe_state = (
            probe_state.failed("x", number) if rtt_s is None else probe_state.passed(rtt_s, number)
        )
        row = checks[: number + 1][-DOWN_AFTER:]
        assert bool(probe_state.down) == (row == [None] * DOWN_AFTER)
    good = [rtt_s for rtt_s in checks if rtt_s is not None]
    assert probe_state.rtt_s == min(good[-8:], default=0.0)
