"""Both commands of the README on a bare Debian 12, as an ordinary user, and as root.

debootstrap makes the root directory; a mount and a process namespace of their own hold what runs in
it. Where packages come from is this machine's own configuration of apt and pip, carried over.
"""

import ast
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.system_packages import PACKAGES, one_line
from tests.needs import need_root

ROOT = Path(__file__).parent.parent
RELEASE = "bookworm"
INSTALLED = "python3,python3-venv,make,git,ca-certificates"
"""What the README asks of a machine, and what apt and pip need to see who they talk to."""
USER = "someone"
HOME = f"/home/{USER}"
CLONE = f"{HOME}/trainmesh"
OPEN_FILES = 1024
"""The limit that an ordinary user's shell begins with."""
MAKE_S = 3 * 3600.0

pytestmark = [pytest.mark.soak, pytest.mark.root, pytest.mark.timeout(2 * MAKE_S)]


class Machine:
    """A root directory and the commands that run in it."""

    def __init__(self, root: Path, log: Path) -> None:
        self.root = root
        self._log = log
        self._binds: list[str] = []

    def install(self) -> None:
        """Make the root directory, with one user and this machine's ways to packages.

        Raises:
            subprocess.CalledProcessError: debootstrap has failed; its output is in the error.
        """
        command = ["debootstrap", "--variant=minbase", f"--include={INSTALLED}", RELEASE]
        _done([*command, str(self.root), *_mirror()])
        shutil.copy("/etc/resolv.conf", self.root / "etc/resolv.conf")
        # What Debian's installer writes, and debootstrap does not.
        names = f"127.0.0.1 localhost\n127.0.1.1 {socket.gethostname()}\n::1 localhost\n"
        (self.root / "etc/hosts").write_text(names)
        authorities = Path("/etc/ssl/certs/ca-certificates.crt")
        if authorities.exists():
            shutil.copy(authorities, self.root / "etc/ssl/certs/ca-certificates.crt")
        proxies = [line for line in _said("apt-config", "dump", "Acquire") if "::Proxy" in line]
        (self.root / "etc/apt/apt.conf.d/99proxy").write_text("\n".join([*proxies, ""]))
        self._carry_pip()
        assert (
            self.run(f"useradd --create-home --shell /bin/bash {USER}", user="root", directory="/")[
                0
            ]
            == 0
        )

    def clone(self) -> None:
        """A clean clone of this checkout's commit in the user's home."""
        target = self.root / CLONE[1:]
        _done(["git", "clone", "--quiet", "--no-local", f"file://{ROOT}", str(target)])
        assert self.run(f"chown -R {USER}: {HOME}", user="root", directory="/")[0] == 0

    def run(
        self, command: str, *, user: str = USER, directory: str = HOME, timeout_s: float = MAKE_S
    ) -> tuple[int, str]:
        """Run ``command`` in a clean shell of ``user`` in ``directory``; its exit code and what it
        printed, which is also in the log."""
        home = "/root" if user == "root" else HOME
        path = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
        if user == "root":
            path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        environment = [f"HOME={home}", f"USER={user}", f"LOGNAME={user}", f"PATH={path}"]
        proxies = [f"{k}={v}" for k, v in os.environ.items() if k.lower().endswith("_proxy")]
        inside = f"cd {directory} && ulimit -Sn {OPEN_FILES} && {{ {command}; }}"
        entered = shlex.join(
            ["chroot", f"--userspec={user}:{user}", str(self.root)]
            + ["env", "-i", *environment, *proxies, "bash", "-c", inside]
        )
        into = shlex.quote(str(self.root))
        steps = [
            f"mount -t tmpfs -o mode=1777 tmpfs {into}/dev/shm",
            f"mount -t devpts devpts {into}/dev/pts",
            f"mount -t proc proc {into}/proc",
            *(f"mount --rbind {path} {into}{path}" for path in map(shlex.quote, self._binds)),
            f"exec {entered}",
        ]
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        with self._log.open("a+") as log:
            begin = log.seek(0, os.SEEK_END)
            process = subprocess.Popen(
                [*namespaces, "sh", "-ec", "; ".join(steps)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout_s)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # --kill-child ends the namespace
                    process.wait()
            log.seek(begin)
            return code, log.read()

    def _carry_pip(self) -> None:
        """pip's configuration, and the local folders and files that it names."""
        sections: dict[str, dict[str, str]] = {"global": {}}
        for line in _said(sys.executable, "-m", "pip", "config", "list"):
            found = re.fullmatch(r"(:env:|[a-z-]+)\.([a-z-]+)=(.*)", line)
            assert found, line
            section = "global" if found[1] == ":env:" else found[1]
            sections.setdefault(section, {})[found[2]] = str(ast.literal_eval(found[3]))
        lines = []
        for section, values in sections.items():
            lines += [f"[{section}]", *(f"{key} = {value}" for key, value in values.items())]
            for word in " ".join(values.values()).split():
                self._carry(Path(word.removeprefix("file://")))
        (self.root / "etc/pip.conf").write_text("\n".join([*lines, ""]))

    def _carry(self, path: Path) -> None:
        if not path.is_absolute() or not path.exists() or self._has(path):
            return
        if path.is_file():
            self._inside(path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, self._inside(path))
            return
        # An index may name files that lie beside it.
        folder = path if self._has(path.parent) else path.parent
        self._inside(folder).mkdir(parents=True, exist_ok=True)
        self._binds.append(str(folder))

    def _inside(self, path: Path) -> Path:
        return self.root / path.relative_to("/")

    def _has(self, path: Path) -> bool:
        """Something is there already, or will be."""
        inside = self._inside(path)
        taken = any(path.is_relative_to(each) for each in self._binds)
        return taken or inside.is_file() or (inside.is_dir() and any(inside.iterdir()))


def _done(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}:\n{done.stdout[-2000:]}{done.stderr}"


def _said(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def _mirror() -> list[str]:
    """Where this machine gets the release from; nothing: debootstrap knows."""
    lines = _said("apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)")
    return [line.split()[1] for line in lines if line.startswith(f"{RELEASE} ")][:1]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    need_root()
    for program in ("debootstrap", "git", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: as root, apt-get install -y {program}")
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], check=False).returncode:
        pytest.skip("needs namespaces; in a container, run it with --privileged")
    folder = tmp_path_factory.mktemp("bare")
    folder.chmod(0o755)
    made = Machine(folder / "root", folder / "log")
    try:
        made.install()
        made.clone()
        yield made
    finally:
        shutil.rmtree(made.root)


def test_make_demo_and_make_test_as_an_ordinary_user(machine: Machine) -> None:
    code, said = machine.run("make demo", directory=CLONE)
    assert code == 0, said[-4000:]
    names = ", ".join(f"{each.what} (tests {each.use})" for each in PACKAGES.values())
    assert f"setup: this system lacks {names}" in said
    assert f"    {one_line(PACKAGES.values())}\n" in said

    code, said = machine.run("make test", directory=CLONE)
    assert code == 0, said[-4000:]
    assert re.findall(r" (\d+) (?:failed|error)", said) == []
    # Tests that need two things name the first.
    for what in ("a C compiler", "curl", "libgomp.so.1"):
        assert f"needs {what}: as root, {one_line([PACKAGES[what]])}" in said
    assert "no program tc: apt-get install iproute2" in said
    assert machine.run("git status --porcelain", directory=CLONE) == (0, "")


def test_root_gets_what_tests_need(machine: Machine) -> None:
    code, said = machine.run("python3 scripts/system_packages.py", user="root", directory=CLONE)
    assert code == 0, said
    assert said == f"setup: {one_line(PACKAGES.values())}\n"
    code, said = machine.run(
        ".venv/bin/python -m pytest tests/serving/runtime/test_openai_client.py "
        "tests/serving/bench tests/topology/importers/test_nvml.py",
        directory=CLONE,
    )
    assert code == 0, said[-4000:]
    skipped = [line for line in said.splitlines() if line.startswith("SKIPPED")]
    assert all(line.endswith(": needs root") for line in skipped), skipped
