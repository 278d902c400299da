"""Find running jobs: on this machine by their run directories, elsewhere in an etcd."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msgspec.structs import replace

from trainmesh.console import say
from trainmesh.errors import ConfigError, GraphError, TrainmeshError, WireError
from trainmesh.launcher.arguments import add_etcd
from trainmesh.launcher.run.troubles import read_told
from trainmesh.places import describe_unreadable
from trainmesh.rundir import RunDir, RunInfo
from trainmesh.store.base import Entry, Store, job_prefix
from trainmesh.types import JobStatus, Outcome
from trainmesh.wire import decode

if TYPE_CHECKING:
    from trainmesh.topology.graph import LinkGraph

__all__ = [
    "NO_LEADER",
    "NoGraph",
    "NoSuchJob",
    "add_arguments",
    "find_job",
    "find_jobs",
    "graph_of",
    "opened_store",
]

JOBS = "/trainmesh/jobs/"
NO_LEADER = "its coordinator has ended, or can't write to etcd"


class NoSuchJob(TrainmeshError):
    """No job is running, or none of the given name."""


class NoGraph(TrainmeshError):
    """A running job has no link graph that can be read, yet."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command that looks at running jobs."""
    parser.add_argument("job", nargs="?", help="the job's name; needed where several run")
    add_etcd(parser.add_argument, "look in this etcd instead of on this machine")
    parser.add_argument("--json", action="store_true", help="print JSON")


def find_jobs(args: argparse.Namespace) -> list[JobStatus]:
    """The running jobs, or the one that ``args.job`` names.

    Raises:
        NoSuchJob: ``args.job`` is not running there.
        StoreError: etcd does not answer.
    """
    statuses = _in_store(args) if args.etcd else _on_this_machine()
    if not statuses and not args.etcd:
        _say_unreadable()
    if args.job is None:
        return statuses
    named = [status for status in statuses if status.job == args.job]
    if not named:
        known = ", ".join(status.job for status in statuses) or "none"
        raise NoSuchJob(f"no job {args.job!r} is running {_where(args)}; running: {known}")
    return named


def find_job(args: argparse.Namespace) -> JobStatus:
    """The one job that is meant.

    Raises:
        NoSuchJob: it, or any job, is not running there.
        ConfigError: several are running and none is named.
    """
    statuses = find_jobs(args)
    if len(statuses) > 1:
        names = ", ".join(sorted({status.job for status in statuses}))
        if args.job is not None:
            raise ConfigError(
                f"several jobs called {args.job} run here; pass --etcd with the address that "
                f"trainmesh status {args.job} shows for the one that is meant"
            )
        raise ConfigError(f"several jobs are running; name one of {names}")
    if not statuses:
        raise NoSuchJob(f"no job is running {_where(args)}")
    return statuses[0]


def graph_of(store: Store | None, job: str) -> LinkGraph:
    """The link graph of ``job``.

    Raises:
        NoGraph: there is none yet, or what the store has is none.
    """
    entry = store.get(f"{job_prefix(job)}graph") if store is not None else None
    if entry is None:
        raise NoGraph(
            f"job {job} has no link graph before all its ranks have reported; try again then"
        )
    from trainmesh.topology.document import load

    try:
        return load(entry.value.decode(), source=f"graph of {job}")
    except (GraphError, UnicodeDecodeError) as error:
        raise NoGraph(f"the link graph of job {job} in etcd can't be read: {error}") from error


@contextmanager
def opened_store(args: argparse.Namespace, job: str) -> Iterator[Store | None]:
    """The etcd of ``job``; None while the job's launcher has not started it yet.

    Raises:
        StoreError: etcd does not answer.
    """
    if args.etcd:
        url, insecure = args.etcd, args.insecure_etcd
    else:
        # Whether this address may be used was decided when the job was launched.
        url, insecure = next((info.etcd for _, info in RunDir.live() if info.job == job), ""), True
    if not url:
        yield None
        return
    store = _connect(url, insecure)
    try:
        yield store
    finally:
        store.close()


def _where(args: argparse.Namespace) -> str:
    return f"in {args.etcd}" if args.etcd else "on this machine"


def _say_unreadable() -> None:
    why = describe_unreadable()
    if why:
        say(f"warning: jobs can't be looked for in {why}")


def _on_this_machine() -> list[JobStatus]:
    """Several launchers of one job may run here (one a node) with one etcd; each job counts once.
    Two jobs of one name have an etcd each."""
    found: dict[tuple[str, str], JobStatus] = {}
    launchers: dict[tuple[str, str], RunInfo] = {}
    for run, info in RunDir.live():
        status = run.read_status()
        key = (info.job, info.etcd)
        launchers[key] = info
        if status is None and key in found:
            continue
        status = status or JobStatus(job=info.job, updated_unix_s=info.created_unix_s)
        told = read_told(run.troubles)
        found[key] = replace(
            status,
            troubles=(*(trouble.text for trouble in told.troubles), *_place_troubles(run)),
            events=(*status.events, *told.events),
            outcome=_outcome(run),
            age_s=_age_s(run),
        )
    names = Counter(job for job, _ in found)
    return [
        replace(status, troubles=(*status.troubles, _describe_namesake(launchers[key])))
        if names[status.job] > 1
        else status
        for key, status in found.items()
    ]


def _describe_namesake(info: RunInfo) -> str:
    where = f"; --etcd {info.etcd} means it" if info.etcd else ""
    return f"another job of this name runs here; this one is of launcher {info.pid}{where}"


def _age_s(run: RunDir) -> float | None:
    """How long ago the status came here; None if that is not known."""
    try:
        return max(0.0, time.monotonic() - float(run.status_time.read_bytes()))
    except (OSError, ValueError):
        return None


def _outcome(run: RunDir) -> Outcome | None:
    """Of the attempts that have failed; None if none has."""
    try:
        return decode(run.outcome.read_bytes(), Outcome, what=str(run.outcome))
    except (OSError, WireError):
        return None


def _place_troubles(run: RunDir) -> list[str]:
    """What is wrong with the run directory itself, which its files can't tell."""
    troubles = []
    try:
        decode(run.status.read_bytes(), JobStatus, what=str(run.status))
    except FileNotFoundError:
        pass  # none has come yet
    except (OSError, WireError) as error:
        troubles.append(f"what the job does now is not known: {error}")
    try:
        if not os.statvfs(run.path).f_bavail:
            troubles.append(f"no space is left in {run.path}, so what follows may be old")
    except OSError:
        pass  # it has just ended
    return troubles


def _in_store(args: argparse.Namespace) -> list[JobStatus]:
    store = _connect(args.etcd, args.insecure_etcd)
    try:
        entries, _ = store.list(JOBS)
    finally:
        store.close()
    keys = [entry.key for entry in entries]
    return [
        _with_leader(_decoded(entry), keys) for entry in entries if entry.key.endswith("/status")
    ]


def _decoded(entry: Entry) -> JobStatus:
    """An unreadable status of one job doesn't hide the others."""
    try:
        return decode(entry.value, JobStatus, what=entry.key)
    except WireError as error:
        job = entry.key.removeprefix(JOBS).removesuffix("/status")
        unknown = f"what the job does now is not known: {error}"
        return JobStatus(job=job, updated_unix_s=0.0, troubles=(unknown,))


def _with_leader(status: JobStatus, keys: Sequence[str]) -> JobStatus:
    """A coordinator that leads holds a key for as long as it can write; dates that another host
    has written say nothing here."""
    leader = f"{job_prefix(status.job)}leader/"
    if any(key.startswith(leader) for key in keys):
        return status
    return replace(status, troubles=(*status.troubles, f"what follows is old: {NO_LEADER}"))


def _connect(url: str, insecure: bool) -> Store:
    from trainmesh.store.address import security_from_environment
    from trainmesh.store.etcd import check, connect

    store = connect(url, insecure=insecure, **security_from_environment())
    try:
        check(store)
    except TrainmeshError:
        store.close()
        raise
    return store
