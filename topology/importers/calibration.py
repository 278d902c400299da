"""Link costs from a run of nccl-tests: the alpha-beta cost of one hop, and what it says of links.

The run is read as a ring: of n bytes, it takes hops * alpha + factor * n / bandwidth, where the
hops are 2(N-1) of an all-reduce and N-1 of the others, and factor is busbw / algbw. So the
bandwidth is the busbw of large sizes. A tree has a lower alpha, and with NVLink SHARP (NVLS) the
busbw is more than any wire carries: ``NCCL_ALGO=Ring`` makes the run what it is taken for.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainmesh.errors import GraphError
from trainmesh.topology.graph import LinkGraph, host_graph
from trainmesh.topology.importers.nccl_tests import BUSBW_FACTOR, Run
from trainmesh.topology.measure.probing import fit_cost
from trainmesh.types import LinkCost

__all__ = ["RingCostFit", "calibrate", "calibrated", "graph_of"]


@dataclass(frozen=True)
class RingCostFit:
    """Cost of one hop of a ring, fitted; ``residual`` is the median of |measured - fitted| /
    measured over the sizes."""

    cost: LinkCost
    residual: float
    num_samples: int


def calibrate(run: Run) -> RingCostFit:
    """Fit the cost of a hop to the times of ``run`` (by ``probing.fit_cost``).

    Raises:
        GraphError: fewer than two ranks or sizes, or larger sizes were not slower.
    """
    num_ranks = len(run.ranks)
    fit = fit_cost([(sample.nbytes, sample.time_s) for sample in run.samples])
    if fit is None or num_ranks < 2:
        raise GraphError(
            f"{run.collective} of {num_ranks} ranks: the times do not give a cost; measure at "
            "least two sizes on two ranks, such as -b 8 -e 1G -f 2"
        )
    hops = (num_ranks - 1) * (2 if run.collective == "allreduce" else 1)
    start_s = 2 * fit.cost.alpha_s  # fit_cost is made for round trips, of which it takes half
    bandwidth = BUSBW_FACTOR[run.collective](num_ranks) * fit.cost.bandwidth_bytes_per_s
    cost = LinkCost(alpha_s=start_s / hops, bandwidth_bytes_per_s=bandwidth)
    return RingCostFit(cost, fit.residual, fit.num_samples)


def calibrated(
    graph: LinkGraph, run: Run, hop: LinkCost, link_class: str | None = None
) -> LinkGraph:
    """The next version of ``graph``, in which the slowest link of a class has the bandwidth of
    ``hop`` and its links on the way of a hop share the alpha.

    Args:
        graph: Of the job that ran.
        run: What ran.
        hop: What ``calibrate`` found.
        link_class: None takes the class of the slowest link between neighbouring ranks.

    Raises:
        GraphError: the numbers of ranks differ, or no hop has a link of the class.
    """
    num_ranks = len(run.ranks)
    if graph.world_size != num_ranks:
        raise GraphError(f"the run has {num_ranks} ranks, the graph {graph.world_size}")
    paths = [graph.path(rank, (rank + 1) % num_ranks) for rank in range(num_ranks)]
    if link_class is None:
        links = [link for path in paths for link in path]
        slowest = min(links, key=lambda link: (link.cost.bandwidth_bytes_per_s, link.name))
        link_class = slowest.link_class
    most = max(sum(link.link_class == link_class for link in path) for path in paths)
    if not most:
        raise GraphError(f"no way between neighbouring ranks has a link of class {link_class!r}")
    alpha_s = hop.alpha_s / most
    bandwidth = hop.bandwidth_bytes_per_s
    cost = LinkCost(alpha_s=alpha_s, bandwidth_bytes_per_s=bandwidth)
    return graph.with_class_cost(link_class, cost)


def graph_of(run: Run, hop: LinkCost) -> LinkGraph:
    """A graph where there is none to calibrate: ``graph.host_graph`` of the run's hosts, in which
    every link has the bandwidth of ``hop``, since the ring crossed no slower one, and the links
    of the longest way share its alpha."""
    graph = host_graph(run.hosts)
    classes = ("loopback", "ethernet") if len(run.hosts) > 1 else ("loopback",)
    alpha_s = hop.alpha_s / (2 * len(classes))
    cost = LinkCost(alpha_s=alpha_s, bandwidth_bytes_per_s=hop.bandwidth_bytes_per_s)
    for link_class in classes:
        graph = graph.with_class_cost(link_class, cost)
    return graph
