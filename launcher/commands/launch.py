"""``trainmesh launch [torchrun's flags] [trainmesh's flags] script.py [args]``.

Everything that can be checked is checked before anything is started (``session`` starts it).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from trainmesh.console import say
from trainmesh.errors import ConfigError, JobTaken, StoreError, TrainmeshError
from trainmesh.job_settings import AUTO
from trainmesh.launcher.own_modules import environment_of_ours
from trainmesh.launcher.run import asked, signals, target
from trainmesh.launcher.run.meeting import meeting_of
from trainmesh.launcher.run.options import add_arguments, parent_parsers
from trainmesh.launcher.run.settings import LaunchSettings, job_name, node_name
from trainmesh.rundir import RunDir
from trainmesh.store.address import is_loopback, parse_url
from trainmesh.store.claim import AWAY, ENV_CLAIM
from trainmesh.types import Algorithm
from trainmesh.wire import encode

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

__all__ = ["add_arguments", "parent_parsers", "run"]

ETCD_CHECK_S = 40.0
"""More than the claim's patience with a launch that has died, and a slow start of Python."""


def run(args: Namespace) -> int:
    """Launch; returns torchrun's exit code."""
    with signals.exiting():
        from trainmesh.launcher.run import session, torchrun

    _check_target(args)
    config, command = torchrun.resolve(args)
    settings = _settings(args, config.max_nodes)
    asked.check(settings, config)
    if args.job is not None and settings.etcd is None:
        _refuse_namesake(args.job)
    if args.dry_run:
        print(_description(settings, config, command))
        return 0
    if args.report is not None:
        _make_writable(args.report, "--report", ConfigError)
    if args.log_dir not in (None, os.devnull):
        _make_writable(Path(args.log_dir), "--log-dir", TrainmeshError)  # torchrun's code
    if settings.etcd is not None:
        _claim_name(settings, settings.etcd)
        _warn_of_plain_text(settings.etcd)
    return session.run(args, settings)


def _settings(args: Namespace, num_nodes: int) -> LaunchSettings:
    if num_nodes > 1 and args.etcd is None:
        raise ConfigError(
            "several nodes share one etcd; pass the same --etcd http://host:2379 on each of them"
        )
    if args.topology is not None:
        from trainmesh.topology.document import load_file

        load_file(args.topology, to_plan=True)
    asked.check_codec(args.compression)
    return LaunchSettings(
        job=job_name(args, num_nodes),
        node=node_name(args, num_nodes),
        etcd=args.etcd,
        insecure_etcd=args.insecure_etcd,
        topology=args.topology.absolute() if args.topology else None,
        plan=args.plan,
        margin=args.margin,
        cadence=args.cadence,
        fusion=args.fusion,
        compression=args.compression,
        meeting=meeting_of(args, num_nodes),
    )


def _description(settings: LaunchSettings, config: LaunchConfig, command: list[str]) -> str:
    nodes = f"{config.min_nodes}:{config.max_nodes}"
    lines = {
        "job": settings.job,
        "node": settings.node,
        "workers": f"{config.nproc_per_node} on each of {nodes} nodes",
        "rendezvous": _meeting_point(config),
        "worker": shlex.join(command),
        "etcd": settings.etcd or "embedded, started on this machine",
        "topology": settings.topology or "none declared",
        "plan": f"{settings.plan}, margin {settings.margin:g}, cadence {settings.cadence}",
        "fusion": _describe_fusion(settings),
        "compression": settings.compression,
    }
    return "\n".join(f"{name:<11} {value}" for name, value in lines.items())


def _meeting_point(config: LaunchConfig) -> str:
    if config.max_nodes == 1:
        return "on this machine"
    return f"{config.rdzv_backend} at {config.rdzv_endpoint or 'its default'}"


def _describe_fusion(settings: LaunchSettings) -> str:
    if settings.fusion == AUTO and settings.plan == Algorithm.NATIVE:
        return "off: native is DDP's own buckets"
    return {AUTO: AUTO, "0": "off"}.get(settings.fusion, f"{settings.fusion} bytes")


def _check_target(args: Namespace) -> None:
    if args.module and not args.run_path:
        target.check_module(args.training_script)
    elif args.no_python and not args.run_path:
        target.check_program(args.training_script)
    else:
        target.check_script(args.training_script)


def _make_writable(directory: Path, flag: str, refusal: type[TrainmeshError]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(
            f"{flag} {directory}: not a directory, and can't be made one ({error.strerror})"
        ) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise refusal(f"{flag} {directory}: can't be written to; choose another directory")


def _refuse_namesake(job: str) -> None:
    """With an etcd of its own nothing else notices a second job of one name. Names that are made
    from torchrun's flags may be the same: torchrun runs such jobs side by side.

    Raises:
        JobTaken: a job that was called so by hand, or otherwise, runs here.
    """
    for _, info in RunDir.live():
        if info.job == job:
            raise JobTaken(
                f"a job named {job!r} is running already: its launcher is process {info.pid}; "
                "choose another name with --job NAME, or wait until it has ended"
            )


def _claim_name(settings: LaunchSettings, url: str) -> None:
    """Claim the job's name in a child process, so that gRPC is never loaded into the process that
    forks workers. An etcd that is away is said, and claimed in later.

    Raises:
        ConfigError: the address, a certificate or a user is wrong.
        StoreError: what answers there refuses us, or another job has the name.
    """
    command = [sys.executable, "-P", "-m", "trainmesh.store.claiming", url]
    try:
        done = subprocess.run(
            [*command, "--insecure"] if settings.insecure_etcd else command,
            env={**environment_of_ours(os.environ), ENV_CLAIM: encode(settings.claim).decode()},
            stdout=subprocess.PIPE,
            text=True,
            timeout=ETCD_CHECK_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        code, message = AWAY, f"etcd {url} does not answer in {ETCD_CHECK_S:g} s"
    else:
        words = done.stdout.strip().splitlines() or [f"exit code {done.returncode}"]
        code, message = done.returncode, words[-1]
    if code == AWAY:
        say(f"warning: {message}; training goes on, without plans until it does")
    elif code:
        raise (ConfigError if code == ConfigError.exit_code else StoreError)(message)


def _warn_of_plain_text(url: str) -> None:
    host, _, with_tls = parse_url(url)
    if not with_tls and not is_loopback(host):
        say(f"warning: etcd at {host} is reached in plain text; use https:// on a shared network")
