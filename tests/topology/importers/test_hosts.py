"""Slurm's environment and Slurm's topology.conf."""

import pytest

from tests.topology.importers.recorded import GBps, neighbours, text
from trainmesh.errors import GraphError
from trainmesh.topology.importers import hostfile, slurm, slurm_topology
from trainmesh.topology.merge import merge


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        ("login1", ["login1"]),
        (
            "node[001-003,007],gpu-a[1-2]",
            ["node001", "node002", "node003", "node007", "gpu-a1", "gpu-a2"],
        ),
        ("r[1-2]n[09-10]", ["r1n09", "r1n10", "r2n09", "r2n10"]),
        ("n[1-2]-ib,x", ["n1-ib", "n2-ib", "x"]),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
    ],
)
def test_node_lists(nodelist: str, names: list[str]) -> None:
    assert slurm.expand(nodelist, what="LIST") == names


@pytest.mark.parametrize(
    "bad",
    ["", "n[1-2", "n1]", "n[[1]]", "n[]", "n[2-1]", "n[1-]", "n[0-9999999]", "a,a", "a b", "n[1],"],
)
def test_bad_node_lists(bad: str) -> None:
    with pytest.raises(GraphError, match=r"\ALIST: "):
        slurm.expand(bad, what="LIST")


def test_too_many_nodes_are_refused_before_they_are_made() -> None:
    with pytest.raises(GraphError, match="more than 65536 nodes"):
        slurm.expand("a[0-9999]b[0-9999]c[0-9999]", what="LIST")


def test_task_counts() -> None:
    assert slurm.task_counts("8(x4),4", what="x") == [8, 8, 8, 8, 4]
    for bad in ("", "8(x4", "8x4", "-1", "99999", "1(x999999)"):
        with pytest.raises(GraphError, match=r"\ATASKS: "):
            slurm.task_counts(bad, what="TASKS")


JOB = {"SLURM_JOB_NODELIST": "n[1-3]", "SLURM_TASKS_PER_NODE": "2(x2),1"}


def test_the_environment_of_a_job() -> None:
    assert slurm.from_environment(JOB) == {"n1": (0, 1), "n2": (2, 3), "n3": (4,)}
    cyclic = JOB | {"SLURM_DISTRIBUTION": "cyclic:block"}
    assert slurm.from_environment(cyclic) == {"n1": (0, 3), "n2": (1, 4), "n3": (2,)}
    each = {"SLURM_NODELIST": "n[1-2]", "SLURM_NTASKS_PER_NODE": "4"}
    assert slurm.from_environment(each) == {"n1": (0, 1, 2, 3), "n2": (4, 5, 6, 7)}
    torchrun = slurm.from_environment(JOB, ranks_per_node=8)
    assert torchrun["n3"] == tuple(range(16, 24))


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, "SLURM_JOB_NODELIST is not set; run this inside a Slurm job"),
        ({"SLURM_JOB_NODELIST": "n1"}, "SLURM_TASKS_PER_NODE is not set"),
        (JOB | {"SLURM_TASKS_PER_NODE": "2(x2)"}, "SLURM_TASKS_PER_NODE is for 2 nodes, but the"),
        (JOB | {"SLURM_DISTRIBUTION": "plane=4"}, "SLURM_DISTRIBUTION='plane=4': only block"),
        (JOB | {"SLURM_TASKS_PER_NODE": "0"}, "no host has a slot"),
    ],
)
def test_bad_environments(environ: dict[str, str], says: str) -> None:
    with pytest.raises(GraphError) as caught:
        slurm.from_environment(environ)
    assert str(caught.value).startswith(says)


def test_a_tree_of_switches() -> None:
    switches = slurm_topology.parse(text("slurm_tree.conf"), source="t.conf")
    assert [switch.name for switch in switches] == ["leaf1", "leaf2", "leaf3", "spine", "core"]
    assert slurm_topology.all_nodes(switches)[-3:] == ["gpu-a01", "gpu-a02", "gpu-b1"]
    hosts = {"n1": (0, 1), "n2": (2, 3), "n5": (4, 5), "gpu-b1": (6, 7)}
    graph = merge(slurm_topology.fragment(switches, hosts))
    assert graph.world_size == 8
    assert neighbours(graph, "leaf1") == {"n1", "n2", "spine"}
    assert neighbours(graph, "core") == {"spine", "leaf3"}
    # No switch blocks: the link above leaf1 is as wide as the links of its two hosts.
    assert GBps(graph, "leaf1->spine") == 2 * GBps(graph, "n1->leaf1")
    assert GBps(graph, "spine->core") == 3 * GBps(graph, "n1->leaf1")
    classes = [graph.link(name).link_class for name in ("n1->leaf1", "leaf1->spine", "spine->core")]
    assert classes == ["ethernet", "tier2", "tier3"]


def test_switches_without_hosts_of_the_job_are_left_out() -> None:
    switches = slurm_topology.parse(text("slurm_tree.conf"), source="t.conf")
    found = slurm_topology.fragment(switches, {"n1": (0,), "n2": (1,)})
    assert {node.name for node in found.nodes} >= {"leaf1", "n1", "n2/rank1"}
    assert "leaf2" not in {node.name for node in found.nodes}
    with pytest.raises(GraphError, match="node 'x9' is on no switch"):
        slurm_topology.fragment(switches, {"x9": (0,)})


def test_blocks_are_joined_by_one_switch() -> None:
    switches = slurm_topology.parse(text("slurm_block.conf"), source="b.conf")
    hosts = hostfile.in_order(dict.fromkeys(slurm_topology.all_nodes(switches), 1))
    graph = merge(slurm_topology.fragment(switches, hosts))
    assert graph.world_size == 36
    assert neighbours(graph, "core switch") == {"block1", "block2"}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("# nothing", "t: no SwitchName= or BlockName= in it; give topology.conf"),
        ("\nSwitchName=a", "t:2: 'a' has neither Nodes= nor Switches="),
        ("SwitchName=a Nodes=ALL", "t:1: Nodes=ALL does not say which; write them out"),
        ("SwitchName=a Nodes=n[1", "t:1: 'n[1' is no node list"),
        ("SwitchName=a Nodes=n1\nSwitchName=a Nodes=n2", "t:2: 'a' is there twice"),
        ("SwitchName=a Switches=b", "t:1: no line declares switch 'b'"),
        ("SwitchName=a Switches=b\nSwitchName=b Switches=a", "t:1: switch 'a' is below itself"),
        ("SwitchName=a Nodes=n1\nBlockName=b Nodes=n2", "t:2: switches and blocks in one file"),
        ("SwitchName=a Nodes=n1 Speed=5", "t:1: 'Speed=5' is not expected here; lines are"),
        ("Nodes=n1", "t:1: give SwitchName= or BlockName="),
        ("SwitchName=a \\", "t:1: nothing follows the backslash; is the file cut off?"),
    ],
)
def test_bad_topology_files(bad: str, says: str) -> None:
    with pytest.raises(GraphError) as caught:
        slurm_topology.parse(bad, source="t")
    assert str(caught.value).startswith(says)
