"""A router as a user starts it: a link that an admin takes out carries no request."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.serving.running import RunningRouter, running_router, until
from tests.serving.signals.test_graph import fabric
from trainmesh.launcher.cli import main
from trainmesh.serving.cluster.verdicts import QUARANTINE
from trainmesh.store.etcd import connect
from trainmesh.topology.document import dump
from trainmesh.wire import encode

CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()


@contextmanager
def endpoint(name: str) -> Iterator[str]:
    """Answers everything with its name."""

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = name.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answered(router: RunningRouter) -> set[bytes]:
    """Who answers twelve requests."""
    answers = [router.post(CHAT) for _ in range(12)]
    assert {status for status, _ in answers} == {200}
    return {body for _, body in answers}


@pytest.mark.etcd
def test_a_link_that_an_admin_takes_out_carries_no_request(etcd_url: str, tmp_path: Path) -> None:
    graph = tmp_path / "graph.json"
    graph.write_bytes(encode(dump(fabric())))
    with endpoint("near") as near, endpoint("far") as far:
        config = {
            "topology": {"file": str(graph), "node": "h0"},
            "routers": {"etcd": etcd_url, "group": "route"},
            "models": {
                "m": {
                    "policy": "round_robin",
                    "endpoints": [
                        {"url": near, "name": "near", "node": "h1"},
                        {"url": far, "name": "far", "node": "h3"},
                    ],
                }
            },
        }
        store = connect(etcd_url)
        try:
            with running_router(config) as router:
                until(lambda: answered(router) == {b"near", b"far"})
                link = ("link", "h3<->leaf1", "--etcd", etcd_url)
                assert main(["quarantine", "add", *link, "--reason", "CRC errors"]) == 0
                until(lambda: answered(router) == {b"near"})
                assert main(["quarantine", "release", *link]) == 0
                until(lambda: answered(router) == {b"near", b"far"})
                node = ("node", "h1", "--etcd", etcd_url)
                # Until the router has published that far is open again, h1 is the last one.
                until(lambda: main(["quarantine", "add", *node]) == 0)
                until(lambda: answered(router) == {b"far"})
                assert router.stop() == 0
        finally:
            store.delete(QUARANTINE)
            store.close()
