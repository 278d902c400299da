"""Which hosts, switches and wires a topology file means."""

from pathlib import Path

import pytest

from trainmesh.errors import GraphError
from trainmesh.launcher.lab.layout import LabLayout, lay_out, load_layout
from trainmesh.launcher.lab.network.shape import Condition, change_commands, first_commands
from trainmesh.topology.document import load

EXAMPLES = sorted((Path(__file__).parents[3] / "examples" / "lab").glob("*.yaml"))
TWO_GPUS_A_HOST = """
version: 1
nodes:
  g0: {kind: rank}
  g1: {kind: rank}
  g2: {kind: rank}
  g3: {kind: rank}
  alpha: {kind: host}
  beta: {kind: host}
  nic: {kind: nic}
  sw: {kind: switch}
links:
  - {src: g0, dst: alpha, bandwidth_GBps: 10}
  - {src: g1, dst: alpha, bandwidth_GBps: 10}
  - {src: g2, dst: beta, bandwidth_GBps: 10}
  - {src: g3, dst: beta, bandwidth_GBps: 10}
  - {src: beta, dst: nic, bandwidth_GBps: 10}
  - {src: alpha, dst: sw, bandwidth_gbps: 1, duplex: false}
  - {src: sw, dst: alpha, bandwidth_gbps: 2, duplex: false}
  - {src: sw, dst: nic, bandwidth_gbps: 1}
"""


def laid_out(text: str) -> LabLayout:
    return lay_out(load(text, source="test"))


def links(*pairs: str, kinds: str = "") -> LabLayout:
    """Ranks are called r0, r1, ..., switches otherwise."""
    names = sorted({name for pair in pairs for name in pair.split("-")})
    nodes = [f"  {n}: {{kind: {'rank' if n[0] == 'r' else 'switch'}}}" for n in names]
    lines = [
        f"  - {{src: {a}, dst: {b}, bandwidth_gbps: 1}}" for a, b in (p.split("-") for p in pairs)
    ]
    return laid_out("\n".join(["version: 1", "nodes:", *nodes, "links:", *lines]))


def test_ranks_around_a_host_node_share_it_and_a_link_keeps_both_rates() -> None:
    layout = laid_out(TWO_GPUS_A_HOST)
    assert [(h.name, h.index, h.ranks) for h in layout.hosts] == [
        ("alpha", 0, (0, 1)),
        ("beta", 1, (2, 3)),
    ]
    wires = {(wire.a, wire.b): wire for wire in layout.wires}
    assert set(wires) == {("alpha", "sw"), ("nic", "sw")}
    assert wires["alpha", "sw"].forward.bandwidth_bytes_per_s == 125e6
    assert wires["alpha", "sw"].backward.bandwidth_bytes_per_s == 250e6
    assert wires["nic", "sw"].a_place == "beta"


def test_ranks_that_are_linked_are_one_host_called_after_the_first() -> None:
    layout = links("r0-r1", "r0-sw", "r2-sw")
    assert [(h.name, h.ranks) for h in layout.hosts] == [("r0", (0, 1)), ("r2", (2,))]


def test_the_path_between_hosts_has_each_link_once() -> None:
    layout = links("r0-sa", "r1-sb", "sa-sb")
    assert len(layout.path("r0", "r1")) == 3


@pytest.mark.parametrize(
    ("pairs", "complaint"),
    [
        (["r0-sa", "r1-sb", "sa-sb", "sb-sc", "sa-sc"], "closes a loop of switches"),
        (["r0-sa", "r0-sb", "r1-sa", "sa-sb"], "host 'r0' has 2 links to switches"),
        (["r0-r2", "r0-sw", "r1-sw"], "host 'r0' has the ranks 0, 2"),
        (["r0-r1", "r0-sw"], "2 to 200 hosts, and here are 1"),
    ],
)
def test_what_a_lab_cannot_build_is_refused(pairs: list[str], complaint: str) -> None:
    with pytest.raises(GraphError, match=complaint):
        links(*pairs)


def test_a_link_without_a_way_back_is_refused() -> None:
    text = TWO_GPUS_A_HOST.replace("bandwidth_gbps: 1}", "bandwidth_gbps: 1, duplex: false}")
    text += "  - {src: g3, dst: g0, bandwidth_gbps: 1}\n"
    with pytest.raises(GraphError, match="link sw->nic has no way back"):
        laid_out(text.replace("{src: g3, dst: g0", "{src: g3, dst: sw"))


def test_a_refusal_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("version: 1\nnodes: {g: {kind: rank}}\n")
    with pytest.raises(GraphError, match=r"one\.yaml: a lab has 2 to"):
        load_layout(path)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_can_be_built(path: Path) -> None:
    assert len(load_layout(path).hosts) in (4, 6, 8)


def test_a_link_that_is_down_queues_nothing_and_keeps_its_rate() -> None:
    condition = Condition(12.5e6, down=True)
    for commands in (first_commands("d", condition), change_commands("d", condition)):
        assert commands[-1].endswith("bfifo limit 1")
        assert "rate 100000000bit ceil 100000000bit" in " ".join(commands)
