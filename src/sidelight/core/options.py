"""Checks that configuration dataclasses run when they are built, so that a mistake in a recipe is named at
once.
"""

from __future__ import annotations

import types
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_types(config: Any) -> None:
    """Compare each field of a dataclass with its annotation; ValueError names the field, the wish and the
    value.

    Understands int, float, bool, str, ``Literal``, ``X | None`` and tuples of these. What a YAML or JSON
    file cannot tell apart is converted in place: a list to a tuple, a whole number to a float where one is
    annotated.
    """
    hints = get_type_hints(type(config))
    for field in fields(config):
        value = getattr(config, field.name)
        fitted, ok = _fit(value, hints[field.name])
        if not ok:
            raise ValueError(
                f"{type(config).__name__}.{field.name} must be {_describe(hints[field.name])}, got {value!r}"
            )
        if fitted is not value:
            object.__setattr__(config, field.name, fitted)


def require(config: Any, condition: bool, name: str, expected: str) -> None:
    """ValueError that field ``name`` must be ``expected``, unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{type(config).__name__}.{name} must be {expected}, got {getattr(config, name)!r}")


def _fit(value: Any, hint: Any) -> tuple[Any, bool]:
    """The value, converted if need be, and whether it fits the annotation."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value, any(value == choice and type(value) is type(choice) for choice in inside)
    if origin in (Union, types.UnionType):
        tried = [_fit(value, choice) for choice in inside]
        return next(((fitted, ok) for fitted, ok in tried if ok), (value, False))
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return value, False
        parts = inside[:1] * len(value) if inside[1:] == (Ellipsis,) else inside
        if len(parts) != len(value):
            return value, False
        tried = [_fit(item, part) for item, part in zip(value, parts, strict=True)]
        fitted = tuple(item for item, _ in tried)
        return (value if fitted == value else fitted), all(ok for _, ok in tried)
    if hint is float:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return (float(value) if whole else value), whole or isinstance(value, float)
    if hint is int:
        return value, isinstance(value, int) and not isinstance(value, bool)
    if hint is None or hint is types.NoneType:
        return value, value is None
    return value, not isinstance(hint, type) or isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in inside)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(choice) for choice in inside)
    if origin is tuple:
        return "a list of " + ", ".join(_describe(part) for part in inside if part is not Ellipsis)
    names = {
        float: "a number",
        int: "a whole number",
        bool: "true or false",
        str: "text",
        types.NoneType: "none",
    }
    return names.get(hint, str(hint))
