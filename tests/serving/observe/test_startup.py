"""What is said while endpoints are awaited."""

from trainmesh.serving.config.types import Config, EndpointConfig, ModelConfig
from trainmesh.serving.control.startup import Startup
from trainmesh.serving.signals.probe_state import ProbeState


def config(count: int) -> Config:
    endpoints = tuple(
        EndpointConfig(url=f"http://h{number}:1", name=f"h{number}") for number in range(count)
    )
    return Config(version=1, models={"m": ModelConfig(endpoints=endpoints)})


UP = ProbeState().passed(0.001, 1.0)
LOADS = ProbeState().failed("GET /health was answered with 503", 1.0)


def test_nothing_is_said_where_all_answer_at_once() -> None:
    startup = Startup(0.0)
    assert startup.look(config(1), {}, 0.5) == ""
    assert startup.look(config(1), {"http://h0:1": UP}, 2.0) == ""
    assert startup.over


def test_it_names_what_is_awaited_when_that_changes_and_now_and_then() -> None:
    startup = Startup(0.0)
    probe_states = {"http://h0:1": UP, "http://h1:1": LOADS}
    said = startup.look(config(3), probe_states, 2.0)
    assert said == (
        "waiting for 2 of 3 endpoints: h1 (GET /health was answered with 503), h2 (not asked yet)"
    )
    assert startup.look(config(3), probe_states, 3.0) == ""
    probe_states["http://h2:1"] = UP
    assert startup.look(config(3), probe_states, 4.0).startswith(
        "waiting for 1 of 3 endpoints: h1 ("
    )
    assert startup.look(config(3), probe_states, 33.9) == ""
    assert startup.look(config(3), probe_states, 34.0).startswith(
        "waiting for 1 of 3 endpoints: h1 ("
    )
    probe_states["http://h1:1"] = UP
    assert startup.look(config(3), probe_states, 35.0) == "all endpoints answer, after 35.0 s"
    assert startup.over
    assert startup.look(config(3), {}, 36.0) == ""


def test_of_many_the_first_are_named() -> None:
    said = Startup(0.0).look(config(12), {}, 2.0)
    assert said.startswith("waiting for 12 of 12 endpoints: h0 (not asked yet), ")
    assert said.endswith("h4 (not asked yet) and 7 more")
