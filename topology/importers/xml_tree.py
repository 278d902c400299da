"""XML text to a small tree with line numbers, safely.

Written on ``xml.parsers.expat`` itself: any document type declaration ends the parse, so there
are no entities to expand or to fetch (which is what ``defusedxml`` does as well, one dependency
more), and size, depth and number of elements are bounded, which it does not. NCCL writes
elements and attributes only; text between them means nothing to it and is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

from trainmesh.errors import GraphError

__all__ = ["MAX_CHARS", "Element", "parse_xml"]

MAX_CHARS = 16 * 2**20
"""Of one host's dump: some 100 kB."""
MAX_DEPTH = 32
"""Far deeper than PCI bridges are."""
MAX_ELEMENTS = 200_000
"""NCCL itself stops at 65 536."""


@dataclass(frozen=True)
class Element:
    """One element. ``where`` is ``source:line``."""

    tag: str
    attributes: dict[str, str]
    where: str
    children: list[Element] = field(default_factory=list)

    def all(self, tag: str) -> list[Element]:
        """The children called ``tag``."""
        return [child for child in self.children if child.tag == tag]

    def text(self, name: str, default: str | None = None) -> str:
        """The attribute ``name``.

        Raises:
            GraphError: there is none, and no default.
        """
        value = self.attributes.get(name, default)
        if value is None:
            raise GraphError(f"{self.where}: <{self.tag}> has no {name}; dump it again with NCCL")
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        """The attribute ``name`` as a whole number, decimal or, with 0x, hexadecimal.

        Raises:
            GraphError: it is no such number, or missing without a default.
        """
        word = self.text(name, None if default is None else str(default))
        if not re.fullmatch(r"-?(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,18})", word, re.ASCII):
            raise self.wrong(name, "a whole number")
        return int(word, 16) if "x" in word.lower() else int(word)

    def number(self, name: str, default: float) -> float:
        """The attribute ``name`` as a finite number that is not negative.

        Raises:
            GraphError: it is no such number.
        """
        word = self.text(name, str(default))
        if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{0,12})?", word, re.ASCII):
            raise self.wrong(name, "a number that is not negative")
        return float(word)

    def unknown(self, known: Mapping[str, Collection[str]]) -> Iterator[tuple[str, str]]:
        """What stands in or below it and is not ``known`` (tags by the tag they stand in), as
        words and place; what is below such an element is not looked at."""
        for child in self.children:
            if child.tag in known.get(self.tag, ()):
                yield from child.unknown(known)
            else:
                words = f"<{child.tag[:40]}> in <{self.tag[:40]}> is not known and left out"
                yield words, child.where

    def wrong(self, name: str, wanted: str) -> GraphError:
        """The complaint about an attribute."""
        value = self.attributes.get(name, "")
        return GraphError(
            f"{self.where}: {name}={value[:40]!r} of <{self.tag}> must be {wanted}; "
            "dump it again with NCCL"
        )


def parse_xml(text: str, *, source: str, root: str) -> Element:
    """The root element of ``text``, which must be called ``root``.

    Raises:
        GraphError: too large, not XML, declares a document type, nested too deeply, too many
            elements, or another root; the message begins with ``source`` and the line.
    """
    if len(text) > MAX_CHARS:
        raise GraphError(f"{source}: larger than {MAX_CHARS // 2**20} MiB; no dump of NCCL is")
    try:
        data = text.removeprefix("\ufeff").lstrip().encode()
    except UnicodeEncodeError as error:
        raise GraphError(f"{source}: not valid UTF-8; dump it again with NCCL") from error
    if not data:
        raise GraphError(f"{source}: empty; dump it again with NCCL")
    reader = _Reader(source, skipped=text[: len(text) - len(text.lstrip("\ufeff \t\r\n"))])
    found = reader.read(data)
    if found.tag != root:
        raise GraphError(f"{found.where}: the root is <{found.tag[:40]}>, not <{root}>{_HINT}")
    return found


_HINT = "; NCCL_TOPO_DUMP_FILE writes <system> (nccl-topo), NCCL_GRAPH_DUMP_FILE writes <graphs>"


class _Reader:
    def __init__(self, source: str, skipped: str) -> None:
        self._source = source
        self._first_line = skipped.count("\n")
        self._open: list[Element] = []
        self._root: Element | None = None
        self._num_elements = 0
        # The argument wins over an encoding that the text itself claims.
        self._parser = expat.ParserCreate("utf-8")
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.StartDoctypeDeclHandler = self._doctype

    def read(self, data: bytes) -> Element:
        try:
            self._parser.Parse(data, True)
        except expat.ExpatError as error:
            line = error.lineno + self._first_line
            what = expat.ErrorString(error.code)
            raise GraphError(f"{self._source}:{line}: not XML: {what}; is it cut off?") from error
        assert self._root is not None  # noqa: S101 - without one, expat finds an error
        return self._root

    def _where(self) -> str:
        return f"{self._source}:{self._parser.CurrentLineNumber + self._first_line}"

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._num_elements += 1
        if self._num_elements > MAX_ELEMENTS:
            raise GraphError(f"{self._where()}: more than {MAX_ELEMENTS} elements")
        if len(self._open) == MAX_DEPTH:
            raise GraphError(f"{self._where()}: nested more than {MAX_DEPTH} deep")
        element = Element(tag, attributes, self._where())
        if self._open:
            self._open[-1].children.append(element)
        else:
            self._root = element
        self._open.append(element)

    def _end(self, _tag: str) -> None:
        self._open.pop()

    def _doctype(self, *_: object) -> None:
        raise GraphError(
            f"{self._where()}: a document type declaration is not allowed; remove the <!DOCTYPE>"
        )
