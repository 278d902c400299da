"""Owns the control-plane processes of this node: embedded etcd, coordinator, agent.

They are started, watched and ended by one thread, so that workers never wait for them. One that
crashes is started again; one that keeps crashing is left alone. Training goes on in any case.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from trainmesh.errors import TrainmeshError
from trainmesh.launcher.service import Service, last_line, restart_delay_s

__all__ = ["Supervisor", "say"]

POLL_S = 0.1
STOP_S = 20.0
"""More than the stop times of all services together."""


class Supervisor:
    """Keeps services running from ``start`` to ``stop``.

    Args:
        services: Makes and yields the services in the order in which they start; each is
            started before the next is made. Called in the supervisor's thread.
        say: Takes one line for the user.
    """

    def __init__(self, services: Callable[[], Iterator[Service]], say: Callable[[str], None]) -> None:
        ...
