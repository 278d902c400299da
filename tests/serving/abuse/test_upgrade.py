"""A request that offers another protocol is a request like any other, and is answered once.

A router that took the head of such a request for all of it read the body as the next request.
Behind a proxy that shares its connections, one user got the answer to what another one had hidden.
"""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.needs import need
from tests.serving.abuse.proxies import need_proxy, nginx
from tests.serving.proxy.backend import Backend, answer, backends
from tests.serving.running import RunningRouter, running_router

OFFER = {"Connection": "Upgrade", "Upgrade": "h2c", "Content-Type": "application/json"}
PATH = "/v1/chat/completions"
ROUNDS = 3


def chat_of(user: str) -> bytes:
    return json.dumps({"model": "m", "user": user, "messages": []}).encode()


async def name_the_user(backend: Backend, writer: asyncio.StreamWriter) -> None:
    """Answer with whom the request is from; slowly where it is hidden in another."""
    user = json.loads(backend.asked[-1].body)["user"]
    if user == "hidden":
        await asyncio.sleep(0.5)
    writer.write(answer(json.dumps({"for": user}).encode()))


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[RunningRouter, Backend]]:
    with backends(1) as (endpoint,):
        endpoint.do(name_the_user)
        model = {"endpoints": [{"url": endpoint.url}], "hedge": {"enabled": False}}
        with running_router({"models": {"m": model}}) as router:
            yield router, endpoint


def users(endpoint: Backend) -> set[str]:
    return {json.loads(asked.body)["user"] for asked in endpoint.asked}


def posted(connection: HTTPConnection, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    connection.request("POST", PATH, body, headers)
    response = connection.getresponse()
    return response.status, response.read()


def test_nobody_gets_another_users_answer_behind_a_proxy_that_passes_offers_on(
    served: tuple[RunningRouter, Backend], tmp_path: Path
) -> None:
    need_proxy("nginx")
    router, endpoint = served
    endpoint.asked.clear()
    hidden = chat_of("hidden")
    smuggled = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(hidden)}\r\n\r\n"
    ).encode() + hidden
    with nginx(tmp_path, router.port, upgrades=True) as port:
        for number in range(ROUNDS):
            attacker, victim = (HTTPConnection("127.0.0.1", port, timeout=20) for _ in "ab")
            try:
                assert posted(attacker, smuggled, OFFER)[0] == 400
                user = f"victim {number}"
                status, got = posted(victim, chat_of(user), OFFER)
                assert (status, json.loads(got)) == (200, {"for": user})
            finally:
                attacker.close()
                victim.close()
    assert "hidden" not in users(endpoint)
    assert len(users(endpoint)) == ROUNDS


def test_curl_that_offers_http2_is_answered_once(served: tuple[RunningRouter, Backend]) -> None:
    need("curl")
    router, endpoint = served
    endpoint.asked.clear()
    # Twice in one call: over one connection.
    one: list[str | bytes] = [
        "--http2",
        "-d",
        chat_of("curl"),
        "-H",
        "Content-Type: application/json",
    ]
    url = router.url + PATH
    done = subprocess.run(
        ["curl", "-sS", "-w", "\n%{http_code} %{num_connects}\n", *one, url, "--next",
         "-sS", "-w", "\n%{http_code} %{num_connects}\n", *one, url],
        capture_output=True, timeout=30, check=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ['{"for": "curl"}', "200 1", '{"for": "curl"}', "200 0"]
    offered = "HTTP2" in subprocess.run(["curl", "-V"], capture_output=True, text=True).stdout
    assert offered, "this curl has no HTTP/2, so it offered nothing"


JAVA = """
import java.net.URI;
import java.net.http.*;

public class Ask {
    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newHttpClient();  // offers h2c unless told otherwise
        for (int i = 0; i < 3; i++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(args[0]))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(args[1])).build();
            HttpResponse<String> got = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(got.statusCode() + " " + got.version() + " " + got.body());
        }
    }
}
"""


def test_javas_own_client_is_answered(
    served: tuple[RunningRouter, Backend], tmp_path: Path
) -> None:
    java = shutil.which("java")
    modules = (
        subprocess.run([java, "--list-modules"], capture_output=True, text=True).stdout
        if java
        else ""
    )
    if java is None or "jdk.compiler" not in modules:
        pytest.skip("needs a JDK: as root, apt-get install -y default-jdk-headless")
    router, endpoint = served
    endpoint.asked.clear()
    source = tmp_path / "Ask.java"
    source.write_text(JAVA)
    done = subprocess.run(
        [java, source, router.url + PATH, chat_of("java").decode()],
        capture_output=True, timeout=90, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ['200 HTTP_1_1 {"for": "java"}'] * 3, done.stderr
