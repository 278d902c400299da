"""Find the running routers of this user on this machine, and ask their admin servers."""

from __future__ import annotations

import argparse
from http.client import HTTPConnection, HTTPException
from urllib.parse import quote, urlsplit

import msgspec

from trainmesh.errors import ConfigError, TrainmeshError
from trainmesh.serving.control.rundir import RouterInfo, ServeRun
from trainmesh.serving.identity import admin_token

__all__ = [
    "TIMEOUT_S",
    "RouterError",
    "add_arguments",
    "ask",
    "choose_routers",
    "one_router",
    "tell",
]

TIMEOUT_S = 10.0
"""For a router that is busy; it answers in milliseconds otherwise."""
MAX_ANSWER_BYTES = 64 << 20
"""Of an admin server: thousands of endpoints are a few MB."""

Router = tuple[ServeRun, RouterInfo]


class RouterError(TrainmeshError):
    """A router doesn't run, doesn't answer, or refused."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command that looks at routers."""
    parser.add_argument("--router", metavar="NAME", help="the router's name; all unless given")
    parser.add_argument("--json", action="store_true", help="print JSON")


def choose_routers(name: str | None) -> list[Router]:
    """The running routers, or the one that is called ``name``.

    Raises:
        RouterError: there is none of that name.
    """
    routers = [(run, info) for run, info in ServeRun.live() if info.admin]
    if name is None:
        return routers
    named = [(run, info) for run, info in routers if info.name == name]
    if not named:
        known = ", ".join(info.name for _, info in routers) or "none"
        raise RouterError(f"no router {name!r} is running on this machine; running: {known}")
    return named


def one_router(name: str | None) -> Router:
    """The one that is meant.

    Raises:
        RouterError: none is running.
        ConfigError: several are, and none is named.
    """
    routers = choose_routers(name)
    if not routers:
        raise RouterError("no router is running on this machine as this user")
    if len(routers) > 1:
        names = ", ".join(info.name for _, info in routers)
        raise ConfigError(f"several routers are running; name one with --router: {names}")
    return routers[0]


def ask(router: Router, path: str) -> bytes:
    """GET from the router's admin server.

    Raises:
        RouterError: it doesn't answer, or not with 200.
    """
    return _request(router, "GET", path, {}, TIMEOUT_S)


def tell(
    router: Router, endpoint: str, word: str, *, timeout_s: float, wait_s: float | None = None
) -> bytes:
    """Send an admin's order (cordon, drain, uncordon) for an endpoint. ``wait_s`` limits a drain;
    without it, the router's configuration does.

    Raises:
        RouterError: the router refused or doesn't answer.
        ConfigError: there is no admin's key in its run directory.
    """
    key = admin_token.read(router[0].path)
    path = f"/endpoints/{quote(endpoint)}/{word}"
    if wait_s is not None:
        path += f"?wait_s={wait_s:g}"
    return _request(router, "POST", path, {"Authorization": f"Bearer {key}"}, timeout_s)


def _request(
    router: Router, method: str, path: str, headers: dict[str, str], timeout_s: float
) -> bytes:
    info = router[1]
    address = urlsplit(info.admin)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=timeout_s)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        body = response.read(MAX_ANSWER_BYTES)
    except (OSError, HTTPException) as error:
        raise RouterError(f"router {info.name} at {info.admin} does not answer: {error}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise RouterError(f"router {info.name}: {_reason(body) or response.reason}")
    return body


def _reason(body: bytes) -> str:
    try:
        message = msgspec.json.decode(body)["error"]["message"]
    except (msgspec.MsgspecError, KeyError, TypeError):
        return ""
    return str(message)
