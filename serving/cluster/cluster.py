"""The control process's view of the cluster, from the store or a topology file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from trainmesh.errors import GraphError, WireError
from trainmesh.serving.cluster.cordons import Cordon, cordon_prefix, read_cordons
from trainmesh.serving.cluster.graph import Map, RoundTrip
from trainmesh.serving.cluster.peers import MAX_ROUTERS, Heard, read_states, router_prefix
from trainmesh.serving.cluster.store_cache import Copy
from trainmesh.serving.cluster.traffic import free_share, links_in_use, native_plan
from trainmesh.serving.cluster.verdicts import QUARANTINE, Verdict, in_force, read_verdicts
from trainmesh.serving.config.types import Config
from trainmesh.store.base import job_prefix
from trainmesh.topology.document import load, load_file
from trainmesh.topology.graph import LinkGraph
from trainmesh.types import JobStatus, Plan
from trainmesh.wire import decode

__all__ = ["TRAINING_S", "Cluster"]

TRAINING_S = 10.0
"""A job counts as using its links while its status is younger than this; coordinators write it
every second."""

Under = Callable[[str], Mapping[str, Copy]]


class Cluster:
    """Reads copies of the store's keys (``StoreCache.under``) and remembers what they mean; each
    value is decoded once. ``log`` gets a line for each that makes no sense. ``previous`` may know
    the graph of a job that has ended since.

    Raises:
        GraphError: the topology file can't be used.
    """

    def __init__(
        self,
        config: Config,
        own: str,
        log: Callable[[str], None],
        previous: Cluster | None = None,
    ) -> None:
        self.verdicts: list[Verdict] = []
        """All that are in the store, whether they hold or not."""
        self.cordons: dict[str, Cordon] = {}
        self.heard: list[Heard] = []
        self._config = config
        self._own = own
        self._log = log
        self._said: dict[str, frozenset[str]] = {}
        topology = config.topology
        self._graph: LinkGraph | None = None
        if topology.file:
            self._graph = load_file(Path(topology.file), pipe_s=0)  # read with each reload
        self._document = b""
        if previous is not None and previous._config.topology == topology and topology.job:
            self._graph, self._document = previous._graph, previous._document
        self._status: tuple[bytes, Plan | None, float] = (b"", None, 0.0)
        """The job's, its plan, and when it came; empty without a job."""
        self._read: dict[str, Mapping[str, Copy]] = {}
        """By prefix, the copies that were read last."""
        self._states: dict[str, tuple[Copy, list[Heard]]] = {}
        self._ways: tuple[object, dict[str, RoundTrip]] = (None, {})

    @property
    def prefixes(self) -> list[str]:
        """What it wants to see of the store."""
        group, job = self._config.routers.group, self._config.topology.job
        keys = [f"{job_prefix(job)}graph", f"{job_prefix(job)}status"] if job else []
        return [QUARANTINE, cordon_prefix(group), router_prefix(group), *keys]

    def read(self, under: Under) -> bool:
        """Take over what the store holds now. True if endpoints may come or go because of it."""
        group, job = self._config.routers.group, self._config.topology.job
        urgent = False
        if self._is_new(QUARANTINE, copies := under(QUARANTINE)):
            self.verdicts, problems = read_verdicts(_values(copies))
            self._complain(QUARANTINE, problems)
            urgent = True
        prefix = cordon_prefix(group)
        if self._is_new(prefix, copies := under(prefix)):
            self.cordons, problems = read_cordons(_values(copies), group)
            self._complain(prefix, problems)
            urgent = True
        if self._is_new(router_prefix(group), copies := under(router_prefix(group))):
            self._read_states(copies)
        if job and self._is_new(job_prefix(job), copies := under(job_prefix(job))):
            urgent = self._read_job(copies, job) or urgent
        return urgent

    def ways(self, now_s: float, now_unix_s: float) -> dict[str, RoundTrip]:
        """By node of an endpoint; empty where no graph or no place of ours in it is known."""
        graph, here = self._graph, self._config.topology.node
        if graph is None or not here:
            return {}
        holding = in_force(self.verdicts, now_unix_s)
        used = self._in_use(graph, now_s)
        key = (graph, here, tuple(holding), used)
        if self._ways[0] != key:
            share = free_share(used, self._config.topology.traffic_class)
            here_on = Map(graph, here, holding)
            found = {node: here_on.way(node, share) for node in self._nodes()}
            self._ways = key, {node: way for node, way in found.items() if way is not None}
        return self._ways[1]

    def _nodes(self) -> set[str]:
        models = self._config.models.values()
        return {endpoint.node for model in models for endpoint in model.endpoints if endpoint.node}

    def _is_new(self, prefix: str, copies: Mapping[str, Copy]) -> bool:
        if self._read.get(prefix, {}) == copies:
            return False
        self._read[prefix] = copies
        return True

    def _read_states(self, copies: Mapping[str, Copy]) -> None:
        """Only those that are new are decoded: each router's changes every second."""
        states: dict[str, tuple[Copy, list[Heard]]] = {}
        problems: list[str] = []
        for key, copy in list(copies.items())[:MAX_ROUTERS]:
            known = self._states.get(key)
            if known is None or known[0] is not copy:
                heard, found = read_states([(key, copy.value, copy.at_s)], self._own)
                problems += found
                known = copy, heard
            states[key] = known
        self._states = states
        self.heard = [one for _, heard in states.values() for one in heard]
        self._complain("routers", problems)

    def _in_use(self, graph: LinkGraph, now_s: float) -> frozenset[str]:
        """The links that the training job loads now."""
        data, plan, at_s = self._status
        if not data or now_s - at_s > TRAINING_S:
            return frozenset()
        return links_in_use(plan or native_plan(graph.world_size), graph)

    def _read_job(self, copies: Mapping[str, Copy], job: str) -> bool:
        """A job that has ended leaves no keys; its last graph is kept. True if there is a new
        one."""
        problems: list[str] = []
        document = copies.get(f"{job_prefix(job)}graph")
        is_new = document is not None and document.value != self._document
        if document is not None and is_new:
            self._document = document.value
            try:
                self._graph = load(document.value.decode(), source=f"graph of job {job}")
            except (GraphError, UnicodeDecodeError) as error:
                problems.append(f"ignored: {error}")
        status = copies.get(f"{job_prefix(job)}status")
        self._status = (b"", None, 0.0)
        if status is not None:
            try:
                plan = decode(status.value, JobStatus, what=f"status of job {job}").plan
                self._status = (status.value, plan, status.at_s)
            except WireError as error:
                problems.append(f"ignored: {error}")
        self._complain("job", problems)
        return is_new

    def _complain(self, about: str, problems: list[str]) -> None:
        """Each problem is said when it is new; few are remembered."""
        for problem in problems:
            if problem not in self._said.get(about, ()):
                self._log("".join(char if char.isprintable() else "?" for char in problem))
        self._said[about] = frozenset(problems[:1000])


def _values(copies: Mapping[str, Copy]) -> dict[str, bytes]:
    return {key: copy.value for key, copy in copies.items()}
