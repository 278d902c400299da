"""Matrices of nvidia-smi topo -m: recorded machines of many kinds, and what is refused."""

import pytest

from tests.topology.importers.recorded import GBps, neighbours, text
from trainmesh.errors import GraphError
from trainmesh.topology.graph import Kind, LinkGraph, Provenance
from trainmesh.topology.importers.nvidia_smi import parse
from trainmesh.topology.merge import merge


def graph_of(name: str, sm: int | None = None) -> LinkGraph:
    return merge(parse(text(name), source=name, host="h", sm=sm))


def test_dgx_a100_has_switches_of_nvlink_and_pcie() -> None:
    graph = graph_of("smi_dgx_a100.txt")
    assert GBps(graph, "h/rank0->h/nvswitch") == 240.0
    assert graph.link("h/rank0->h/nvswitch").provenance is Provenance.DISCOVERED
    # GPU0, GPU1, NIC0 and NIC1 are PXB to each other; the legend says what the NICs are called.
    assert {"h/rank0", "h/rank1", "h/mlx5_0", "h/mlx5_1", "h"} == neighbours(graph, "h/switches0")
    assert graph.link("h/rank0->h/switches0").provenance is Provenance.ASSUMED
    # NIC4 and NIC5, for storage, share a PCIe switch with no GPU.
    assert {"h/mlx5_4", "h/mlx5_5", "h"} == neighbours(graph, "h/switch0")


def test_hgx_h100_with_colours_and_numa_nodes() -> None:
    graph = graph_of("smi_hgx_h100_colour.txt")
    assert GBps(graph, "h/rank7->h/nvswitch") == pytest.approx(18 * 20.6)
    [own] = neighbours(graph, "h/rank3") - {"h/nvswitch"}
    assert "h/mlx5_5" in neighbours(graph, own)
    # NV18 hides what two GPUs share, NUMA Affinity does not.
    assert neighbours(graph, "h/numa0") == {"h", *(f"h/switch{place}" for place in range(4))}
    kinds = {node.name: node.kind for node in graph.nodes}
    assert kinds["h/numa0"] is Kind.HOST
    assert kinds["h/mlx5_5"] is Kind.NIC


def test_bridges_join_pairs() -> None:
    graph = graph_of("smi_a100_pcie_bridges.txt")
    assert neighbours(graph, "h/rank2") == {"h/rank3", "h/numa0"}
    assert GBps(graph, "h/rank2->h/rank3") == 240.0
    assert neighbours(graph, "h/numa1") == {"h", *(f"h/rank{rank}" for rank in range(4, 8))}
    assert "core switch" not in {node.name for node in graph.nodes}


def test_virtual_machine_without_nvlink() -> None:
    graph = graph_of("smi_vm_two_gpus.txt")
    assert {link.link_class for link in graph.links} == {"pcie"}
    assert neighbours(graph, "h/rank0") == {"h/bridge0"}
    assert {link.provenance for link in graph.links} == {Provenance.ASSUMED}


def test_columns_of_old_drivers() -> None:
    graph = graph_of("smi_old_columns.txt")
    assert neighbours(graph, "h/bridge0") == {"h", "h/switch0", "h/switch1", "h/mlx4_0"}
    assert neighbours(graph, "h/switch3") == {"h/bridge1", "h/rank6", "h/rank7"}


def test_compute_capability_tells_a_mesh_from_a_switch() -> None:
    mesh = graph_of("smi_four_v100.txt")
    assert GBps(mesh, "h/rank0->h/rank3") == 40.0
    # NV6 to three others: 18 links, as an H100 has; a V100 has six, so they go through a switch.
    six = text("smi_four_v100.txt").replace("NV2", "NV6")
    hopper = merge(parse(six, source="x", host="h", sm=90))
    volta = merge(parse(six, source="x", host="h", sm=70))
    assert GBps(hopper, "h/rank0->h/rank3") == pytest.approx(6 * 20.6)
    assert GBps(volta, "h/rank0->h/nvswitch") == 120.0
    assert "h/rank0->h/rank3" not in {link.name for link in volta.links}


def test_ranks_may_begin_later() -> None:
    found = parse(text("smi_vm_two_gpus.txt"), source="x", host="b", first_rank=6)
    assert found.ranks == (6, 7)


MATRIX = "\tGPU0\tGPU1\tCPU Affinity\nGPU0\t X \tPHB\t0-7\nGPU1\tPHB\t X \t0-7\n"


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("", "m.txt: no line of columns GPU0 GPU1 ...; give nvidia-smi topo -m"),
        (MATRIX.replace("PHB", "PCI"), "m.txt:2: row GPU0: 'PCI' is no link; give it as"),
        (MATRIX[: MATRIX.index("GPU1\tPHB")], "m.txt:1: no row 'GPU1'; give it as nvidia-smi"),
        (MATRIX.replace("GPU1\tPHB\t X \t0-7", "GPU1\tPHB"), "m.txt:3: row GPU1: 1 cells in 2"),
        (MATRIX.replace("GPU1\tCPU", "GPU0\tCPU"), "m.txt:1: a column is there twice"),
    ],
)
def test_complaints_name_the_line(bad: str, says: str) -> None:
    with pytest.raises(GraphError) as caught:
        parse(bad, source="m.txt", host="h")
    assert str(caught.value).startswith(says)
    assert merge(parse(MATRIX, source="m.txt", host="h")).world_size == 2
