"""Checks of values, which configuration dataclasses run when they are built: a mistake in a recipe is named at once."""

from __future__ import annotations

import math
import types
from dataclasses import fields
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

import numpy as np


def is_finite_number(value: object) -> TypeGuard[float]:
    """Check whether a value is a finite number, of Python or NumPy; true and false are not numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number with more than 308 digits
        return False


def check_types(config: Any) -> None:
    """Check each field of a dataclass against its annotation: int, float, bool, str, ``Literal``, ``X | None``, tuples.

    YAML and JSON have no tuples and write 1.0 as 1, so a list is converted to a tuple, and a whole number to a float
    where the annotation says so. Both are converted in place.

    Raises:
        ValueError: naming the field, the expected type and the value.
    """
    hints = get_type_hints(type(config))
    for field in fields(config):
        value = getattr(config, field.name)
        fitted, ok = _fit(value, hints[field.name])
        if not ok:
            raise ValueError(
                f"{type(config).__name__}.{field.name} must be {describe(hints[field.name])}, got {value!r}"
            )
        if fitted is not value:
            object.__setattr__(config, field.name, fitted)


def require(config: Any, condition: bool, name: str, expected: str) -> None:
    """Raise a ValueError that the field ``name`` must be ``expected``, unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{type(config).__name__}.{name} must be {expected}, got {getattr(config, name)!r}")


def check_threads(config: Any) -> None:
    """Check the field ``threads``: PyTorch fails without a sentence for numbers that the system cannot give."""
    require(config, 0 <= config.threads <= 1024, "threads", "between 0 and 1024")


def _fit(value: Any, hint: Any) -> tuple[Any, bool]:
    """Return the value, converted if need be, and whether it fits the annotation."""
    origin, parameters = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value, any(value == choice and type(value) is type(choice) for choice in parameters)
    if origin in (Union, types.UnionType):
        results = [_fit(value, choice) for choice in parameters]
        return next(((fitted, ok) for fitted, ok in results if ok), (value, False))
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return value, False
        hints = parameters[:1] * len(value) if parameters[1:] == (Ellipsis,) else parameters
        if len(hints) != len(value):
            return value, False
        results = [_fit(item, item_hint) for item, item_hint in zip(value, hints, strict=True)]
        fitted = tuple(item for item, _ in results)
        return (value if fitted == value else fitted), all(ok for _, ok in results)
    if origin is list:  # Python 3.10 takes list[int] for a type and then fails at isinstance
        is_list = isinstance(value, (list, tuple))
        return value, is_list and all(_fit(item, parameters[0])[1] for item in value)
    if hint is float:
        is_int = isinstance(value, int) and is_finite_number(value)
        return (float(value) if is_int else value), is_finite_number(value)
    if hint is int:
        return value, isinstance(value, int) and not isinstance(value, bool)
    if hint is None or hint is types.NoneType:
        return value, value is None
    return value, not isinstance(hint, type) or isinstance(value, hint)


def literals(hint: Any) -> list[Any]:
    """Return the values that the ``Literal`` types in an annotation allow."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [choice for part in get_args(hint) for choice in literals(part)]


def describe(hint: Any) -> str:
    """Return in words what an annotation allows: "a whole number or none", for messages."""
    origin, parameters = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in parameters)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(choice) for choice in parameters)
    if origin is list:
        return f"a list of {describe(parameters[0]).removeprefix('a ')}s"
    if origin is tuple:
        return "a list of " + ", ".join(describe(part) for part in parameters if part is not Ellipsis)
    names = {
        float: "a finite number",
        int: "a whole number",
        bool: "true or false",
        str: "text",
        types.NoneType: "none",
    }
    return "none" if hint is types.NoneType else names.get(hint, str(hint))
