"""A control process reduced to what the admin server asks of it, with the real parts behind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from trainmesh.serving.cluster.cordons import Cordon, CordonState
from trainmesh.serving.config.types import Config, EndpointConfig, ModelConfig, ShadowConfig
from trainmesh.serving.control.rundir import RouterInfo, WorkerWords
from trainmesh.serving.control.snapshot import Observations, Snapshot, assemble
from trainmesh.serving.identity.audit import AuditLog
from trainmesh.serving.identity.authenticator import Authenticator
from trainmesh.serving.identity.keys import digest
from trainmesh.serving.observe.cells import names_of
from trainmesh.serving.observe.shared_counters import SharedCounters
from trainmesh.serving.refusal import Refusal

TOKEN = "the-admins-key"

CONFIG = Config(
    version=1,
    models={
        "m": ModelConfig(
            endpoints=(
                EndpointConfig(url="http://127.0.0.1:9001", name="h1", node="n1", zone="eu"),
                EndpointConfig(url="http://127.0.0.1:9002", name="org/h2:1"),
            ),
            shadow=ShadowConfig(policy="mesh"),
        )
    },
)


class Desk:
    """Implements ``trainmesh.serving.admin.admin.Control``."""

    def __init__(self, folder: Path, config: Config = CONFIG) -> None:
        self.config = config
        self.info = RouterInfo(name="front", pid=1, listen="http://127.0.0.1:8080")
        self.counters = SharedCounters.create(folder / "board-1", names_of(config), workers=2)
        self.ledger: Path | None = None
        self.said: list[WorkerWords] = []
        self.problem = ""
        self.authenticator = Authenticator(config, admin_digests=[digest(TOKEN.encode())])
        self.audit_path = folder / "audit.jsonl"
        self._audit = AuditLog(self.audit_path)
        self._cordons: dict[str, Cordon] = {}
        self.snapshot: Snapshot | None = None
        self.look()

    def look(self, seen: Observations | None = None) -> None:
        """Take the next snapshot."""
        seen = seen or Observations(cordons=self._cordons)
        self.snapshot = assemble(self.config, seen, time.monotonic(), previous=self.snapshot)

    def close(self) -> None:
        self._audit.close()

    def words(self) -> Sequence[WorkerWords]:
        return self.said

    def not_ready(self) -> str:
        return self.problem

    def authorize(self, authorization: str, remote: str) -> str | Refusal:
        found = self.authenticator.authorize_admin(authorization.encode() or None)
        if isinstance(found, Refusal):
            self._audit.refused("unknown", "authorize", "admin", remote, found.code)
            return found
        return found.who

    async def cordon(self, endpoint: str, state: CordonState, by: str) -> None:
        self._cordons[endpoint] = Cordon(state=state, by=by, since_unix_s=time.time())
        self.look()

    def audit(self, by: str, action: str, subject: str, remote: str, result: str) -> None:
        self._audit.admin(by, action, subject, remote, result)
