"""Finds and words the first mistake in a tree that is not a valid Config.

msgspec reads the tree. This module looks only if msgspec has refused, because msgspec names neither
the key of a mapping nor the values that are allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
from msgspec import inspect

from trainmesh.serving.config.problem import ConfigPath, Problem, near
from trainmesh.serving.config.types import MODEL_NAME, NAME, NO_NUL

__all__ = ["expected", "first_mistake"]

SECRET = frozenset({"keys", "admin_keys", "url"})
"""A wrong value of these is not repeated in messages: it may be a key itself, or hold a
password."""
PATTERNS = {
    NAME: "letters, digits and . _ : / @ -, the first a letter or digit",
    NO_NUL: "no NUL character",
    MODEL_NAME: "none a control character, the first and last no space",
}


def first_mistake(value: object, kind: Any, path: ConfigPath = ()) -> Problem | None:
    """The first mistake in ``value``, which should be a ``kind``, in the order of the text.

    Args:
        value: of text, lists and mappings; numbers are text.
        kind: a struct or any annotation that occurs in one.
    """
    bare = _bare(kind)
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        found = _in_struct(value, bare, path)
    elif get_origin(bare) is dict:
        found = _in_mapping(value, bare, path)
    elif get_origin(bare) is tuple:
        found = _in_list(value, bare, path)
    else:
        found = None
    return found or _in_whole(value, kind, path)


def _in_struct(value: object, kind: type[msgspec.Struct], path: ConfigPath) -> Problem | None:
    if not isinstance(value, Mapping):
        return Problem("must be a mapping", *path)
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    for key, inner in value.items():
        if key not in fields:
            return Problem(f"unknown key{near(key, fields)}", *path, key)
        if found := first_mistake(inner, fields[key].type, (*path, key)):
            return found
    for field in fields.values():
        if field.required and field.name not in value:
            return Problem(f"{field.name} is missing; it must be {expected(field.type)}", *path)
    return None


def _in_mapping(value: object, kind: Any, path: ConfigPath) -> Problem | None:
    key_kind, inner_kind = get_args(kind)
    if not isinstance(value, Mapping):
        return None
    for key, inner in value.items():
        if not _is_valid(key, key_kind):
            return Problem(f"the name must be {expected(key_kind)}", *path, key)
        if found := first_mistake(inner, inner_kind, (*path, key)):
            return found
    return None


def _in_list(value: object, kind: Any, path: ConfigPath) -> Problem | None:
    if not isinstance(value, list):
        return None
    inner_kind = get_args(kind)[0]
    for place, inner in enumerate(value):
        if found := first_mistake(inner, inner_kind, (*path, place)):
            return found
    return None


def _in_whole(value: object, kind: Any, path: ConfigPath) -> Problem | None:
    if _is_valid(value, kind):
        return None
    shown = ""
    if isinstance(value, str) and not SECRET.intersection(path):
        shown = f", not {ascii(value[:40])}"
    return Problem(f"must be {expected(kind)}{shown}", *path)


def _is_valid(value: object, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        return False
    return True


def _bare(kind: Any) -> Any:
    """Without ``Annotated`` and ``| None``."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        [kind] = [one for one in get_args(kind) if one is not NoneType]
        return _bare(kind)
    return kind


def expected(kind: Any) -> str:
    """What may be written for ``kind``, in words."""
    return _words(inspect.type_info(kind))


def _words(info: inspect.Type) -> str:
    match info:
        case inspect.UnionType():
            return next(_words(one) for one in info.types if not isinstance(one, inspect.NoneType))
        case inspect.IntType():
            return f"a whole number{_range(info)}"
        case inspect.FloatType():
            return f"a number{_range(info)}"
        case inspect.BoolType():
            return "true or false"
        case inspect.EnumType():
            return "one of " + ", ".join(str(one.value) for one in info.cls)
        case inspect.LiteralType():
            return " or ".join(str(one) for one in info.values)
        case inspect.StrType():
            return _describe_text(info)
        case inspect.VarTupleType():
            return f"a list{_size(info, 'entry', 'entries')}"
        case _:
            return f"a mapping{_size(info, 'entry', 'entries')}"


def _describe_text(info: inspect.StrType) -> str:
    return f"text{_size(info, 'character', 'characters')}" + (
        f" ({PATTERNS[info.pattern]})" if info.pattern else ""
    )


def _range(info: inspect.IntType | inspect.FloatType) -> str:
    limits = (
        ("above", info.gt),
        ("at least", info.ge),
        ("below", info.lt),
        ("at most", info.le),
    )
    return "".join(
        f", {word} {limit if isinstance(limit, int) else format(limit, 'g')}"
        for word, limit in limits
        if limit is not None
    )


def _size(info: Any, one: str, many: str) -> str:
    least = getattr(info, "min_length", None)
    most = getattr(info, "max_length", None)
    if most is not None:
        return f" of {f'{least} to' if least else 'at most'} {most} {many}"
    return f" of at least {least} {one if least == 1 else many}" if least else ""
