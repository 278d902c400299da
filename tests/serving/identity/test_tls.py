"""TLS on both sides: who is let in, and why the others are not, in words."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import uvloop

from tests.serving.identity.certs import CLIENT, DAY, NOW, Authority
from trainmesh.serving.config.types import TlsConfig, UpstreamTls
from trainmesh.serving.identity.certificates import FileProblem
from trainmesh.serving.identity.describe_tls import handshake_problem
from trainmesh.serving.identity.tls import ServerTls, UpstreamSide, peer_names

HOST = "router.example"
SPIFFE = "spiffe://cluster/router"


class Met(NamedTuple):
    """How a handshake ended: the problem each side has with the other."""

    server: ssl.SSLObject
    client: ssl.SSLObject
    server_problem: str
    client_problem: str


def meet(server: ssl.SSLContext, client: ssl.SSLContext, host: str = HOST) -> Met:
    """A handshake and one byte each way, in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_side = server.wrap_bio(to_server, to_client, server_side=True)
    client_side = client.wrap_bio(to_client, to_server, server_hostname=host)
    problems = {server_side: "", client_side: ""}
    done: set[ssl.SSLObject] = set()
    for _ in range(20):
        for side in (client_side, server_side):
            if problems[side]:
                continue
            try:
                if side not in done:
                    side.do_handshake()
                    done.add(side)
                    side.write(b"x")
                side.read(1)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                problems[side] = handshake_problem(error)
    return Met(server_side, client_side, problems[server_side], problems[client_side])


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def server(authority: Authority, *, mutual: bool = False, **issue: object) -> ServerTls:
    cert, key = authority.issue("server", HOST, SPIFFE, "127.0.0.1", **issue)  # type: ignore[arg-type]
    return ServerTls(TlsConfig(cert=cert, key=key, client_ca=str(authority.path) if mutual else ""))


def raw_server(cert: str, key: str) -> ssl.SSLContext:
    """Somebody else's server, that may have a certificate which ours would not load."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


def raw_client(authority: Authority, pair: tuple[str, str] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.path))
    if pair:
        context.load_cert_chain(*pair)
    return context


def test_a_client_that_trusts_the_authority_is_let_in(authority: Authority) -> None:
    met = meet(server(authority).context, raw_client(authority))
    assert (met.server_problem, met.client_problem) == ("", "")
    assert met.client.version() == "TLSv1.3"
    assert met.client.selected_alpn_protocol() is None
    assert peer_names(met.server) == ()
    assert peer_names(None) == ()


def test_http_1_1_is_what_both_sides_agree_on(authority: Authority) -> None:
    side = UpstreamSide(UpstreamTls(ca=str(authority.path)), HOST)
    met = meet(server(authority).context, side.context)
    assert met.client.selected_alpn_protocol() == "http/1.1"
    assert met.server.context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_client_s_names_are_its_certificate_s(authority: Authority) -> None:
    pair = authority.issue("client", "a.example", "spiffe://x/a", "10.0.0.1", use=CLIENT)
    met = meet(server(authority, mutual=True).context, raw_client(authority, pair))
    assert met.server_problem == ""
    assert peer_names(met.server) == ("a.example", "spiffe://x/a")


def test_a_client_s_certificate_is_checked_each_time_not_resumed(authority: Authority) -> None:
    pair = authority.issue("client", "a", use=CLIENT)
    met = meet(server(authority, mutual=True).context, raw_client(authority, pair))
    assert met.client.session is not None
    assert not met.client.session.has_ticket
    met = meet(server(authority).context, raw_client(authority))
    assert met.client.session is not None
    assert met.client.session.has_ticket


CLIENTS: list[tuple[str, Callable[[Authority, Path], tuple[str, str] | None], str, str]] = [
    ("none", lambda a, p: None, "it showed no certificate, and one is required", "wants a certif"),
    ("expired", lambda a, p: a.issue("c", "c", use=CLIENT, end=NOW - DAY / 2),
     "its certificate has expired", "our certificate has expired"),
    ("early", lambda a, p: a.issue("c", "c", use=CLIENT, begin=NOW + DAY / 2),
     "its certificate is not valid yet", "our certificate"),
    ("other authority", lambda a, p: Authority(p, "other").issue("c", "c", use=CLIENT),
     "its certificate was signed by another authority", "does not trust the authority"),
    ("a server's", lambda a, p: a.issue("c", "c"),
     "its certificate is not for this use", "not for this use"),
]  # fmt: skip


@pytest.mark.parametrize("row", CLIENTS, ids=[row[0] for row in CLIENTS])
def test_clients_without_a_good_certificate_are_refused(
    authority: Authority, tmp_path: Path, row: tuple[str, Callable[..., tuple[str, str]], str, str]
) -> None:
    _, make, server_words, client_words = row
    pair = make(authority, tmp_path)
    met = meet(server(authority, mutual=True).context, raw_client(authority, pair))
    assert met.server_problem.startswith(server_words)
    assert client_words in met.client_problem


SERVERS: list[tuple[str, Callable[[Authority, Path], tuple[str, str]], str]] = [
    ("expired", lambda a, p: a.issue("s", HOST, end=NOW - DAY / 2), "its certificate has expired"),
    ("early", lambda a, p: a.issue("s", HOST, begin=NOW + DAY / 2), "its certificate is not valid"),
    ("other authority", lambda a, p: Authority(p, "other").issue("s", HOST),
     "its certificate was signed by another authority"),
    ("other name", lambda a, p: a.issue("s", "other.example"), "its certificate is for another na"),
    ("a client's", lambda a, p: a.issue("s", HOST, use=CLIENT), "its certificate is not for this "),
]  # fmt: skip


@pytest.mark.parametrize("row", SERVERS, ids=[row[0] for row in SERVERS])
def test_endpoints_without_a_good_certificate_are_refused(
    authority: Authority, tmp_path: Path, row: tuple[str, Callable[..., tuple[str, str]], str]
) -> None:
    _, make, words = row
    pair = make(authority, tmp_path)
    side = UpstreamSide(UpstreamTls(ca=str(authority.path)), HOST)
    met = meet(raw_server(*pair), side.context, side.server_hostname)
    assert met.client_problem.startswith(words)


def test_an_endpoint_may_have_another_dns_name_than_its_url(authority: Authority) -> None:
    ours = server(authority)
    for san, problem in ((HOST, ""), ("x.example", "its certificate is for another name")):
        side = UpstreamSide(UpstreamTls(ca=str(authority.path), san=san), "10.0.0.1")
        met = meet(ours.context, side.context, side.server_hostname)
        assert met.client_problem == problem
        assert side.problem(met.client) == ""
    side = UpstreamSide(UpstreamTls(ca=str(authority.path)), "127.0.0.1")
    assert meet(ours.context, side.context, side.server_hostname).client_problem == ""


def test_an_endpoint_may_have_a_spiffe_name(authority: Authority, tmp_path: Path) -> None:
    ours = server(authority)
    side = UpstreamSide(UpstreamTls(ca=str(authority.path), san=SPIFFE), "h")
    met = meet(ours.context, side.context, side.server_hostname)
    assert (met.client_problem, side.problem(met.client)) == ("", "")
    side = UpstreamSide(UpstreamTls(ca=str(authority.path), san=f"{SPIFFE}/b"), "h")
    met = meet(ours.context, side.context, side.server_hostname)
    assert side.problem(met.client) == (
        f"the endpoint's certificate is for {HOST}, {SPIFFE}, not for {SPIFFE}/b"
    )
    stranger = Authority(tmp_path, "other").issue("s", SPIFFE)
    met = meet(raw_server(*stranger), side.context, side.server_hostname)
    assert "another authority" in met.client_problem, "its chain must be verified all the same"


def test_plain_text_on_either_side_is_named_and_never_answered(authority: Authority) -> None:
    ours = server(authority)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    side = ours.context.wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    with pytest.raises(ssl.SSLError) as caught:
        side.do_handshake()
    assert handshake_problem(caught.value) == "it sent plain HTTP to a TLS port; use https://"
    assert b"HTTP" not in outgoing.read()
    client = UpstreamSide(UpstreamTls(ca=str(authority.path)), HOST)
    incoming = ssl.MemoryBIO()
    side = client.context.wrap_bio(incoming, ssl.MemoryBIO(), server_hostname=HOST)
    incoming.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ssl.SSLError) as caught:
        side.do_handshake()
    assert handshake_problem(caught.value) == "it does not speak TLS"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionResetError(), "it closed the connection during the handshake"),
        (TimeoutError(), "it took too long over the handshake"),
        (ssl.SSLError("a\nb"), "the handshake failed: "),
        (ValueError("x"), "the handshake failed: x"),
    ],
)
def test_other_failures_have_words_too(error: Exception, words: str) -> None:
    found = handshake_problem(error)
    assert found.startswith(words)
    assert found.isprintable()


def test_renewed_certificates_are_taken_by_new_handshakes(
    authority: Authority, tmp_path: Path
) -> None:
    ours = server(authority)
    context = ours.context
    first = meet(context, raw_client(authority)).client.getpeercert()
    assert ours.renew() == ""
    authority.issue("server", HOST)
    assert "certificates renewed from" in ours.renew()
    assert ours.context is context
    second = meet(context, raw_client(authority)).client.getpeercert()
    assert first is not None
    assert second is not None
    assert first["serialNumber"] != second["serialNumber"]
    assert ours.renew() == ""


def test_half_a_renewal_keeps_the_old_one_and_is_told_once(
    authority: Authority, tmp_path: Path
) -> None:
    ours = server(authority)
    old_key = (tmp_path / "server.key").read_bytes()
    authority.issue("server", HOST)
    new_key = (tmp_path / "server.key").read_bytes()
    (tmp_path / "server.key").write_bytes(old_key)
    assert "is not the key of the certificate in" in ours.renew()
    assert ours.renew() == ""
    assert meet(ours.context, raw_client(authority)).client_problem == ""
    (tmp_path / "server.key").write_bytes(new_key)
    assert "certificates renewed" in ours.renew()


def test_an_authority_that_is_replaced_is_not_trusted_any_more(
    authority: Authority, tmp_path: Path
) -> None:
    pair = authority.issue("client", "a", use=CLIENT)
    trusting = raw_client(authority, pair)
    ours = server(authority, mutual=True)
    assert meet(ours.context, trusting).server_problem == ""
    other = Authority(tmp_path, "other")
    authority.path.write_bytes(other.path.read_bytes())
    assert "certificates renewed" in ours.renew()
    assert "another authority" in meet(ours.context, trusting).server_problem
    trusting.load_cert_chain(*other.issue("client", "a", use=CLIENT))
    assert meet(ours.context, trusting).server_problem == ""


def test_the_upstream_side_renews_as_well(authority: Authority, tmp_path: Path) -> None:
    side = UpstreamSide(UpstreamTls(ca=str(authority.path)), HOST)
    ours = server(authority)
    assert meet(ours.context, side.context).client_problem == ""
    other = Authority(tmp_path, "other")
    authority.path.write_bytes(other.path.read_bytes())
    assert side.renew() != ""
    assert "another authority" in meet(ours.context, side.context).client_problem


BAD: list[tuple[str, str, str]] = [
    ("server.pem", "nothing", "holds no certificate in PEM"),
    ("server.key", "nothing", "holds no private key in PEM"),
    ("ca.pem", "nothing", "holds no certificate in PEM"),
]


@pytest.mark.parametrize(("file", "text", "words"), BAD)
def test_files_that_hold_something_else(
    authority: Authority, tmp_path: Path, file: str, text: str, words: str
) -> None:
    cert, key = authority.issue("server", HOST)
    (tmp_path / file).write_text(text)
    with pytest.raises(FileProblem, match=words):
        ServerTls(TlsConfig(cert=cert, key=key, client_ca=str(authority.path)))


def test_own_certificates_that_nobody_would_accept(authority: Authority) -> None:
    with pytest.raises(FileProblem, match="the certificate expired on 20"):
        server(authority, end=NOW - DAY / 2)
    with pytest.raises(FileProblem, match="the certificate is not valid before 20"):
        server(authority, begin=NOW + DAY / 2)
    with pytest.raises(FileProblem, match="is encrypted"):
        server(authority, password=b"secret")


def run_with_uvloop(authority: Authority) -> list[int]:
    """Serial numbers of a real server's certificate before and after a renewal, on one listener."""
    ours = server(authority, mutual=True)
    client = raw_client(authority, authority.issue("client", "a", use=CLIENT))

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        names = peer_names(writer.get_extra_info("ssl_object"))
        writer.write(",".join(names).encode())
        writer.close()
        await writer.wait_closed()

    async def ask(port: int) -> int:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client, server_hostname=HOST
        )
        certificate = writer.get_extra_info("ssl_object").getpeercert()
        assert await reader.read() == b"a"
        writer.close()
        await writer.wait_closed()
        return int(certificate["serialNumber"], 16)

    async def both() -> list[int]:
        listener = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=ours.context)
        async with listener:
            port = listener.sockets[0].getsockname()[1]
            found = [await ask(port)]
            authority.issue("server", HOST)
            ours.renew()
            return [*found, await ask(port)]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(both())


@pytest.mark.starts
def test_a_running_server_takes_a_renewed_certificate(authority: Authority) -> None:
    first, second = run_with_uvloop(authority)
    assert first != second
