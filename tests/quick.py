"""``pytest --quick``: the tests that start nothing, chosen by what their source uses.

A test starts something when what it reaches (its own code, its fixtures, the helpers in tests/
that it calls) uses a module of ``STARTERS``, or when it has a mark of ``MARKS``. What the product
starts on behalf of a test can't be seen there; so while a quick test runs, the interpreter refuses
to start a process or to bind a socket, and the test fails with a sentence that names its mark.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

__all__ = ["MARKS", "STARTERS", "left_out", "why"]

STARTERS = (
    "http.client",
    "http.server",
    "multiprocessing",
    "socket",
    "socketserver",
    "subprocess",
    "torch.distributed",
    "torch.multiprocessing",
    "trainmesh.store.embedded",
)
"""Modules that start processes, servers or process groups."""

MARKS = ("etcd", "root", "slow", "soak", "starts", "torch")

REFUSED = (
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.system",
    "socket.bind",
    "subprocess.Popen",
)
"""Audit events of the interpreter (docs.python.org/3/library/audit_events.html)."""

ROOT = Path(__file__).parent.parent
Node = ast.stmt


class Source:
    """A file of tests/: its top-level names, and where those come from that it imports."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nodes: dict[str, list[Node]] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        """By local name: the module, and the name in it ("" for the module itself)."""
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.imports.update(_imported(node))
            for name in _defined(node):
                self.nodes.setdefault(name, []).append(node)

    def tests(self) -> list[str]:
        """Functions and classes; a class of tests starts what any of its methods starts."""
        return [
            name
            for name, (node, *_) in self.nodes.items()
            if (name.startswith("test_") and isinstance(node, ast.FunctionDef))
            or (name.startswith("Test") and isinstance(node, ast.ClassDef))
        ]

    def autouse(self) -> list[str]:
        """Fixtures that every test of this file, or of this conftest.py's folder, gets."""
        return [
            name
            for name, (node, *_) in self.nodes.items()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and any(
                keyword.arg == "autouse"
                for decorator in node.decorator_list
                if isinstance(decorator, ast.Call)
                for keyword in decorator.keywords
            )
        ]


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, tuple[str, str]]]:
    for alias in node.names:
        if isinstance(node, ast.Import):
            whole = alias.name if alias.asname else alias.name.partition(".")[0]
            # "import a.b" makes the name a, and starts what a.b starts.
            yield alias.asname or whole, (alias.name, "")
        elif node.module:
            yield alias.asname or alias.name, (node.module, alias.name)


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return []
    return [
        name.id
        for name in ast.walk(node)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    ]


@cache
def _source(path: Path) -> Source:
    return Source(path)


def _module(name: str) -> Path | None:
    """The file of a module of tests/."""
    path = ROOT / (name.replace(".", "/") + ".py")
    return path if name.startswith("tests.") and path.is_file() else None


def _starter(module: str) -> str:
    """The one of STARTERS that ``module`` is or lies in; "" for none."""
    return next((s for s in STARTERS if f"{module}.".startswith(f"{s}.")), "")


def _uses(node: Node) -> Iterator[str]:
    """The names in ``node``: those it reads, its arguments, the fixtures it names."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.arg):
            yield part.arg
        elif isinstance(part, ast.Call) and ast.unparse(part.func) == "pytest.mark.usefixtures":
            yield from (str(each.value) for each in part.args if isinstance(each, ast.Constant))


def _marks(nodes: list[Node]) -> Iterator[str]:
    """Marks that hold for all of a test: not those of single parameters."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
        elif isinstance(node, ast.Assign):
            found = node.value.elts if isinstance(node.value, ast.List) else [node.value]
        else:
            continue
        for one in found:
            if isinstance(one, ast.Attribute) and ast.unparse(one.value) == "pytest.mark":
                yield one.attr


def _conftests(path: Path) -> list[Path]:
    """From the nearest up."""
    found = [folder / "conftest.py" for folder in path.parents if folder.is_relative_to(ROOT)]
    return [file for file in found if file.is_file() and file != path]


@cache
def _reaches(path: Path, name: str) -> tuple[tuple[str, tuple[Path, str] | None], ...]:
    """What ``name`` uses: a starter's module, or the place of another name of tests/."""
    return tuple(_used(path, name))


def _used(path: Path, name: str) -> Iterator[tuple[str, tuple[Path, str] | None]]:
    source = _source(path)
    for node in source.nodes.get(name, ()):
        local = dict(source.imports)
        for part in ast.walk(node):
            if isinstance(part, ast.Import | ast.ImportFrom):
                local.update(_imported(part))
        for used in set(_uses(node)) | (local.keys() - source.imports.keys()):
            if used in source.nodes:
                yield "", (path, used)
            elif used in local:
                module, item = local[used]
                yield _starter(module) or _starter(f"{module}.{item}"), None
                if (file := _module(module)) is not None and item in _source(file).nodes:
                    yield "", (file, item)
            else:
                for conftest in _conftests(path):
                    if used in _source(conftest).nodes:
                        yield "", (conftest, used)
                        break


@cache
def why(path: Path, name: str) -> str:
    """Why the test ``name`` in ``path`` is not quick: a mark or a module; "" for a quick one."""
    source = _source(path)
    for mark in _marks([*source.nodes.get("pytestmark", ()), *source.nodes.get(name, ())]):
        if mark in MARKS:
            return mark
    always = [(file, fixture) for file in _conftests(path) for fixture in _source(file).autouse()]
    ways = [(path, name), *((path, fixture) for fixture in source.autouse()), *always]
    seen = set(ways)
    while ways:
        for starter, place in _reaches(*ways.pop()):
            if starter:
                return starter
            if place is not None and place not in seen:
                seen.add(place)
                ways.append(place)
    return ""


def left_out(path: Path) -> dict[str, str]:
    """The tests of ``path`` that are not quick, with the reason of each."""
    return {name: reason for name in _source(path).tests() if (reason := why(path, name))}


# The plug-in.


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only the tests that start nothing")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file without a quick test is not even imported: torch alone takes seconds."""
    if not config.getoption("quick") or not collection_path.name.startswith("test_"):
        return None
    tests = _source(collection_path).tests()
    return True if tests and len(left_out(collection_path)) == len(tests) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("quick"):
        return
    quick = [item for item in items if _is_quick(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(quick)])
    items[:] = quick


def _is_quick(item: pytest.Item) -> bool:
    if any(item.get_closest_marker(mark) for mark in MARKS):
        return False
    name = item.originalname if isinstance(item, pytest.Function) else item.name
    kind = item.cls if isinstance(item, pytest.Function) else None
    return not why(item.path, kind.__name__ if kind else name)


class _Guard:
    """The interpreter's audit hook; once there, it stays, so it is told when to look."""

    def __init__(self) -> None:
        self.is_on = False
        self._is_hooked = False

    def watch(self) -> None:
        if not self._is_hooked:
            sys.addaudithook(self._look)
            self._is_hooked = True
        self.is_on = True

    def _look(self, event: str, args: tuple[object, ...]) -> None:
        if self.is_on and event in REFUSED:
            pytest.fail(f"a quick test does {event} {args!r:.200}: mark it with pytest.mark.starts")


_guard = _Guard()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if item.config.getoption("quick"):
        _guard.watch()
    try:
        return (yield)
    finally:
        _guard.is_on = False


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what was not run, a line a folder."""
    if not config.getoption("quick"):
        return
    by_folder: dict[Path, Counter[str]] = defaultdict(Counter)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        by_folder[path.parent].update(left_out(path).values())
    terminalreporter.section("left out of --quick: test functions that start something, by what")
    for folder, reasons in sorted(by_folder.items()):
        if reasons:
            words = ", ".join(f"{reason} {number}" for reason, number in reasons.most_common())
            terminalreporter.line(f"{folder.relative_to(ROOT)}: {reasons.total()} ({words})")
