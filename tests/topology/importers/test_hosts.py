"""Slurm's environment, and Slurm's topology.conf and topology.yaml."""

import pytest

from tests.topology.importers.recorded import GBps, neighbours, text
from trainmesh.errors import GraphError
from trainmesh.topology.importers import hostfile, slurm, slurm_topology, slurm_yaml
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
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        (
            "rack[0-1]_blade[0-1],nodeA",
            ["rack0_blade0", "rack0_blade1", "rack1_blade0", "rack1_blade1", "nodeA"],
        ),
        (
            "node1g[0010,0011],node2g0005,node3g0007",
            ["node1g0010", "node1g0011", "node2g0005", "node3g0007"],
        ),
    ],
)
def test_node_lists(nodelist: str, names: list[str]) -> None:
    assert slurm.expand(nodelist, what="LIST") == names


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "n[1-2",
        "n1]",
        "n[[1]]",
        "n[]",
        "n[2-1]",
        "n[1-]",
        "n[0-9999999]",
        "a,a",
        "a b",
        "n[1],",
        "bgl[000x133]",
        "n[0-[1-2]]",
    ],
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
    assert hosts(JOB) == {"n1": (0, 1), "n2": (2, 3), "n3": (4,)}
    for word in ("cyclic:block", "cyclic,nopack", "CYCLIC"):
        cyclic = JOB | {"SLURM_DISTRIBUTION": word}
        assert hosts(cyclic) == {"n1": (0, 3), "n2": (1, 4), "n3": (2,)}
    assert hosts(JOB | {"SLURM_DISTRIBUTION": "*:*"}) == hosts(JOB)
    each = {"SLURM_NODELIST": "n[1-2]", "SLURM_NTASKS_PER_NODE": "4"}
    assert hosts(each) == {"n1": (0, 1, 2, 3), "n2": (4, 5, 6, 7)}
    torchrun = slurm.from_environment(JOB, ranks_per_node=8)
    assert torchrun.hosts["n3"] == tuple(range(16, 24))
    assert torchrun.notes == ()


def hosts(environ: dict[str, str]) -> dict[str, tuple[int, ...]]:
    return slurm.from_environment(environ).hosts


BATCH = {
    "SLURM_JOB_NODELIST": "n[1-4]",
    "SLURM_NODELIST": "n[1-4]",
    "SLURM_TASKS_PER_NODE": "8(x4)",
    "SLURM_NTASKS": "32",
}
STEP = BATCH | {  # srun sets SLURM_TASKS_PER_NODE to the step's, and leaves the job's node list
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[2-3]",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_TASKS_PER_NODE": "2,1",
    "SLURM_NTASKS": "3",
}


def test_a_step_on_fewer_nodes_than_its_job() -> None:
    found = slurm.from_environment(STEP)
    assert found.hosts == {"n2": (0, 1), "n3": (2,)}
    assert found.notes == (
        "SLURM_STEP_NODELIST: the step has 2 nodes of the job's 4; only these count",
    )
    one = STEP | {
        "SLURM_STEP_NODELIST": "n3",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_TASKS_PER_NODE": "2",
    }
    assert hosts(one) == {"n3": (0, 1)}
    assert hosts(STEP | {"SLURM_TASKS_PER_NODE": "8(x4)"}) == found.hosts  # --preserve-env
    whole = STEP | {"SLURM_STEP_NODELIST": "n[1-4]", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}
    assert slurm.from_environment(whole).notes == ()


@pytest.mark.parametrize("step", [0xFFFFFFFB, 0xFFFFFFFA, 0xFFFFFFFC])
def test_a_batch_script_or_a_shell_of_salloc_looks_after_the_whole_job(step: int) -> None:
    inside = BATCH | {
        "SLURM_STEP_ID": str(step),
        "SLURM_STEP_NODELIST": "n1",
        "SLURM_STEP_TASKS_PER_NODE": "1",
    }
    assert hosts(inside) == hosts(BATCH)
    assert len(hosts(BATCH)) == 4


@pytest.mark.parametrize("kind", ["HET", "PACK"])
def test_the_components_of_a_heterogeneous_job(kind: str) -> None:
    job = {
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_TASKS_PER_NODE": "1",
        f"SLURM_{kind}_SIZE": "2",
        f"SLURM_JOB_NODELIST_{kind}_GROUP_0": "n1",
        f"SLURM_TASKS_PER_NODE_{kind}_GROUP_0": "1",
        f"SLURM_JOB_NODELIST_{kind}_GROUP_1": "gpu[1-2]",
        f"SLURM_TASKS_PER_NODE_{kind}_GROUP_1": "2(x2)",
    }
    assert hosts(job) == {"n1": (0,), "gpu1": (1, 2), "gpu2": (3, 4)}
    step = {
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "gpu[1-2]",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    }
    assert hosts(job | step) == {"gpu1": (0,), "gpu2": (1,)}
    with pytest.raises(GraphError, match=f"SLURM_JOB_NODELIST_{kind}_GROUP_2 is not set"):
        hosts(job | {f"SLURM_{kind}_SIZE": "3"})
    with pytest.raises(GraphError, match="node 'n1' is in two components"):
        hosts(job | {f"SLURM_JOB_NODELIST_{kind}_GROUP_1": "n[1-2]"})
    with pytest.raises(GraphError, match="heterogeneous job is known for block only"):
        hosts(job | {"SLURM_DISTRIBUTION": "cyclic"})


def test_what_tasks_may_not_say_is_said() -> None:
    job = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_NTASKS": "2"}
    assert slurm.from_environment(job).notes == ()
    [note] = slurm.from_environment(job | {"SLURM_GPUS_ON_NODE": "8"}).notes
    assert "give --ranks-per-node 8" in note
    assert slurm.from_environment(job | {"SLURM_GPUS_ON_NODE": "8"}, ranks_per_node=8).notes == ()
    cpus = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_TASKS_PER_NODE": "64(x2)"}
    [note] = slurm.from_environment(cpus).notes
    assert note.startswith("the job was not asked for a number of tasks")


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, "SLURM_JOB_NODELIST is not set; run this inside a Slurm job"),
        ({"SLURM_JOB_NODELIST": "n1"}, "SLURM_TASKS_PER_NODE is not set"),
        (
            JOB | {"SLURM_TASKS_PER_NODE": "2(x2)"},
            "SLURM_TASKS_PER_NODE is for 2 nodes, but SLURM_JOB_NODELIST has 3; give --ranks-per",
        ),
        (JOB | {"SLURM_TASKS_PER_NODE": "2"}, "SLURM_TASKS_PER_NODE is for 1 node, but SLURM_JOB"),
        (JOB | {"SLURM_DISTRIBUTION": "plane=4"}, "SLURM_DISTRIBUTION='plane=4': only block"),
        (
            JOB | {"SLURM_TASKS_PER_NODE": "0(x3)"},
            "SLURM_TASKS_PER_NODE: no node of the job has a task; give --ranks-per-node",
        ),
        (JOB | {"SLURM_HET_SIZE": "many"}, "SLURM_HET_SIZE='many' is no number of components"),
        (
            {"SLURM_JOB_NODELIST": "n1", "SLURM_NTASKS_PER_NODE": "x"},
            "SLURM_NTASKS_PER_NODE='x' is no number of tasks",
        ),
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
        ("SwitchName=a Switches=b", "t:1: nothing declares switch 'b'"),
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


BLOCKS = """\
---
- topology: racks
  block:
    block_sizes: [2]
    blocks:
      - {block: b1, nodes: "n[1-2]"}
      - {block: b2, nodes: "n[3-4]"}
"""


def graph_of(switches: tuple[slurm_topology.Switch, ...]) -> set[tuple[str, str]]:
    hosts = hostfile.in_order(dict.fromkeys(slurm_topology.all_nodes(switches), 1))
    return {(li.src, li.dst) for li in merge(slurm_topology.fragment(switches, hosts)).links}


def test_a_tree_in_yaml_is_the_tree_of_a_conf() -> None:
    switches, notes = slurm_yaml.parse(text("slurm_tree.yaml"), source="topology.yaml")
    conf = (
        "SwitchName=root Switches=s[1-2]\nSwitchName=s1 Nodes=n[01-02]\n"
        "SwitchName=s2 Nodes=n[03-04]"
    )
    assert graph_of(switches) == graph_of(slurm_topology.parse(conf, source="topology.conf"))
    assert notes == ["topology 'fabric' of 2 was read, the cluster's default"]


def test_blocks_in_yaml_are_those_of_a_conf() -> None:
    switches, notes = slurm_yaml.parse(BLOCKS, source="topology.yaml")
    conf = "BlockName=b1 Nodes=n[1-2]\nBlockName=b2 Nodes=n[3-4]\nBlockSizes=2"
    assert graph_of(switches) == graph_of(slurm_topology.parse(conf, source="topology.conf"))
    assert notes == []


@pytest.mark.parametrize("document", [BLOCKS, "[]", "\ufeff- a", "%YAML 1.2\n---\n- a"])
def test_yaml_is_told_from_conf(document: str) -> None:
    assert slurm_yaml.is_yaml(document)
    assert slurm_yaml.is_yaml(text("slurm_tree.yaml"))
    assert not slurm_yaml.is_yaml("# x\n\nSwitchName=s1 Nodes=n1")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("[]", "t: not a list of topologies"),
        ("- a", "t:1: not a mapping"),
        ("- topology: x\n  flat: true", "t:1: a topology of flat; tree and block say"),
        ("- topology: x\n  ring: {rings: [{ring: r, nodes: n1}]}", "a topology of ring"),
        ("- topology: x", "a topology of no kind that is known"),
        ("- topology: x\n  tree: {}", "t:1: tree has no list 'switches'"),
        ("- topology: x\n  tree: a", "t:2: not a mapping"),
        ("- tree: {switches: [{switch: s1}]}", "'s1' has neither 'nodes' nor 'children'"),
        ("- tree: {switches: [{nodes: n1}]}", "give 'switch' a name"),
        ("- tree: {switches: [{switch: s, nodes: [n1]}]}", "'nodes' must be a node list"),
        ("- tree: {switches: [{switch: s, children: t}]}", "nothing declares switch 't'"),
        ("- tree: {switches: [{switch: s, children: s}]}", "switch 's' is below itself"),
        ("- block: {blocks: [{block: b, nodes: n1}, {block: b, nodes: n2}]}", "'b' is there twice"),
        ("- tree: {switches: [{switch: s, nodes: 'n[1-'}]}", "t:1"),
    ],
)
def test_a_bad_yaml_is_refused(document: str, words: str) -> None:
    with pytest.raises(GraphError) as caught:
        slurm_yaml.parse(document, source="t")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
