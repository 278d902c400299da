"""A client that sees every byte."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Raw", "chat", "raw"]


def chat(model: str = "m", *, stream: bool = False, more: str = "", version: str = "1.1",
         fields: str = "") -> bytes:  # fmt: skip
    flag = "true" if stream else "false"
    body = (
        f'{{"model":"{model}","messages":[{{"role":"user","content":"hi"}}],"stream":{flag}{more}}}'
    )
    head = (
        f"POST /v1/chat/completions HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n"
    )
    return f"{head}{fields}Content-Length: {len(body)}\r\n\r\n{body}".encode()


class Raw:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._data = b""

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def until(self, end: bytes) -> bytes:
        """What comes, up to and with ``end``."""
        while end not in self._data:
            data = self.connection.recv(65536)
            assert data, f"closed after {self._data!r}"
            self._data += data
        place = self._data.index(end) + len(end)
        found, self._data = self._data[:place], self._data[place:]
        return found

    def exactly(self, count: int) -> bytes:
        while len(self._data) < count:
            data = self.connection.recv(65536)
            assert data, f"closed after {self._data!r}"
            self._data += data
        found, self._data = self._data[:count], self._data[count:]
        return found

    def some(self) -> bytes:
        """At least a byte."""
        found, self._data = self._data or self.connection.recv(1 << 20), b""
        assert found, "closed"
        return found

    def rest(self) -> bytes:
        """Until it is closed."""
        while data := self.connection.recv(65536):
            self._data += data
        found, self._data = self._data, b""
        return found

    def silent(self, seconds: float) -> bool:
        """Nothing comes for that long."""
        self.connection.settimeout(seconds)
        try:
            return not self._data and not self.connection.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.connection.settimeout(20)

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and fields, names in lower case."""
        lines = self.until(b"\r\n\r\n").decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), {key.lower(): value for key, value in fields.items()}

    def json(self) -> tuple[int, dict[str, str], bytes]:
        """A whole answer with a length."""
        status, fields = self.head()
        return status, fields, self.exactly(int(fields["content-length"]))


@contextmanager
def raw(port: int) -> Iterator[Raw]:
    deadline = time.monotonic() + 20
    with socket.create_connection(("127.0.0.1", port), timeout=deadline - time.monotonic()) as one:
        yield Raw(one)
