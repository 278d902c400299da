"""The benchmark's engine and load generator tell the truth, or its tables mean nothing."""

import math
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent.parent))

from benchmarks.serving import programs
from benchmarks.serving.figures import Aim, Column, judged, table, typical
from benchmarks.serving.programs import Load, Mock, certificate
from tests.needs import need, need_root

pytestmark = pytest.mark.starts


@pytest.fixture(scope="module", autouse=True)
def _own_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled from the sources beside, not taken from an earlier run's cache."""
    need("a C compiler")
    need("OpenSSL's headers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "CACHE", tmp_path_factory.mktemp("programs"))
        yield


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_every_answer_is_counted_once() -> None:
    with Mock("a", {}) as mock:
        result = Load(mock.port, seconds=0.3, connections=4).result()
        stats = mock.stats()
    assert result.failed == 0
    # What was on its way when the time was up is not counted, and ends at the engine.
    assert result.answered <= stats["started"] <= result.answered + 4
    assert result.answered == result.total_ms.n == sum(a for a, _ in result.timeline)


@pytest.mark.parametrize("token_us", [0, 500])
def test_streams_have_all_their_tokens(token_us: int) -> None:
    with Mock("a", {"token_us": token_us}) as mock:
        result = Load(
            mock.port, seconds=0.3, rate=40, connections=8, stream=True, tokens=7
        ).result()
        stats = mock.stats()
    assert result.answered == stats["served"] > 0
    assert round(result.tokens_per_s * result.seconds) == 7 * result.answered
    assert result.first_byte_ms.p50 <= result.total_ms.p50


def test_the_same_seed_asks_the_same() -> None:
    options = {"rate": 200, "connections": 16, "sessions": True, "vary": True, "turn_bytes": 900}
    asked = []
    with Mock("a", {}) as mock:
        for seed in (1, 1, 2):
            before = mock.stats()
            Load(mock.port, seconds=0.4, seed=seed, **options).result()
            after = mock.stats()
            asked.append([after[k] - before[k] for k in ("started", "prompt_tokens")])
    assert asked[0] == asked[1] != asked[2]


def test_refusals_are_failures_and_no_answers() -> None:
    with Mock("a", {}) as mock:
        mock.control(fail=503)
        result = Load(mock.port, seconds=0.2, connections=2).result()
        refused = mock.stats()["refused"]
    assert (result.answered, result.last_status) == (0, 503)
    assert 0 < result.failed == result.status == result.retriable <= refused


def test_a_killed_engine_breaks_streams_that_began_and_resets_the_others() -> None:
    with Mock("a", {"slots": 2, "token_us": 50_000}) as mock:
        load = Load(mock.port, seconds=2, connections=5, stream=True, tokens=1000)
        _until(lambda: (mock.stats()["running"], mock.stats()["waiting"]) == (2, 3))
        # The tokens of an empty engine come at once: both streams have begun.
        time.sleep(0.1)
        mock.kill()
        result = load.result()
    assert (result.answered, result.broken) == (0, 2)
    assert result.retriable >= 3  # and what was sent again while it was dying
    assert result.refused > 0


def test_a_request_waits_for_a_slot_and_one_given_up_makes_room() -> None:
    with Mock("a", {"slots": 1, "think_us": 60_000_000}) as mock:
        first = Load(mock.port, seconds=30, connections=1)
        _until(lambda: mock.stats()["running"] == 1)
        second = Load(mock.port, seconds=30, connections=1)
        _until(lambda: mock.stats()["waiting"] == 1)
        first.stop()
        _until(lambda: mock.stats()["waiting"] == 0)
        stats = mock.stats()
        second.stop()
    assert (stats["running"], stats["aborted"]) == (1, 1)


def test_prompts_are_worked_on_one_after_the_other() -> None:
    with Mock("a", {"prefill_us": 1000}) as mock:
        result = Load(
            mock.port, seconds=0.5, connections=4, prompt_bytes=4000, stream=True, tokens=1
        ).result()
    # 1 000 tokens take a second each: none of the four can have come within half of one.
    assert result.answered == 0


@pytest.mark.parametrize(("blocks", "knows"), [(1000, True), (3, False), (0, False)])
def test_the_prefix_cache_knows_conversations(blocks: int, knows: bool) -> None:
    """One smaller than a prompt has always thrown away what comes next."""
    with Mock("a", {"cache_blocks": blocks}) as mock:
        Load(
            mock.port, seconds=0.5, rate=100, connections=2, sessions=True, turns=5,
            prompt_bytes=2000, turn_bytes=1000, groups=2,
        ).result()  # fmt: skip
        stats = mock.stats()
    share = stats["cached_tokens"] / stats["prompt_tokens"]
    assert share > 0.5 if knows else share == 0


def test_tokens_of_a_prompt_are_the_same_for_the_same_beginning() -> None:
    with Mock("a", {}) as mock:
        begin = '{"messages":[{"role":"user","content":"once upon a time'
        lists = [
            subprocess.run(
                ["curl", "-s", "-d", begin + end, f"http://{mock.address}/tokenize"],
                capture_output=True, text=True, check=True,
            ).stdout.partition('"tokens":[')[2].split(",")
            for end in ("a\"}]}", " there was a router\"}]}")
        ]  # fmt: skip
    assert len(lists[0]) > 10
    assert lists[0][:10] == lists[1][:10] != lists[1][10:20]


class _Once(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("reconnect", [False, True])
def test_tls_is_checked_and_counted(tmp_path: Path, reconnect: bool) -> None:
    pem = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem.certificate, pem.key)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Once) as server:
        server.daemon_threads = True
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        good = Load(
            port, seconds=0.3, connections=1, ca=pem.certificate, reconnect=reconnect
        ).result()
        other = certificate(Path(shutil.copytree(tmp_path, tmp_path / "other")))
        bad = Load(port, seconds=0.3, connections=1, ca=other.certificate).result()
        server.shutdown()
    assert good.answered > 0
    assert (good.failed, good.refused) == (0, 0)
    assert (bad.answered, bad.sent) == (0, 0)
    assert bad.refused > 0


@pytest.mark.root
def test_a_slow_link_is_slow_and_gone_afterwards() -> None:
    need_root()
    need("ip and tc")
    with (
        programs.slow_link(1_000_000) as (netns, host),
        Mock("far", {"netns": netns, "host": host}) as mock,
    ):
        assert netns in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout
        qdisc = subprocess.run(
            ["ip", "-n", netns, "link", "show", "tmbi"], capture_output=True, text=True
        ).stdout
        assert mock.stats()["started"] == 0
    assert "qdisc tbf" in qdisc
    assert netns not in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout


def test_a_table_says_median_range_and_why_not() -> None:
    columns = (Column("p99", "p99 ms", 1, spread=True), Column("back", "back s", 1))
    rounds = [{"p99": 3.0, "back": math.inf}, {"p99": 1.0, "back": 1.0}, {"p99": 2.0}]
    lines = table(columns, {"ours": rounds[:2] + [rounds[1]], "other": "not here"}, "router")
    assert lines[2].split("|")[1:4] == [" ours   ", " 1.0 (1.0..3.0) ", "    1.0 "]
    assert lines[3].split("|")[1:3] == [" other  ", " not measured: not here "]
    assert typical(rounds[:1]) == {"p99": 3.0, "back": math.inf}


def test_aims_are_met_missed_or_not_to_be_said() -> None:
    aims = (
        Aim("fast", lambda ours, _: ours["x"] < 2),
        Aim("faster", lambda ours, _: ours["x"] < 1),
        Aim("than b", lambda ours, peers: ours["x"] < peers["b"]["x"] if "b" in peers else None),
    )
    said = [line.split()[0] for line in judged(aims, {"x": 1.0}, {})]
    assert said == ["met", "MISSED", "not"]
