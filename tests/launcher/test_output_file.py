"""Files that the user has named: followed, replaced in one step, or written through."""

import errno
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from trainmesh.errors import ConfigError
from trainmesh.launcher import output_file
from trainmesh.launcher.cli import main
from trainmesh.launcher.output_file import check_output, write_output

GRAPH = (
    "version: 1\nnodes: {g0: {kind: rank}, g1: {kind: rank}}\n"
    "links: [{src: g0, dst: g1, bandwidth_gbps: 8, alpha_us: 5}]\n"
)
NEW = b"new"


def write(path: Path, data: bytes = NEW) -> None:
    write_output(path, data, what="--draw")


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "f")
    finally:
        os.umask(before)
    assert (tmp_path / "f").read_bytes() == NEW
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


def test_a_file_is_replaced_in_one_step_and_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    path.chmod(0o604)
    with path.open() as reader:
        write(path)
        assert reader.read() == "old"
    assert path.read_bytes() == NEW
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("target", ["there", "new"])
def test_a_link_is_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "there").write_text("old")
    link = tmp_path / "link"
    link.symlink_to(target)
    write(link)
    assert link.is_symlink()
    assert (tmp_path / target).read_bytes() == NEW


def test_all_names_of_a_file_stay_its_names(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old and longer")
    os.link(tmp_path / "a", tmp_path / "b")
    write(tmp_path / "a")
    assert (tmp_path / "b").read_bytes() == NEW
    assert (tmp_path / "b").stat().st_nlink == 2


def test_a_file_of_another_user_stays_theirs(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = tmp_path / "f"
    path.write_text("old and longer")
    os.chown(path, 12345, 12345)
    write(path)
    assert path.read_bytes() == NEW
    assert path.stat().st_uid == 12345


@pytest.mark.parametrize("name", ["/dev/null", "/dev/stdout"])
def test_a_device_and_standard_output_are_written_to(tmp_path: Path, name: str) -> None:
    (tmp_path / "g.yaml").write_text(GRAPH)
    before = Path("/dev/null").stat()
    words = ["plan", "--graph", "g.yaml", "--draw", name]
    with (tmp_path / "out").open("w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "trainmesh", *words],
            cwd=tmp_path, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    printed = (tmp_path / "out").read_text()
    assert ("<svg" in printed) == (name == "/dev/stdout")
    assert "algorithm" in printed  # the table is there as well, and nothing was overwritten
    after = Path("/dev/null").stat()
    assert (after.st_mode, after.st_rdev, after.st_ino) == (
        before.st_mode,
        before.st_rdev,
        before.st_ino,
    )


def test_a_fifo_gets_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()), daemon=True)
    reader.start()
    write(path, b"x" * 300_000)
    reader.join(30)
    assert got == [b"x" * 300_000]
    assert path.is_fifo()


def test_a_fifo_without_a_reader_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_file, "READER_S", 0.1)
    monkeypatch.setattr(output_file, "STALL_S", 0.1)
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="--draw .*fifo: nothing reads this FIFO"):
        write(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(ConfigError, match="nothing was read from it"):
            write(path, b"x" * 300_000)
    finally:
        os.close(reader)


def full(file: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(file: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("fsync", "raised"), [(full, ConfigError), (interrupted, KeyboardInterrupt)]
)
def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fsync: Callable[[int], None],
    raised: type[BaseException],
) -> None:
    (tmp_path / "f").write_text("old")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(raised):
        write(tmp_path / "f")
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "old"


def test_a_file_in_a_folder_that_cannot_be_written_to_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_text("old and longer")

    def refused(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(tempfile, "mkstemp", refused)  # as for another user than root
    write(path)
    assert path.read_bytes() == NEW


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "empty"),
        (".", "Is a directory"),
        ("none/f", "No such file or directory"),
        ("file/f", "Not a directory"),
        ("loop", "Too many levels of symbolic links"),
        ("x" * 300, "File name too long"),
        ("/dev/full", "No space left on device"),
        ("socket\nname", "No such device or address"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "topology show", "topology import"])
def test_what_cannot_be_written_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    name: str,
    words: str,
) -> None:
    import socket

    monkeypatch.chdir(tmp_path)
    Path("g.yaml").write_text(GRAPH)
    Path("hosts").write_text("a slots=2\nb slots=2\n")
    Path("file").touch()
    Path("loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket\nname")
        before = sorted(os.listdir())
        argv = {
            "plan": ["plan", "--graph", "g.yaml", "--draw", name],
            "topology show": ["topology", "show", "--file", "g.yaml", "--draw", name],
            "topology import": ["topology", "import", "hostfile", "hosts", "--output", name],
        }[command]
        code: object
        try:
            code = main(argv)
        except SystemExit as stop:
            code = stop.code
    err = capsys.readouterr().err
    assert code == 2, err
    assert words in err
    assert len(err.splitlines()) == 1
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("name", [".", "none/f", "file/f"])
def test_what_cannot_be_written_is_seen_before_the_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--output"):
        check_output(tmp_path / name, what="--output")
    check_output(tmp_path / "file", what="--output")
    check_output(tmp_path / "new", what="--output")
    check_output(Path("/dev/stdout"), what="--output")
