"""Requests that a careless proxy and its backend would split in different places.

``{T}`` is the path with the case's mark, ``{S}`` a whole second request hidden somewhere: if it
ever gets to the backend as a request, the proxy was fooled.
"""

from dataclasses import dataclass

__all__ = ["BODY", "CASES", "HOST", "OFFERS", "PLAIN", "Case", "mark"]

BODY = b'{"model":"m","messages":[]}'
HOST = b"Host: localhost\r\n"
TYPE = b"Content-Type: application/json\r\n"


@dataclass(frozen=True)
class Case:
    name: str
    raw: bytes
    reaches: int = 0
    """How many requests reach the backend, each answered with 200."""
    must: bool = False
    """Nothing else is answered."""
    answers: int = 1
    closes: bool = False
    """The client ends its side after the last byte."""
    why: str = ""
    """Why we take what another proxy refuses."""


def mark(name: str) -> bytes:
    """What is in the path of each request of a case."""
    return b"?case=" + name.replace(" ", "_").encode() + b"."


def path(name: str) -> bytes:
    return b"/v1/chat/completions" + mark(name)


def hidden(name: str) -> bytes:
    target = b"/v1/completions" + mark(name) + b"hidden"
    return b"POST %s HTTP/1.1\r\n%s%sContent-Length: %d\r\n\r\n%s" % (
        target, HOST, TYPE, len(BODY), BODY,
    )  # fmt: skip


def case(
    name: str,
    fields: bytes | str = b"",
    body: bytes = b"",
    *,
    line: bytes = b"POST {T} HTTP/1.1\r\n",
    host: bytes = HOST,
    **expected: object,
) -> Case:
    """``fields`` are whole lines."""
    fields = fields.encode("latin-1") if isinstance(fields, str) else fields
    raw = line + host + TYPE + fields + b"\r\n" + body
    raw = raw.replace(b"{S}", hidden(name)).replace(b"{T}", path(name))
    raw = raw.replace(b"{L}", b"%d" % len(BODY)).replace(b"{B}", BODY)
    raw = raw.replace(b"{C}", b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))
    raw = raw.replace(b"{LS}", b"%d" % (len(hidden(name))))
    return Case(name, raw, **expected)  # type: ignore[arg-type]


LENGTH = b"Content-Length: {L}\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
ZERO = b"0\r\n\r\n"

TABS = "RFC 9110, 5.6.3: tabs around a value mean nothing; nginx takes blanks only"

PLAIN = [
    case("length", LENGTH, b"{B}", reaches=1, must=True),
    case("chunked", CHUNKED, b"{C}", reaches=1, must=True),
    case("chunked in capitals", b"TRANSFER-ENCODING: CHUNKED\r\n", b"{C}", reaches=1, must=True),
    case("blanks around a length", b"Content-Length: \t {L} \t \r\n", b"{B}", reaches=1, why=TABS),
    case("blanks around chunked", b"Transfer-Encoding:\t chunked \t\r\n", b"{C}", why=TABS),
    case("two in a row", LENGTH, b"{B}{S}", reaches=2, must=True, answers=2),
    case("two in a row chunked", CHUNKED, b"{C}{S}", reaches=2, must=True, answers=2),
    case("empty lines first", LENGTH, b"{B}", line=b"\r\n\r\nPOST {T} HTTP/1.1\r\n", reaches=1),
    case("continue", LENGTH + b"Expect: 100-continue\r\n", b"{B}", reaches=1, must=True),
    case("two blanks in the line", LENGTH, b"{B}", line=b"POST  {T} HTTP/1.1\r\n", reaches=1),
    case("HTTP 1.0", LENGTH, b"{B}", line=b"POST {T} HTTP/1.0\r\n", reaches=1, must=True),
]

TWICE = [
    case("length and chunked", LENGTH + CHUNKED, ZERO + b"{S}"),
    case("chunked and length", CHUNKED + b"Content-Length: 4\r\n", b"{C}{S}"),
    case("equal lengths", LENGTH + LENGTH, b"{B}"),
    case("unequal lengths", LENGTH + b"Content-Length: 0\r\n", b"{B}{S}"),
    case("a list of equal lengths", b"Content-Length: {L}, {L}\r\n", b"{B}"),
    case("a list of lengths", b"Content-Length: 0, {L}\r\n", b"{B}"),
    case("chunked twice", CHUNKED + CHUNKED, b"{C}{S}"),
    case("chunked chunked", b"Transfer-Encoding: chunked, chunked\r\n", b"{C}"),
    case("chunked and identity", CHUNKED + b"Transfer-Encoding: identity\r\n", b"{C}{S}"),
    case("identity and chunked", b"Transfer-Encoding: identity\r\n" + CHUNKED, b"{C}{S}"),
    case("two hosts", LENGTH + b"Host: other\r\n", b"{B}"),
    case("two equal hosts", LENGTH + HOST, b"{B}"),
]

LENGTHS = [
    case(f"length {name}", b"Content-Length: %s\r\n" % value, b"{B}{S}")
    for name, value in {
        "plus": b"+{L}",
        "minus": b"-1",
        "hex": b"0x1b",
        "empty": b"",
        "words": b"many",
        "inner blank": b"2 7",
        "decimal": b"27.0",
        "exponent": b"2e1",
        "semicolon": b"{L};",
        "64 bits": b"18446744073709551616",
        "wraps around": b"18446744073709551643",
        "vertical tab": b"\x0b{L}",
        "no-break space": b"\xa0{L}",
        "quoted": b'"{L}"',
        "comma": b"{L},",
        "underscore": b"2_7",
    }.items()
]

CODINGS = [
    case(f"coding {name}", b"Transfer-Encoding: %s\r\n" % value, b"{C}{S}")
    for name, value in {
        "xchunked": b"xchunked",
        "chunkedx": b"chunkedx",
        "gzip": b"gzip, chunked",
        "identity": b"identity",
        "chunked identity": b"chunked, identity",
        "identity chunked": b"identity, chunked",
        "empty": b"",
        "vertical tab": b"\x0bchunked",
        "vertical tab after": b"chunked\x0b",
        "form feed": b"chunked\x0c",
        "NUL": b"chunked\x00",
        "quoted": b'"chunked"',
        "comma first": b",chunked",
        "comma last": b"chunked,",
        "semicolon": b"chunked;q=1",
        "blank inside": b"chun ked",
        "cow": b"cow",
        "no-break space": b"\xa0chunked",
    }.items()
]

FIELDS = [
    case("blank before the colon", b"Transfer-Encoding : chunked\r\n" + LENGTH, b"{B}"),
    case("tab before the colon", b"Transfer-Encoding\t: chunked\r\n" + LENGTH, b"{B}"),
    case("blank before a length's colon", b"Content-Length : {L}\r\n", b"{B}"),
    case("folded coding", b"X: a\r\n Transfer-Encoding: chunked\r\n" + LENGTH, b"{B}"),
    case("folded value", LENGTH + b"X: a\r\n b\r\n", b"{B}"),
    case("folded chunked", b"Transfer-Encoding:\r\n chunked\r\n", b"{C}"),
    case("folded length", b"Content-Length:\r\n {L}\r\n", b"{B}"),
    case("first field begins with a blank", LENGTH, b"{B}", host=b" X: a\r\n" + HOST),
    case("line feed hides a field", b"X: a\nTransfer-Encoding: chunked\r\n" + LENGTH, b"{B}"),
    case("carriage return hides a field", b"X: a\rTransfer-Encoding: chunked\r\n" + LENGTH, b"{B}"),
    case("carriage return before the end", b"X: a\r\r\n" + LENGTH, b"{B}"),
    case("NUL in a value", LENGTH + b"X: a\x00b\r\n", b"{B}"),
    case("NUL in a name", LENGTH + b"X\x00: a\r\n", b"{B}"),
    case("escape in a value", LENGTH + b"X: a\x1bb\r\n", b"{B}"),
    case("delete in a value", LENGTH + b"X: a\x7fb\r\n", b"{B}"),
    case("no name", LENGTH + b": a\r\n", b"{B}"),
    case("no colon", LENGTH + b"Whatever\r\n", b"{B}"),
    case("bracket in a name", LENGTH + b"X(y): a\r\n", b"{B}"),
    case("accent in a name", LENGTH + b"X\xe9: a\r\n", b"{B}"),
    case("coding with underscores", b"Transfer_Encoding: chunked\r\n" + LENGTH, b"{B}", reaches=1),
    case(
        "connection names the framing",
        LENGTH + b"Connection: content-length, host, content-type, transfer-encoding\r\n",
        b"{B}",
        reaches=1,
    ),
    case(
        "connection names chunked",
        CHUNKED + b"Connection: close, transfer-encoding\r\n",
        b"{C}",
        reaches=1,
    ),
]

CHUNKS = [
    case("chunk extension", CHUNKED, b"1b;a=b\r\n{B}\r\n0\r\n\r\n", reaches=1),
    case("chunk extension quoted", CHUNKED, b'1b;a="b;c"\r\n{B}\r\n0\r\n\r\n', reaches=1),
    case("chunk extension line feed", CHUNKED, b"1b;a\n{B}\r\n0\r\n\r\n{S}"),
    case("chunk extension carriage return", CHUNKED, b"1b;a\rb\r\n{B}\r\n0\r\n\r\n{S}"),
    case("chunk extension NUL", CHUNKED, b"1b;\x00\r\n{B}\r\n0\r\n\r\n"),
    case("chunk size leading zeros", CHUNKED, b"000001b\r\n{B}\r\n0\r\n\r\n", reaches=1),
    *(
        case(f"chunk size {name}", CHUNKED, size + b"\r\n{B}\r\n0\r\n\r\n{S}")
        for name, size in {
            "huge": b"FFFFFFFFFFFFFFFFFF",
            "wraps around": b"1000000000000001b",
            "minus": b"-1b",
            "plus": b"+1b",
            "0x": b"0x1b",
            "empty": b"",
            "blank before": b" 1b",
            "word": b"xyz",
            "underscore": b"1_b",
            "NUL": b"1b\x00",
            "comma": b"1,b",
        }.items()
    ),
    case("chunk size ends in line feed", CHUNKED, b"1b\n{B}\r\n0\r\n\r\n{S}"),
    case("chunk size ends in carriage return", CHUNKED, b"1b\r{B}\r\n0\r\n\r\n"),
    case("chunk longer than its size", CHUNKED, b"1a\r\n{B}\r\n0\r\n\r\n{S}"),
    case("chunk ends in line feed", CHUNKED, b"1b\r\n{B}\n0\r\n\r\n{S}"),
    case("chunk without an end", CHUNKED, b"1b\r\n{B}0\r\n\r\n{S}"),
    case("last chunk ends in line feed", CHUNKED, b"1b\r\n{B}\r\n0\n\n{S}"),
    case("last chunk and line feed", CHUNKED, b"1b\r\n{B}\r\n0\r\n\n{S}"),
    case(
        "forbidden trailers",
        CHUNKED,
        b"1b\r\n{B}\r\n0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: x\r\n"
        b"Authorization: Bearer x\r\n\r\n",
    ),
    case("trailer folded", CHUNKED, b"1b\r\n{B}\r\n0\r\nX: a\r\n b\r\n\r\n{S}"),
    case("trailer without a colon", CHUNKED, b"1b\r\n{B}\r\n0\r\nPOST\r\n\r\n{S}"),
]

LINES = [
    case(f"line {name}", LENGTH, b"{B}", line=line)
    for name, line in {
        "tabs": b"POST\t{T}\tHTTP/1.1\r\n",
        "blank in the path": b"POST {T} x HTTP/1.1\r\n",
        "two versions": b"POST {T} HTTP/1.1 HTTP/1.1\r\n",
        "version 2.0": b"POST {T} HTTP/2.0\r\n",
        "version 1.10": b"POST {T} HTTP/1.10\r\n",
        "version 11.1": b"POST {T} HTTP/11.1\r\n",
        "version 1": b"POST {T} HTTP/1\r\n",
        "small version": b"POST {T} http/1.1\r\n",
        "no version": b"POST {T}\r\n",
        "bad method": b"PO(ST {T} HTTP/1.1\r\n",
        "small method": b"post {T} HTTP/1.1\r\n",
        "no slash": b"POST v1{T} HTTP/1.1\r\n",
        "NUL in the path": b"POST {T}\x00 HTTP/1.1\r\n",
        "control in the path": b"POST {T}\x01 HTTP/1.1\r\n",
        "line feed": b"POST {T} HTTP/1.1\n",
        "carriage return": b"POST {T} HTTP/1.1\r",
        "blank first": b" POST {T} HTTP/1.1\r\n",
        "accent in the path": b"POST {T}\xe9 HTTP/1.1\r\n",
        "connect": b"CONNECT localhost:80 HTTP/1.1\r\n",
    }.items()
]

OTHERS = [
    case("blank after the version", LENGTH, b"{B}", line=b"POST {T} HTTP/1.1 \r\n"),
    case("no host", LENGTH, b"{B}", host=b""),
    case("empty host", LENGTH, b"{B}", host=b"Host:\r\n"),
    *(
        case(f"host {name}", LENGTH, b"{B}", host=b"Host: %s\r\n" % host)
        for name, host in {
            "with a blank": b"a b",
            "with a slash": b"a/b",
            "with a user": b"a@b",
            "with a comma": b"a, b",
            "with a bad port": b"a:b",
            "with a backslash": b"a\\b",
            "with a bracket": b"[::1",
            "with a quote": b'a"b',
        }.items()
    ),
    case("HTTP 1.0 and chunked", CHUNKED, b"{C}{S}", line=b"POST {T} HTTP/1.0\r\n"),
    case("HTTP 1.0 and both keep-alive and close", LENGTH + b"Connection: keep-alive, close\r\n",
         b"{B}{S}", line=b"POST {T} HTTP/1.0\r\n", reaches=1, must=True),
    case("no fields", line=b"POST {T} HTTP/1.1\r\n", host=b"", body=b"{B}"),
    case(
        "absolute",
        LENGTH,
        b"{B}",
        line=b"POST http://localhost{T} HTTP/1.1\r\n",
        reaches=1,
    ),
    case(
        "absolute with another host",
        LENGTH,
        b"{B}",
        line=b"POST http://evil{T} HTTP/1.1\r\n",
    ),
    case("no length", b"", b"{S}", reaches=1, answers=2),
    case("length too short", b"Content-Length: 5\r\n", b"{B}"),
    case("body ends early", b"Content-Length: 100\r\n", b"{B}", closes=True),
    case("chunk ends early", CHUNKED, b"ff\r\n{B}", closes=True),
    case("chunks end early", CHUNKED, b"1b\r\n{B}\r\n", closes=True),
    case("head ends early", b"Content-Le", closes=True),
    case("expect something", LENGTH + b"Expect: the-unexpected\r\n", b"{B}"),
    case("many fields", LENGTH + b"".join(b"x%d: y\r\n" % n for n in range(20_000)), b"{B}"),
    case("long field", LENGTH + b"x: " + b"y" * 200_000 + b"\r\n", b"{B}"),
    case("long path", LENGTH, b"{B}", line=b"POST {T}" + b"y" * 200_000 + b" HTTP/1.1\r\n"),
    Case("HTTP 0.9", b"GET " + path("HTTP 0.9") + b"\r\n", closes=True),
    Case("HTTP 2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"),
    Case("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40)),
    case("GET with a body that is a request", b"Content-Length: {LS}\r\n", b"{S}",
         line=b"GET {T} HTTP/1.1\r\n"),
]  # fmt: skip

OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
    "anything": b"Upgrade: x\r\nConnection: x-a, upgrade\r\n",
    "capitals": b"UPGRADE: TLS/1.0, H2C\r\nCONNECTION: UPGRADE\r\n",
    "a Connection alone": b"Connection: Upgrade\r\n",
    "an Upgrade alone": b"Upgrade: h2c\r\n",
    "two offers": b"Upgrade: h2c\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Connection: Upgrade\r\n",
    "an empty offer": b"Upgrade: \r\nConnection: Upgrade\r\n",
}
"""Fields with which a request offers another protocol. A server that speaks none ignores them
(RFC 9110, 7.8): the request, its body and what follows are what they would be without."""

TUNNEL = "HAProxy forwards an offer and what follows as if the backend had taken it"

UPGRADES = [
    upgrade
    for offer, fields in OFFERS.items()
    for upgrade in (
        case(f"{offer}, length", fields + LENGTH, b"{B}", reaches=1, must=True),
        case(f"{offer}, chunked", fields + CHUNKED, b"{C}", reaches=1, must=True),
        case(f"length, {offer}, one more", LENGTH + fields, b"{B}{S}",
             reaches=2, must=True, answers=2),
        case(f"chunked, {offer}, one more", CHUNKED + fields, b"{C}{S}",
             reaches=2, must=True, answers=2),
        case(f"{offer}, continue", fields + LENGTH + b"Expect: 100-continue\r\n", b"{B}{S}",
             reaches=2, must=True, answers=2),
        case(f"{offer}, a request as the body", fields + b"Content-Length: {LS}\r\n", b"{S}"),
        case(f"{offer}, no body", fields, b"{S}", reaches=1, answers=2, why=TUNNEL),
        case(f"{offer}, length and chunked", fields + LENGTH + CHUNKED, ZERO + b"{S}"),
        case(f"{offer}, bad length", fields + b"Content-Length: +{L}\r\n", b"{B}{S}"),
        case(f"{offer}, HTTP 1.0", fields + LENGTH + b"Connection: close\r\n", b"{B}{S}",
             line=b"POST {T} HTTP/1.0\r\n", reaches=1, must=True),
    )
]  # fmt: skip

CONNECTS = [
    case(f"CONNECT {name}", fields, body, line=b"CONNECT localhost:80 HTTP/1.1\r\n")
    for name, (fields, body) in {
        "alone": (b"", b""),
        "and a request": (b"", b"{S}"),
        "with a length": (LENGTH, b"{B}{S}"),
        "that offers": (LENGTH + OFFERS["h2c"], b"{B}{S}"),
    }.items()
]

CASES = [
    *PLAIN,
    *UPGRADES,
    *CONNECTS,
    *TWICE,
    *LENGTHS,
    *CODINGS,
    *FIELDS,
    *CHUNKS,
    *LINES,
    *OTHERS,
]
