"""A tenant's rule: a CEL expression over ``request``, ``tenant`` and ``endpoint``.

Evaluated by cel-expr-python, Google's C++ implementation: it checks names and types when a rule
is compiled, reports errors as values, limits depth (32) and comprehensions (10 000 steps) and
uses RE2, so no rule and no request can hang or crash a worker. A rule is compiled against each
subset of the variables once, which tells what it reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from cel_expr_python import cel

from trainmesh.errors import ConfigError

__all__ = ["ENDPOINT", "REQUEST", "TENANT", "Rule"]

_TEXT, _WHOLE, _NUMBER, _TRUTH = cel.Type.STRING, cel.Type.INT, cel.Type.DOUBLE, cel.Type.BOOL
TENANT: Mapping[str, cel.Type] = {
    "tenant.name": _TEXT,
    "tenant.roles": cel.Type.List(_TEXT),
    "tenant.priority": _WHOLE,
}
ENDPOINT: Mapping[str, cel.Type] = {
    "endpoint.name": _TEXT,
    "endpoint.url": _TEXT,
    "endpoint.node": _TEXT,
    "endpoint.zone": _TEXT,
    "endpoint.revision": _TEXT,
    "endpoint.runtime": _TEXT,
    "endpoint.weight": _NUMBER,
    "endpoint.standby": _TRUTH,
}
REQUEST: Mapping[str, cel.Type] = {
    "request.model": _TEXT,
    "request.prompt_tokens": _WHOLE,
    "request.output_tokens": _WHOLE,
    "request.nbytes": _WHOLE,
    "request.stream": _TRUTH,
    "request.priority": _WHOLE,
}
_VARIABLES = {**TENANT, **ENDPOINT, **REQUEST}
_PLACE = re.compile(r"<input>:-?\d+:(-?\d+): (.*)")


class Rule:
    """One compiled rule.

    Attributes:
        reads: the variables in it, such as ``endpoint.zone``.
    """

    def __init__(self, text: str) -> None:
        """Compile ``text``.

        Raises:
            ConfigError: not CEL, an unknown name, types that don't fit, or not true or false.
        """
        self.text = text
        try:
            self._expression = _compile(text)
        except RuntimeError as error:
            raise ConfigError(_words(str(error))) from error
        kind = self._expression.return_type()
        if kind != _TRUTH:
            raise ConfigError(f"must be true or false, but is a value of type {kind.name()}")
        self.reads = frozenset(
            name
            for name in _VARIABLES
            if name.partition(".")[2] in text and not self._compiles_without(name)
        )

    def _compiles_without(self, name: str) -> bool:
        try:
            _compile(self.text, without=name)
        except RuntimeError:
            return False
        return True

    def refusal(self, values: Mapping[str, object]) -> str:
        """Why the rule refuses, in words; empty where it allows. An error refuses too.

        Args:
            values: of all variables that the rule reads.
        """
        try:
            result = self._expression.eval(data=values)
        except RuntimeError as error:  # its budget of steps is used up
            return f"its rule failed: {_first_line(str(error))}"
        if result.type() == _TRUTH:
            return "" if result.value() else "its rule says no"
        return f"its rule failed: {_first_line(str(result.value()))}"


@cache
def _environment(without: str) -> cel.Env:
    return cel.NewEnv(variables={n: kind for n, kind in _VARIABLES.items() if n != without})


def _compile(text: str, *, without: str = "") -> cel.Expression:
    try:
        return _environment(without).compile(text)
    except TypeError as error:  # a surrogate, which the C++ side can't take
        raise RuntimeError("it holds half of a character") from error


def _words(message: str) -> str:
    if found := _PLACE.search(message):
        column = int(found[1])
        where = f" at its character {column}" if column > 0 else ""
        return f"not a usable CEL expression{where}: {_first_line(found[2])[:200]}"
    return f"not a usable CEL expression: {_first_line(message)[:200]}"


def _first_line(message: str) -> str:
    line = message.split("\n", 1)[0]
    line = re.sub(r"^[A-Z_]+: |\(in container ''\)|\[[A-Z_]+\]$", "", line)
    return ascii(line.strip())[1:-1].replace("\\'", "'")
