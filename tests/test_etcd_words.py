"""etcd's and gRPC's reasons reach people in plain words."""

import json

import pytest

from trainmesh.store.reasons import log_reason, plain_reason

INFO = json.dumps({"level": "info", "ts": "2026-11-29", "msg": "serving client traffic"})
FULL = json.dumps(
    {
        "level": "fatal",
        "msg": "failed to create WAL",
        "path": "/x",
        "error": "write /x/0.tmp: no space left on device",
    }
)
TRACE = """panic: tocommit(12) is out of range [lastIndex(4)]. Was the raft log corrupted?

goroutine 165 [running]:
go.uber.org/zap/zapcore.(*CheckedEntry).Write(0xc0001b60c0, 0x0, 0x0, 0x0)
\t/go/pkg/mod/go.uber.org/zap@v1.17.0/zapcore/entry.go:234 +0x58d
main.main()
\t/tmp/etcd/server/main.go:32 +0x45
"""


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ("etcdserver: mvcc: database space exceeded", "its database is full: compact"),
        ("etcdserver: permission denied", "grant it a role"),
        ("etcdserver: user name is empty", "set TRAINMESH_ETCD_USER"),
        ("etcdserver: no leader", "too few of its members run"),
        ("etcdserver: request is too large", "--max-request-bytes"),
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to "
            "connect to remote host: Connection refused",
            "nothing listens on this port",
        ),
        (
            "Ssl handshake failed: SSL_ERROR_SSL: error:1000007d:SSL routines:"
            "OPENSSL_internal:CERTIFICATE_VERIFY_FAILED",
            "its certificate is not one of the authority in TRAINMESH_ETCD_CA",
        ),
        ("etcdserver: something\n new", "something new"),
    ],
)
def test_reasons(details: str, words: str) -> None:
    reason = plain_reason(details)
    assert words in reason
    assert "etcdserver" not in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", ""),
        (INFO, ""),
        (f"{INFO}\n{FULL}\n{INFO}\n", "no space is left on its disk"),
        (f"{INFO}\n{TRACE}", "its data is damaged; restore it from a snapshot"),
        (TRACE.replace("panic: ", "").replace("Was the raft log", "x"), "tocommit(12) is out of"),
        ("Traceback\n  File\ntrainmesh: error: no\n", "trainmesh: error: no"),
        ('{"level": "fatal", "msg": "bad"', '{"level": "fatal", "msg": "bad"'),
        ('{"level": "fatal", "msg": "odd", "error": 3}', "odd: 3"),
    ],
)
def test_what_a_log_says_last(log: str, reason: str) -> None:
    assert log_reason(log).startswith(reason)
    assert bool(log_reason(log)) == bool(reason)
