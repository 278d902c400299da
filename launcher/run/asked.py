"""Settings of the user that can't be had: they are refused before the start if that is known by
then, or else reported when the job has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainmesh.console import say
from trainmesh.errors import ConfigError, WireError
from trainmesh.job_settings import AUTO, NO_CODEC
from trainmesh.launcher.run import signals
from trainmesh.types import Algorithm, JobStatus
from trainmesh.units import count
from trainmesh.wire import decode

if TYPE_CHECKING:
    from pathlib import Path

    from torch.distributed.launcher.api import LaunchConfig

    from trainmesh.launcher.run.settings import LaunchSettings
    from trainmesh.topology.graph import LinkGraph

__all__ = ["check", "check_codec", "unmet_lines"]

MOST_FOR_SURE = 64
"""In a larger job, FSDP2's replica groups, for which plans are made, may be of a size that an
algorithm can serve."""


def check(settings: LaunchSettings, config: LaunchConfig) -> None:
    """Check that a job whose size is fixed can have what was asked for.

    Raises:
        ConfigError: it can't; the message says why.
    """
    num_ranks = config.max_nodes * config.nproc_per_node
    if settings.topology is not None:
        _check_size(settings.topology, config)
    if config.min_nodes != config.max_nodes:
        return
    check_codec(settings.compression, num_ranks)
    if settings.plan in (AUTO, Algorithm.NATIVE) or num_ranks > MOST_FOR_SURE:
        return
    with signals.exiting():
        from trainmesh.coordinator.tuning.link_state import MAX_ALIKE
        from trainmesh.coordinator.tuning.refusals import TYPICAL_BYTES
        from trainmesh.topology.planner import why_not
        from trainmesh.topology.request import LIVE, PlanRequest

    graph = _declared(settings.topology, num_ranks)
    if graph is None and config.max_nodes > MAX_ALIKE:
        return  # islands that only the links suggest are found when these are measured
    graph = graph or _assumed(config)
    why = why_not(settings.plan, graph, PlanRequest(TYPICAL_BYTES, executors=LIVE))
    if why is not None:
        raise ConfigError(f"--plan {settings.plan} can't run here: {why}; leave --plan out")


def _check_size(topology: Path, config: LaunchConfig) -> None:
    """Refuse a graph of another size than the job's. Only warn if the job's size depends on other
    nodes.

    Raises:
        ConfigError: the job is on one node, and the graph isn't of its ranks.
    """
    from trainmesh.topology.document import load_file

    declared = count(load_file(topology).world_size, "rank")
    each, fewest, most = config.nproc_per_node, config.min_nodes, config.max_nodes
    sizes = [count(nodes * each, "rank") for nodes in range(fewest, most + 1)]
    if declared in sizes:
        return
    if most == 1:
        raise ConfigError(
            f"--topology {topology}: the file has {declared}, the job has {sizes[0]}; give "
            "--nproc-per-node or another file"
        )
    may = sizes[0] if fewest == most else f"{sizes[0]} to {sizes[-1]}"
    say(
        f"warning: --topology {topology}: the file has {declared}; it is ignored in a job of "
        f"another size, and this one has {may} with {each} on each node"
    )


def check_codec(text: str, num_ranks: int = 1) -> None:
    """Check that there is such a codec, and that it can serve ``num_ranks``.

    Raises:
        ConfigError: there is not, or it can't.
    """
    if text in (AUTO, NO_CODEC):
        return
    with signals.exiting():
        from trainmesh.hooks.codecs import codec

    try:
        codec(text, num_ranks)
    except ConfigError as error:
        raise ConfigError(
            f"--compression {text}: {error} ({AUTO} chooses one, {NO_CODEC} is off)"
        ) from error


def _declared(topology: Path | None, num_ranks: int) -> LinkGraph | None:
    """The declared graph; None without one, or if the coordinator will ignore it for its size."""
    if topology is None:
        return None
    from trainmesh.topology.document import load_file

    graph = load_file(topology, to_plan=True)
    return graph.usable() if graph.world_size == num_ranks else None


def _assumed(config: LaunchConfig) -> LinkGraph:
    from trainmesh.topology.graph import host_graph

    size = config.nproc_per_node
    return host_graph(
        {f"node {n}": range(n * size, (n + 1) * size) for n in range(config.max_nodes)}
    )


def unmet_lines(settings: LaunchSettings, status: Path) -> tuple[str, ...]:
    """A sentence for everything asked for that was never in force, from the status that the
    coordinator has left behind."""
    with signals.exiting():
        from trainmesh.coordinator.tuning.asked import asked_for, name, unmet

    wanted_of = settings.of_job
    wanted = asked_for(wanted_of.only, wanted_of.fusion_bytes, wanted_of.compression)
    if not wanted:
        return ()
    try:
        last = decode(status.read_bytes(), JobStatus, what="status")
    except (OSError, WireError):
        why = "the coordinator has left no status, so whether it was in force is not known"
        return tuple(
            f"{name(item)} was asked for: {why}" for item in wanted if item.since_step is None
        )
    if not last.is_last:
        return tuple(
            f"{name(item)} was not in force when the coordinator was last heard of, at step "
            f"{last.step}"
            for item in last.asked
            if item.since_step is None
        )
    return unmet(last.asked, last.num_steps)
