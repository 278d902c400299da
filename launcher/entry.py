"""The program ``trainmesh``: what it does before anything is imported, and how it ends.

Ctrl-C while Python imports is quiet, a closed standard stream does no harm, and the user's modules
in the working directory or on PYTHONPATH hide neither ours nor those of our libraries.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

__all__ = ["main"]

STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}


def main() -> NoReturn:
    """Entry point; ends the process with the command's exit code, or by the signal that ended it
    (a negative code)."""
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _occupy_closed_streams()

    if getattr(sys.modules["trainmesh"], "__file__", None) is None:
        # A folder of the user's that is called so, such as the one of a clone, was found first.
        from trainmesh.hooks.patch import import_trainmesh

        import_trainmesh()

    from trainmesh.launcher import own_modules

    own_modules.come_first()

    from trainmesh.launcher import cli, standard_output
    from trainmesh.launcher.run import signals

    standard_output.install()
    if interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        code = cli.main()
    except KeyboardInterrupt:
        code = -signal.SIGINT
    if code < 0:
        signals.end_by(-code)
    signals.end_undisturbed()
    sys.exit(code)


def _occupy_closed_streams() -> None:
    """A stream that was closed before we started becomes /dev/null, for us alone: what we print
    goes nowhere, no file of ours gets its number, and to processes that we start it is closed."""
    for name, mode in STREAMS.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - as long as we live
