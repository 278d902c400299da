"""Clusters to plan for, of any size."""

from trainmesh.topology.graph import Kind, Link, LinkGraph, Node
from trainmesh.types import LinkCost

__all__ = ["rail_cluster"]

GPUS_A_HOST = 8
HOSTS_A_POD = 32
SPINES_A_RAIL = 4
NVLINK = LinkCost(alpha_s=1e-6, bandwidth_bytes_per_s=450e9)
NIC = LinkCost(alpha_s=3e-6, bandwidth_bytes_per_s=50e9)


def rail_cluster(ranks: int, *, slow_nic: float = 1.0) -> LinkGraph:
    """Hosts of 8 GPUs around an NVSwitch (450 GB/s each). GPU j of the 32 hosts of a pod has a
    50 GB/s NIC in leaf j of that pod; the leaves of one rail meet in 4 spines, without
    oversubscription. ``slow_nic``: what is left of rank 0's NIC."""
    nodes: list[Node] = []
    links: list[Link] = []
    hosts = ranks // GPUS_A_HOST
    pods = -(-hosts // HOSTS_A_POD)

    def both_ways(a: str, b: str, cost: LinkCost, name: str) -> None:
        links.extend((Link(a, b, cost, name), Link(b, a, cost, name)))

    for rail in range(GPUS_A_HOST):
        nodes += [Node(f"leaf{pod}.{rail}", Kind.SWITCH) for pod in range(pods)]
    if pods > 1:
        up = LinkCost(
            alpha_s=1e-6,
            bandwidth_bytes_per_s=NIC.bandwidth_bytes_per_s * HOSTS_A_POD / SPINES_A_RAIL,
        )
        for rail in range(GPUS_A_HOST):
            for spine in range(SPINES_A_RAIL):
                nodes.append(Node(f"spine{rail}.{spine}", Kind.SWITCH))
                for pod in range(pods):
                    both_ways(f"leaf{pod}.{rail}", f"spine{rail}.{spine}", up, "fabric")
    for host in range(hosts):
        nodes.append(Node(f"nvswitch{host}", Kind.SWITCH))
        for gpu in range(GPUS_A_HOST):
            rank = host * GPUS_A_HOST + gpu
            name = f"gpu{rank}"
            nodes.append(Node(name, Kind.RANK, rank))
            both_ways(name, f"nvswitch{host}", NVLINK, "nvlink")
            share = slow_nic if rank == 0 else 1.0
            nic = LinkCost(
                alpha_s=NIC.alpha_s, bandwidth_bytes_per_s=NIC.bandwidth_bytes_per_s * share
            )
            both_ways(name, f"leaf{host // HOSTS_A_POD}.{gpu}", nic, "rail")
    return LinkGraph(nodes, links)
