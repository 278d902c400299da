"""Which modules are compiled is found by a rule: what a request passes through."""

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """setup.py as a module."""
    spec = importlib.util.spec_from_file_location("trainmesh_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_data_path_is_compiled(build: ModuleType) -> None:
    found = build.compiled_modules(ROOT / "serving")
    assert len(found) > 40
    assert {
        "decide/pool",
        "decide/policies/hybrid",
        "identity/authenticator",
        "observe/durations",
        "proxy/client/connection",
        "proxy/exchange/attempts",
        "proxy/reading/headers",
        "proxy/upstream/connection",
    } <= set(found)
    assert "proxy/worker" not in found


def test_what_is_left_out_is_there_and_has_a_reason(build: ModuleType) -> None:
    for name, reason in build.UNCOMPILED.items():
        assert (ROOT / "serving" / f"{name}.py").is_file(), name
        assert reason


def test_no_compiled_module_has_a_struct(build: ModuleType) -> None:
    import msgspec

    for name in build.compiled_modules(ROOT / "serving"):
        module = importlib.import_module(f"trainmesh.serving.{name.replace('/', '.')}")
        source = ast.parse((ROOT / "serving" / f"{name}.py").read_text())
        own = [node.name for node in ast.walk(source) if isinstance(node, ast.ClassDef)]
        structs = [
            each
            for each in own
            if isinstance(getattr(module, each, None), type)
            and issubclass(getattr(module, each), msgspec.Struct)
        ]
        assert structs == [], name


def test_a_new_module_is_found_unless_it_has_a_struct(build: ModuleType, tmp_path: Path) -> None:
    sources = {
        "decide/plain.py": "class Plain:\n    pass\n",
        "decide/learn/__init__.py": "",
        "decide/learn/new.py": "def new() -> int:\n    return 1\n",
        "proxy/record.py": "import msgspec\nclass Record(msgspec.Struct):\n    pass\n",
        "proxy/child.py": "class Child(Record, frozen=True):\n    pass\n",
        "proxy/worker.py": "",
        "admin/views.py": "",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    assert build.compiled_modules(tmp_path) == ["decide/learn/new", "decide/plain"]
