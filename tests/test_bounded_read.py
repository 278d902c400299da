"""A file is read within bounds, and a pipe in its place is no trap."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from trainmesh.bounded_read import read_bounded
from trainmesh.errors import GraphError
from trainmesh.serving.identity.certificates import FileProblem, check_authority
from trainmesh.topology.document import load_file

SOON_S = 0.1
WELL_S = 60.0


def pipe(folder: Path) -> Path:
    path = folder / "pipe"
    os.mkfifo(path)
    return path


def write_later(path: Path, parts: list[bytes]) -> threading.Thread:
    def write() -> None:
        with path.open("wb", buffering=0) as file:  # waits for the reader
            for part in parts:
                file.write(part)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


def test_a_file_is_read_whole_and_no_more_than_asked(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 2_000_000)
    assert read_bounded(path, 2_000_000) == b"x" * 2_000_000
    with pytest.raises(OSError, match="larger than 1 MiB"):
        read_bounded(path, 1 << 20)
    with pytest.raises(OSError, match="larger than 64 KiB"):
        read_bounded(path, 65_536)


def test_a_pipe_is_read_to_its_writers_end(tmp_path: Path) -> None:
    path = pipe(tmp_path)
    parts = [b"a" * 100_000, b"b" * 100_000]
    thread = write_later(path, parts)
    assert read_bounded(path, 1 << 20, pipe_s=WELL_S) == b"".join(parts)
    thread.join(WELL_S)
    thread = write_later(path, parts)
    assert read_bounded(path, 1 << 20, pipe_s=None) == b"".join(parts)
    thread.join(WELL_S)


def test_a_pipe_is_bounded_too(tmp_path: Path) -> None:
    path = pipe(tmp_path)
    descriptor = os.open(path, os.O_RDWR)  # a writer without end
    try:
        os.write(descriptor, b"x" * 2_049)
        with pytest.raises(OSError, match="larger than 2 KiB"):
            read_bounded(path, 2_048, pipe_s=WELL_S)
        with pytest.raises(OSError, match="nobody has written to the end"):
            read_bounded(path, 4_096, pipe_s=SOON_S)
    finally:
        os.close(descriptor)


def test_a_pipe_without_a_writer_is_said_to_be_that(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nobody has written to the end"):
        read_bounded(pipe(tmp_path), 4_096, pipe_s=SOON_S)


@pytest.mark.parametrize(
    ("read", "error"),
    [
        (lambda path: read_bounded(path, 4_096, pipe_s=0), OSError),
        (lambda path: check_authority(str(path)), FileProblem),
        (lambda path: load_file(path, pipe_s=0), GraphError),
    ],
)
def test_what_is_read_more_than_once_can_be_no_pipe(
    tmp_path: Path, read: Callable[[Path], object], error: type[Exception]
) -> None:
    with pytest.raises(error, match="not a regular file"):
        read(pipe(tmp_path))


@pytest.mark.parametrize(
    ("name", "words"),
    [("there\0is", "null"), ("none", "No such file"), (".", "Is a directory")],
)
def test_what_cannot_be_read_has_its_reason(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(OSError, match=words) as caught:
        read_bounded(tmp_path / name, 4_096)
    assert caught.value.strerror
