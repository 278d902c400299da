"""What runs in each worker before the user's program: installs the hook, then gets out of the way.

``python -m trainmesh.launcher.bootstrap [-m] program args`` behaves as ``python [-m] program
args``: ``sys.argv``, ``sys.path[0]``, ``__file__``, ``__main__`` (also for pickle, for atexit and
for spawned processes), exit code and traceback are the same. With ``--run-path`` it is itself run
by ``runpy.run_path`` and runs the program in the same way, as torchrun's flag of that name does.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType

__all__ = ["main"]


def main() -> None:
    """Run the program named by ``sys.argv`` as ``__main__``."""
    first, *rest = sys.argv[1:]
    by_path = first == "--run-path"
    if not by_path and not sys.flags.safe_path:
        # The working directory, put there by -m: a module of the user's must not come before
        # the standard library's while we import.
        del sys.path[0]

    from trainmesh.hooks import patch

    patch.install()
    try:
        if by_path:
            _run_path(rest)
        elif first == "-m":
            _run_module(rest)
        else:
            _run_script([first, *rest])
    except SystemExit:
        raise
    except BaseException:
        _hide_our_frames()
        raise


def _run_path(argv: list[str]) -> None:
    import runpy

    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


def _run_module(argv: list[str]) -> None:
    """``python -m``: the same function of the standard library, in a fresh ``__main__``."""
    import runpy

    _put_on_path(os.getcwd())
    sys.argv = ["-m", *argv[1:]]
    _fresh_main()
    runpy._run_module_as_main(argv[0])  # type: ignore[attr-defined]


def _run_script(argv: list[str]) -> None:
    """``python script``, where the script may also be a directory or a zip archive."""
    from importlib.machinery import SourceFileLoader
    from pkgutil import get_importer

    sys.argv = argv
    script = os.path.join(os.getcwd(), argv[0])
    if get_importer(script) is not None:
        import runpy

        sys.path.insert(0, script)
        _fresh_main()
        runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined]
        return
    _put_on_path(os.path.dirname(os.path.realpath(script)))
    with open(script, "rb") as file:
        code = compile(file.read(), script, "exec", dont_inherit=True)
    namespace = _fresh_main()
    namespace.update(
        __file__=script, __cached__=None, __loader__=SourceFileLoader("__main__", script)
    )
    exec(code, namespace)  # noqa: S102 - this is what running a script means


def _put_on_path(directory: str) -> None:
    if not sys.flags.safe_path:
        sys.path.insert(0, directory)


def _fresh_main() -> dict[str, object]:
    """Replace ``__main__``, for good, by a new module; returns its namespace."""
    import builtins
    from types import ModuleType

    module = ModuleType("__main__")
    module.__dict__.update(__builtins__=builtins, __annotations__={})
    sys.modules["__main__"] = module
    return module.__dict__


def _hide_our_frames() -> None:
    """Have the exception that is about to end the process shown without the frames up to ours."""
    show = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        step = trace
        while step is not None:
            if step.tb_frame.f_code.co_filename == __file__:
                trace = step.tb_next
            step = step.tb_next
        show(kind, error.with_traceback(trace), trace)

    sys.excepthook = hook


if __name__ == "__main__":
    main()
