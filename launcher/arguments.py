"""What the arguments of all commands have in common: how a mistake is reported, and the types of
values."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from trainmesh.console import clean, write_error
from trainmesh.errors import ConfigError
from trainmesh.store.address import parse_url

__all__ = ["Parser", "add_etcd", "etcd_url", "file_path", "file_to_write"]


class Parser(argparse.ArgumentParser):
    """Reports a usage error in one line instead of the whole usage, in the name of the command
    that was chosen. Every parser has ``--debug``, so it may stand before or after any command."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.set_defaults(chosen_parser=self)  # that of an inner command comes last
        if "-" in self.prefix_chars:
            self.add_argument(
                "--debug",
                action="store_true",
                default=argparse.SUPPRESS,  # so that it does not undo one before the command
                help="show the traceback of an error",
            )

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Like ``parse_args``; leftover words are an error of the innermost command."""
        found, left = self.parse_known_args(words)
        chosen: Parser = found.chosen_parser
        del found.chosen_parser
        found.debug = "debug" in found
        if left:
            chosen.error(f"unrecognized arguments: {' '.join(left)}")
        return found

    def error(self, message: str) -> NoReturn:
        write_error(f"{self.prog}: error: {clean(message)} (see {self.prog} --help)\n")
        self.exit(ConfigError.exit_code)


def file_path(text: str) -> Path:
    """The type of an argument that names a file or directory."""
    if not text:
        raise argparse.ArgumentTypeError("the name of a file is empty")
    return Path(text)


def file_to_write(*suffixes: str) -> Callable[[str], Path]:
    """The type of an argument that names a file to write in one of the formats ``suffixes``. A
    name without one, such as that of a device, says nothing of the format."""

    def path(text: str) -> Path:
        found = file_path(text)
        if text.endswith(("/", "/.")):
            raise argparse.ArgumentTypeError(f"{text!r} names a folder; give the name of a file")
        if found.suffix and found.suffix.lower() not in suffixes:
            raise argparse.ArgumentTypeError(
                f"{text!r}: {found.suffix} can't be written, only {' and '.join(suffixes)}"
            )
        return found

    return path


def etcd_url(text: str) -> str:
    """The type of an argument that says where an etcd is."""
    try:
        parse_url(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def add_etcd(add: Callable[..., object], use: str) -> None:
    """``--etcd`` and ``--insecure-etcd``, by a parser's or group's ``add_argument``; ``use`` is
    the help of the first."""
    add(
        "--etcd",
        metavar="URL",
        type=etcd_url,
        default=os.environ.get("TRAINMESH_ETCD") or None,
        help=use,
    )
    add(
        "--insecure-etcd",
        action="store_true",
        help="send etcd's password to another machine in plain text",
    )
