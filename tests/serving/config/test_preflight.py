"""``--check`` refuses what the start would refuse, in one line and with 2; so does the start."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launchjob import Place, place
from trainmesh import places
from trainmesh.errors import ConfigError
from trainmesh.serving.config.addresses import parse_listener
from trainmesh.serving.config.types import Config, LedgerConfig
from trainmesh.serving.loading import preflight

SERVE = ("-m", "trainmesh", "serve", "--config", "serve.yaml")

OPEN = {"insecure": True, "admin_keys": [f"sha256:{'0' * 64}"]}
KEYED = {"a": {"keys": [f"sha256:{'0' * 64}"]}}


def written(here: Place, **more: Any) -> None:
    models = {"m": {"endpoints": [{"url": "http://127.0.0.1:9"}]}}
    config = {"version": 1, "listen": "127.0.0.1:0", "models": models, **more}
    (here.path / "serve.yaml").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"topology": {"file": "none.yaml"}}, "none.yaml"),
        ({"topology": {"file": "broken.yaml"}}, "broken.yaml"),
        ({"audit": "none/audit.jsonl"}, "audit: "),
        ({"audit": "a_file/audit.jsonl"}, "audit: "),
        ({"audit": "."}, "audit: "),
        ({"ledger": {"dir": "a_file"}}, "ledger.dir: "),
        ({"ledger": {"dir": "a_file/below/it"}}, "ledger.dir: "),
        ({"listen": "127.0.0.1:8123", "admin": "localhost:8123"}, "same address"),
        ({"audit": "a\0b"}, "audit: must be text of at most 4096 characters (no NUL"),
        ({"ledger": {"dir": "a\0b"}}, "ledger.dir: must be text"),
        ({"topology": {"file": "a\0b"}}, "topology.file: must be text"),
        ({"listen": "127.0.0.1:8123", "admin": "0:8123", **OPEN}, "same address"),
        ({"listen": "127.0.0.1:8123", "admin": "[::ffff:7f00:1]:8123", **OPEN}, "admin: "),
        ({"admin": "[::ffff:7f00:1]:0", **OPEN}, "admin: can't listen on"),
        ({"listen": "192.0.2.1:0", "insecure": True, "tenants": KEYED}, "listen: "),
    ],
)  # fmt: skip
def test_what_the_start_refuses_the_check_refuses(more: dict[str, Any], words: str) -> None:
    with place() as here:
        (here.path / "a_file").write_text("")
        (here.path / "broken.yaml").write_text("nodes: 3\n")
        written(here, **more)
        said = []
        for flags in (["--check"], []):
            done = here.run(sys.executable, *SERVE, *flags, XDG_STATE_HOME=str(here.path))
            assert done.returncode == 2, done.stderr
            said.append(done.stderr.splitlines())
            assert len(said[-1]) == 1
            assert words in said[-1][0]
        assert said[0] == said[1]
        assert here.files() == []


@pytest.mark.starts
def test_a_run_directory_that_can_be_made_nowhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One place that can't be written is stood in for by the next (``trainmesh.places``)."""
    (tmp_path / "file").write_text("")
    good, bad = places.Place(tmp_path, ""), places.Place(tmp_path / "file", "")
    config = Config(version=1, models={}, listen="127.0.0.1:0", ledger=LedgerConfig(enabled=False))
    for found in ((bad, good), (bad,)):
        monkeypatch.setattr(preflight, "places", lambda found=found: found)
        if good in found:
            preflight.preflight(config)
            continue
        with pytest.raises(ConfigError, match="can't make a run directory in .*not a folder"):
            preflight.preflight(config)


@pytest.mark.parametrize("flags", [["--check"], []])
def test_traces_without_their_library_are_one_line(flags: list[str]) -> None:
    with place() as here:
        written(here, telemetry={"otlp": "http://127.0.0.1:9"})
        code = (
            "import sys; sys.modules['opentelemetry.sdk'] = None\n"
            "from trainmesh.launcher.entry import main\n"
            f"sys.argv = ['trainmesh', 'serve', '--config', 'serve.yaml', *{flags}]\n"
            "main()"
        )
        done = here.run(sys.executable, "-c", code, XDG_STATE_HOME=str(here.path))
        assert (done.returncode, done.stderr) == (
            2,
            "trainmesh: error: telemetry.otlp needs the OpenTelemetry SDK: pip install "
            "'trainmesh[otlp]'\n",
        )


def test_the_check_leaves_nothing_behind() -> None:
    with place() as here:
        written(here, ledger={"dir": "new/ledger"}, audit="audit.jsonl")
        done = here.run(sys.executable, *SERVE, "--check", XDG_STATE_HOME=str(here.path))
        assert (done.returncode, done.stderr) == (0, "trainmesh serve: serve.yaml: fine\n")
        assert [path.name for path in here.path.iterdir()] == ["serve.yaml"]


@pytest.mark.parametrize(
    ("one", "two", "clash"),
    [
        ("127.0.0.1:80", "LOCALHOST:80", True),
        ("127.0.0.1:80", "127.0.0.1:81", False),
        ("0.0.0.0:80", "127.0.0.1:80", True),
        ("[::]:80", "127.0.0.1:80", True),
        ("[::1]:80", "127.0.0.1:80", False),
        ("[::1]:80", "[0:0::1]:80", True),
        ("[::1]:80", "0.0.0.0:80", False),
        ("[::ffff:7f00:1]:80", "127.0.0.1:80", True),
        ("a.example:80", "A.example:80", True),
        ("a.example:80", "0.0.0.0:80", False),
    ],
)
def test_addresses_clash_however_they_are_written(one: str, two: str, *, clash: bool) -> None:
    assert parse_listener(one).overlaps(parse_listener(two)) is clash
    assert parse_listener(two).overlaps(parse_listener(one)) is clash
