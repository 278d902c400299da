"""``bootstrap program`` behaves as ``python program``."""

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PLAIN = [sys.executable, "-u"]
BOOTSTRAP = [sys.executable, "-u", "-m", "trainmesh.launcher.bootstrap"]
SHOW = """
import sys, json
spec = __spec__ and (__spec__.name, __spec__.origin)
print(json.dumps([sys.argv, sys.path, __name__, __file__, __package__, __cached__, spec]))
print(sorted(globals()), type(__loader__).__name__, sys.modules["__main__"].__dict__ is globals())
"""


def run(
    command: list[str], cwd: Path, *arguments: str, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def same(cwd: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run both ways; exit code, stdout and stderr must be equal."""
    plain = run(PLAIN, cwd, *arguments, **env)
    ours = run(BOOTSTRAP, cwd, *arguments, **env)
    assert ours.stdout == plain.stdout
    assert ours.stderr == plain.stderr
    assert ours.returncode == plain.returncode
    return ours


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "src" / "pkg").mkdir(parents=True)
    for name in ("src/show.py", "src/pkg/__main__.py", "src/pkg/tool.py", "module.py"):
        (tmp_path / name).write_text(SHOW)
    (tmp_path / "src/pkg/__init__.py").touch()
    (tmp_path / "link.py").symlink_to("src/show.py")
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("__main__.py", SHOW)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["src/show.py", "--flag", "-m", "x y"],
        ["./src/../src/show.py"],
        ["link.py"],
        ["module.py"],
        ["src/pkg", "-h"],
        ["app.zip", "1"],
        ["-m", "module", "a", "-b"],
        ["-m", "src.pkg.tool"],
        ["-m", "src.pkg"],
        ["-m", "missing"],
    ],
)
def test_a_program_sees_what_it_sees_under_python(project: Path, arguments: list[str]) -> None:
    done = same(project, *arguments)
    assert ("missing" in arguments) == (done.returncode != 0)


@pytest.mark.parametrize("arguments", [["src/show.py"], ["-m", "pkg.tool"]])
def test_safe_path_is_respected(project: Path, arguments: list[str]) -> None:
    path = f"{ROOT}:{project / 'src'}"
    same(project, *arguments, PYTHONSAFEPATH="1", PYTHONPATH=path)


def test_an_absolute_path(project: Path) -> None:
    same(Path("/"), str(project / "src" / "show.py"))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise SystemExit", 0),
        ("import sys; sys.exit(7)", 7),
        ("import sys; sys.exit('words')", 1),
        ("def f():\n    1 / 0\nf()", 1),
        ("try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('x') from e", 1),
        ("def f(:", 1),
        ("raise KeyboardInterrupt", -2),
        ("import os; os.kill(os.getpid(), 15)", -15),
        ("import sys\nsys.excepthook = lambda k, e, t: print(k, e, t.tb_lineno)\n1 / 0", 1),
        ("# coding: latin-1\nprint(len('\u00e4'))", 0),
        ("import atexit\nclass A: pass\natexit.register(lambda: print(A))", 0),
        ("class A: pass\nimport pickle; print(pickle.loads(pickle.dumps(A)), A.__module__)", 0),
        ("import inspect\ndef f(): pass\nprint(inspect.getsource(f))", 0),
        ("x: int = 1\nprint(__annotations__, __builtins__.__name__, __doc__)", 0),
    ],
)
def test_a_script_ends_as_under_python(tmp_path: Path, body: str, code: int) -> None:
    (tmp_path / "s.py").write_text(body + "\n", encoding="latin-1")
    assert same(tmp_path, "s.py").returncode == code


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_multiprocessing_children_find_main(tmp_path: Path, method: str) -> None:
    (tmp_path / "s.py").write_text(
        textwrap.dedent(f"""
        import multiprocessing, sys
        class Box:
            def __init__(self, value): self.value = value
        def work(box):
            hooks = [f for f in sys.meta_path if type(f).__module__.startswith("trainmesh")]
            return Box(box.value + 1), "trainmesh" in sys.modules and bool(hooks)
        if __name__ == "__main__":
            with multiprocessing.get_context("{method}").Pool(1) as pool:
                box, hooked = pool.apply(work, (Box(1),))
            print(box.value, hooked)
        """)
    )
    done = run(BOOTSTRAP, tmp_path, "s.py")
    hooked = method == "fork"  # a forked child is a copy; in a new process we do nothing
    assert (done.stdout, done.stderr) == (f"2 {hooked}\n", "")


def test_a_module_in_the_working_directory_does_not_shadow_what_we_import(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "s.py").write_text("print('fine')")
    for name in ("importlib", "abc", "typing", "pkgutil", "msgspec"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    same(tmp_path, "src/s.py")


def test_the_hook_is_installed_before_the_script_and_torch_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(
        "import sys; print(type(sys.meta_path[0]).__module__, 'torch' in sys.modules)"
    )
    assert run(BOOTSTRAP, tmp_path, "s.py").stdout == "trainmesh.hooks.patch False\n"


def test_run_path_runs_the_script_as_runpy_does(project: Path) -> None:
    main = "import runpy, sys; sys.argv[:1] = []; runpy.run_path(sys.argv[0], run_name='__main__')"
    plain = run([sys.executable, "-c", main], project, "src/show.py", "a")
    bootstrap = str(ROOT / "trainmesh" / "launcher" / "bootstrap.py")
    ours = run([sys.executable, "-c", main], project, bootstrap, "--run-path", "src/show.py", "a")
    assert ours.returncode == plain.returncode == 0
    assert ours.stdout == plain.stdout
