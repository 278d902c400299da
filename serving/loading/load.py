"""serve.yaml to a Config: read, typed, checked against itself and this machine, filled in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from trainmesh.bounded_read import read_bounded
from trainmesh.errors import ConfigError, GraphError
from trainmesh.serving.config.mistakes import first_mistake
from trainmesh.serving.config.problem import Problem, path_text
from trainmesh.serving.config.types import Config
from trainmesh.serving.loading.checks import check
from trainmesh.serving.loading.complete import complete
from trainmesh.topology.document.text import Document, parse

__all__ = ["MAX_BYTES", "load", "loads"]

MAX_BYTES = 8 * 2**20


def load(path: Path, environ: Mapping[str, str], policies: Collection[str] | None = None) -> Config:
    """Read and check a configuration.

    What comes back is complete: every endpoint has a name, files are absolute (they are written
    relative to the folder of ``path``), and keys are digests only, so it may be written down
    for the workers.

    Args:
        path: the file; YAML or JSON.
        environ: where ``env:NAME`` and ``api_key_env`` are looked up.
        policies: names of the policies there are; None: not checked.

    Raises:
        ConfigError: it can't be read or something in it is wrong; one line with file, line,
            place and what may be written instead.
    """
    try:
        data = read_bounded(path, MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    return loads(data, path, environ, policies)


def loads(
    data: bytes, path: Path, environ: Mapping[str, str], policies: Collection[str] | None = None
) -> Config:
    """The same for the bytes of a file that was read already.

    Raises:
        ConfigError: as ``load``.
    """
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES // 2**20} MiB")
    try:
        document = parse(data.decode(), source=str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8") from error
    except GraphError as error:  # the reader's word for any text it refuses
        raise ConfigError(str(error)) from error
    try:
        config = complete(_typed(document.root), path.absolute().parent, environ)
        check(config, policies)
    except Problem as problem:
        raise ConfigError(f"{path}:{_line(document, problem)}: {_words(problem)}") from problem
    return config


def _typed(root: object) -> Config:
    try:
        return msgspec.convert(root, Config, strict=False)
    except msgspec.ValidationError as error:
        raise (first_mistake(root, Config) or Problem(str(error))) from error


def _line(document: Document, problem: Problem) -> int:
    """Of the value, or of the nearest around it that is in the text."""
    for end in range(len(problem.path), 0, -1):
        if (line := document.line(problem.path[:end])) > 1:
            return line
    return 1


def _words(problem: Problem) -> str:
    return f"{path_text(problem.path)}: {problem.text}" if problem.path else problem.text
