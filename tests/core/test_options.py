"""Check the checks of configuration dataclasses and of finite numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from sidelight.core.options import check_types, is_finite_number, require


@dataclass(frozen=True, kw_only=True)
class Example:
    count: int = 1
    share: float = 0.5
    kind: Literal["a", "b"] = "a"
    order: tuple[str, ...] = ("x",)
    pair: tuple[int, float] = (1, 2.0)
    limit: float | None = None
    on: bool = True
    name: str = ""
    levels: int | list[int] = 4

    def __post_init__(self) -> None:
        check_types(self)
        require(self, self.count > 0, "count", "above 0")


def test_defaults_and_conversions() -> None:
    assert Example() == Example(order=("x",))
    assert Example(order=["y", "z"]).order == ("y", "z")  # type: ignore[arg-type]
    assert Example(order=()).order == ()
    assert isinstance(Example(share=1).share, float)
    assert Example(limit=3).limit == 3.0
    assert Example(levels=[1, 2]).levels == [1, 2]
    assert isinstance(Example(limit=3).limit, float)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": "1e-4"}, "Example.count must be a whole number, got '1e-4'"),
        ({"count": True}, "whole number"),
        ({"count": 2.0}, "whole number"),
        ({"count": 0}, "above 0, got 0"),
        ({"share": "0.5"}, "a finite number"),
        ({"share": None}, "a finite number"),
        ({"kind": "c"}, "one of 'a', 'b', got 'c'"),
        ({"order": "x"}, "a list of text"),
        ({"order": [1]}, "a list of text"),
        ({"pair": (1,)}, "a list of a whole number, a finite number"),
        ({"limit": "no"}, "a finite number or none"),
        ({"on": 1}, "true or false"),
        ({"name": 3}, "text"),
        ({"levels": "4"}, "a whole number or a list of whole numbers, got '4'"),
        ({"levels": [1, "2"]}, "a whole number or a list of whole numbers"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Example(**changes)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, False),
        (0, True),
        (-1.5, True),
        (10**400, False),
        (float("nan"), False),
        (float("-inf"), False),
        (True, False),
        ("1", False),
        (1 + 0j, False),
        ([1.0], False),
        (np.int8(3), True),
        (np.float16(0.5), True),
        (np.float32("inf"), False),
        (np.float64("nan"), False),
        (np.bool_(True), False),
        (np.array(1.0), False),
    ],
)
def test_finite_numbers(value: Any, expected: bool) -> None:
    assert is_finite_number(value) is expected
