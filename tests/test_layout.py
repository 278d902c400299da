"""The folders at the root, the links in trainmesh/ and the package table say the same."""

import ast
import importlib
import pkgutil
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

import grimp
import networkx
import pytest

import trainmesh

ROOT = Path(__file__).parent.parent
FOLDERS = ["hooks", "launcher", "serving", "topology"]


def test_links_table_and_folders_agree() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    links = sorted(path.name for path in (ROOT / "trainmesh").iterdir() if path.is_symlink())
    assert links == FOLDERS
    for name in FOLDERS:
        assert (ROOT / "trainmesh" / name).readlink() == Path("..") / name
        assert table["package-dir"][f"trainmesh.{name}"] == name
        assert (ROOT / name / "__init__.py").is_file()
    inside = [
        f"trainmesh.{path.parent.relative_to(ROOT)}".replace("/", ".")
        for name in FOLDERS
        for path in (ROOT / name).rglob("__init__.py")
    ]
    own = [
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for path in (ROOT / "trainmesh").rglob("*/__init__.py")
        if path.relative_to(ROOT / "trainmesh").parts[0] not in FOLDERS
    ]
    assert sorted(table["packages"]) == sorted(["trainmesh", *own, *inside])


MAX_MODULES = 16
"""In a folder: more than a reader takes in at a glance means that it holds several things."""


def test_no_folder_is_a_drawer() -> None:
    counts = Counter(
        path.parent.relative_to(ROOT)
        for name in [*FOLDERS, "trainmesh"]
        for path in (ROOT / name).rglob("*.py")
        if path.name != "__init__.py"
    )
    assert len(counts) > 30
    assert {folder: number for folder, number in counts.items() if number > MAX_MODULES} == {}


def test_modules_import_each_other_in_no_circle() -> None:
    graph = grimp.build_graph("trainmesh", cache_dir=None)
    imports = networkx.DiGraph(
        (module, other)
        for module in graph.modules
        for other in graph.find_modules_directly_imported_by(module)
    )
    assert len(imports) > 300
    circles = [each for each in networkx.strongly_connected_components(imports) if len(each) > 1]
    assert circles == []


MAX_CLASS_LINES = 200
"""More than that has more than one reason to change."""
LONG_CLASSES = {"Upstream"}
"""Still to be split."""


def test_no_class_of_the_router_does_everything() -> None:
    lines = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for room in ("proxy", "decide")
        for path in (ROOT / "serving" / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    assert len(lines) > 50
    assert {name for name, count in lines.items() if count > MAX_CLASS_LINES} == LONG_CLASSES


BORN_LATE = {"Endpoint", "Upstream"}
"""Set by what configures or assigns them; still to be mended."""


def test_attributes_of_the_router_are_born_in_init() -> None:
    late = {
        node.name
        for room in ("proxy", "decide")
        for path in (ROOT / "serving" / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and attributes_born_late(node)
    }
    assert late == BORN_LATE


def attributes_born_late(node: ast.ClassDef) -> set[str]:
    """Those that another method than __init__ sets, and it doesn't."""
    functions = [each for each in node.body if isinstance(each, ast.FunctionDef)]
    fields = {
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    fields |= {each.name for each in functions if each.decorator_list}
    first = [each for each in functions if each.name == "__init__"]
    return attributes_set(functions) - attributes_set(first) - fields


def attributes_set(functions: list[ast.FunctionDef]) -> set[str]:
    return {
        found.attr
        for function in functions
        for found in ast.walk(function)
        if isinstance(found, ast.Attribute)
        and isinstance(found.ctx, ast.Store)
        and isinstance(found.value, ast.Name)
        and found.value.id == "self"
    }


SHARED_NAMES: dict[str, str] = {}
"""Names of more than one public class, and why."""


def test_a_class_name_means_one_thing() -> None:
    found = defaultdict(set)
    for name in [*FOLDERS, "trainmesh"]:
        for path in (ROOT / name).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].add(path.resolve())
    assert len(found) > 500
    assert {name for name, files in found.items() if len(files) > 1} == SHARED_NAMES.keys()


WALL_CLOCK = {
    "trainmesh/clock.py": "the one that is handed in reads it here",
    "trainmesh/owned.py": "when a machine was booted: compared with the time before its last boot",
    "trainmesh/probe/pair.py": "dates a measurement for people, who may be on another host",
    "trainmesh/store/claim.py": "dates a claim for people, who may be on another host",
    "launcher/commands/quarantine.py": "a verdict ends at a date, as other hosts read it too",
    "launcher/probe/session.py": "dates a measurement for people",
    "launcher/run/session.py": "dates a launch for people, and orders launches in a list",
    "serving/control/observer.py": "verdicts end at a date that other hosts have written",
    "serving/control/rundir.py": "dates a router's start for people, and orders routers in a list",
    "serving/identity/audit.py": "dates what was asked for people",
    "serving/identity/authenticator.py": "a token ends at a date that its issuer has written",
    "serving/identity/certificates.py": "a certificate ends at a date that its issuer has written",
    "serving/proxy/recorder.py": "dates a decision for people",
    "serving/proxy/upstream/requests.py": "dates an answer for its client (OpenAI's field created)",
    "serving/proxy/worker.py": "dates a worker's start for people (a metric)",
}
"""Who may read the clock that can be set, and why: never for a duration or a time to wait."""
SET_CLOCKS = {"time.time", "time.time_ns", "time.CLOCK_REALTIME", "datetime.now", "datetime.utcnow"}


def reads_the_wall_clock(source: str) -> bool:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    return bool(names & SET_CLOCKS)


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("import time\nnow = time.time()", True),
        ("from time import monotonic, time", True),
        ("import time\ndef f(now=time.time_ns): ...", True),
        ("from datetime import datetime\nnow = datetime.now()", True),
        ("import time\ntime.clock_gettime(time.CLOCK_REALTIME)", True),
        ("import time\nnow = time.monotonic()", False),
        ("from time import monotonic", False),
        ("from datetime import datetime\nthen = datetime.fromtimestamp(0)", False),
    ],
)
def test_reading_the_wall_clock_is_noticed(source: str, reads: bool) -> None:
    assert reads_the_wall_clock(source) is reads


def test_nobody_else_reads_the_wall_clock() -> None:
    """An administrator or NTP sets it: what is decided from it goes wrong on that day."""
    found = {
        str(path.relative_to(ROOT))
        for name in [*FOLDERS, "trainmesh"]
        for path in (ROOT / name).rglob("*.py")
        if path.resolve() == path and reads_the_wall_clock(path.read_text())
    }
    assert found == WALL_CLOCK.keys()


def modules() -> list[str]:
    found = pkgutil.walk_packages(trainmesh.__path__, "trainmesh.")
    skipped = ("trainmesh.__main__", "trainmesh.launcher.site")
    return [module.name for module in found if not module.name.startswith(skipped)]


@pytest.mark.parametrize("name", modules())
def test_every_public_name_exists_and_every_module_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    if not hasattr(module, "__path__"):
        for public in module.__all__:
            assert hasattr(module, public), f"{name}.__all__ names {public}"


def imported_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import trainmesh", {"torch", "networkx", "grpc", "msgspec"}),
        ("import trainmesh.launcher.cli", {"torch", "networkx", "grpc"}),
        ("import trainmesh.launcher.entry", {"torch", "networkx", "grpc", "msgspec"}),
        ("import trainmesh.hooks.patch", {"torch", "networkx", "grpc"}),
        ("import trainmesh.hooks.ddp.registration", {"networkx", "grpc", "etcd3"}),
        ("import trainmesh.topology.planner", {"torch", "grpc"}),
    ],
)
def test_imports_stay_light(statement: str, absent: set[str]) -> None:
    assert not imported_by(statement) & absent


def test_imports_go_one_way() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "9 kept, 0 broken" in done.stdout
