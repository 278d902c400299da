"""Which side yields if a training job and inference share a link; pure."""

from __future__ import annotations

from trainmesh.errors import GraphError, PlanError
from trainmesh.plan.schedule import stages
from trainmesh.serving.config.types import TrafficClass
from trainmesh.topology.cost import link_loads
from trainmesh.topology.graph import LinkGraph
from trainmesh.types import Algorithm, Plan

__all__ = ["FREE_SHARE", "free_share", "links_in_use", "native_plan"]

FREE_SHARE = {TrafficClass.FIRST: 1.0, TrafficClass.EQUAL: 0.5, TrafficClass.YIELD: 0.1}
"""The part of a link's bandwidth that inference counts on while training uses the link too: a
router can't shape traffic, but it can prefer endpoints that it reaches without being in the way."""


def native_plan(world_size: int) -> Plan:
    """The plan that a job runs before its first one: a ring in rank order."""
    return Plan(algorithm=Algorithm.NATIVE, world_size=world_size, order=tuple(range(world_size)))


def links_in_use(plan: Plan, graph: LinkGraph) -> frozenset[str]:
    """Names of the links that carry the plan's messages: all links where these are not known
    (a plug-in's algorithm), none where the plan is not for this graph."""
    if plan.world_size != graph.world_size:
        return frozenset()
    try:
        flows = [flow for stage in stages(plan) for flow in stage.flows]
        return frozenset(link_loads(flows, graph))
    except (PlanError, GraphError):
        return frozenset(link.name for link in graph.links)


def free_share(used: frozenset[str], traffic_class: TrafficClass) -> dict[str, float]:
    """Link name -> the part of its bandwidth that is left; only links with less than all."""
    share = FREE_SHARE[traffic_class]
    return {} if share == 1.0 else dict.fromkeys(used, share)
