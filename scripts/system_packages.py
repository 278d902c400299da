"""What tests need of the system beside Python: what is missing, and the one line that installs it.

``make setup`` runs this before there is a virtual environment, so it is the standard library's
alone; as root on Debian it installs what is missing. Tests skip with the reasons given here
(``tests/needs.py``).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PACKAGES", "Package", "missing", "one_line"]


@dataclass(frozen=True)
class Package:
    """``debian``: the packages that bring it; ``what``: it; ``use``: the tests that need it."""

    debian: str
    what: str
    use: str
    is_here: Callable[[], bool]


def _program(*names: str) -> Callable[[], bool]:
    # Debian has tc in /usr/sbin, which an ordinary user's PATH leaves out.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return lambda: all(shutil.which(name, path=path) for name in names)


def _library(name: str) -> Callable[[], bool]:
    def loads() -> bool:
        try:
            ctypes.CDLL(name)
        except OSError:
            return False
        return True

    return loads


PACKAGES = {
    package.what: package
    for package in (
        Package("iproute2", "ip and tc", "of emulated clusters", _program("ip", "tc")),
        Package(
            "gcc libc6-dev",
            "a C compiler",
            "with a GPU driver's stand-in",
            _program("cc", "gcc"),
        ),
        Package(
            "libssl-dev",
            "OpenSSL's headers",
            "of the router's benchmark",
            lambda: Path("/usr/include/openssl/ssl.h").exists(),
        ),
        Package("curl", "curl", "of offers of HTTP/2", _program("curl")),
        Package("libgomp1", "libgomp.so.1", "with llama.cpp's server", _library("libgomp.so.1")),
    )
}


def missing() -> list[Package]:
    """Those that aren't here."""
    return [package for package in PACKAGES.values() if not package.is_here()]


def one_line(packages: Iterable[Package]) -> str:
    """The command that installs ``packages`` on Debian and its like, for root."""
    return f"apt-get install -y {' '.join(package.debian for package in packages)}"


def main() -> None:
    wanted = missing()
    if wanted and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"setup: {one_line(wanted)}", flush=True)
        _install(wanted)
        wanted = missing()
    if wanted:
        lacking = ", ".join(f"{package.what} (tests {package.use})" for package in wanted)
        print(
            f"setup: this system lacks {lacking}; those tests skip. To run them, as root:\n"
            f"    {one_line(wanted)}",
            file=sys.stderr,
        )


def _install(packages: list[Package]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in ("apt-get update -qq", f"{one_line(packages)} -qq"):
        done = subprocess.run(
            command.split(), env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            print(f"setup: {command.removesuffix(' -qq')}: {why}", file=sys.stderr)


if __name__ == "__main__":
    main()
