"""Check YAML before it is read: a small file must not become a huge value, and nothing in it may be lost.

YAML can name a part and repeat it. A few hundred bytes that repeat parts of parts stand for billions of values, a part
that repeats itself never ends, and of two fields of one name a reader silently keeps the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml  # type: ignore[import-untyped]  # comes with jsonargparse, without types

LARGEST = 1 << 20
"""Most characters of a file."""
DEEPEST = 32
"""Most levels of lists and sections within each other."""
MOST_VALUES = 100_000
"""Most values of a file, repeated ones counted as often as they are repeated."""


def load_yaml(text: str) -> Any:
    """Return the value of a YAML text: plain values, lists and dictionaries.

    Raises:
        ValueError: if the text is no YAML, or :func:`check_yaml` refuses it; the sentence names no file.
    """
    import yaml

    check_yaml(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(_not_yaml(error)) from None


def check_yaml(text: str) -> None:
    """Check a YAML text without building its values.

    Raises:
        ValueError: if the text is no YAML, is larger or deeper than the limits above, has a part that contains itself,
            or has a section with two fields of one name; says in which line.
    """
    import yaml

    if len(text) > LARGEST:
        raise ValueError(
            f"this file has {len(text):,} characters, more than the limit of {LARGEST:,}; shorten the file"
        )
    try:
        _check_depth(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(_not_yaml(error)) from None
    if root is not None:
        count = _count_values(root, {}, set())
        if count > MOST_VALUES:
            raise ValueError(
                f"this file has {_rounded(count)} values, because parts of it are repeated with *; the limit is "
                f"{MOST_VALUES:,}: write the values out"
            )


def _check_depth(text: str) -> None:
    """Refuse deep nesting; the events of YAML are read without recursion."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            line = event.start_mark.line + 1
            raise ValueError(f"this file is nested more than {DEEPEST} levels deep in line {line}; remove the nesting")


def _count_values(node: yaml.Node, counts: dict[int, int], parents: set[int]) -> int:
    """Return the number of values in a node, repeated ones counted again; refuse loops and double fields.

    Args:
        node: the node.
        counts: the numbers of the nodes so far, by the id of a node: a repeated node is the same object.
        parents: the ids of the nodes around this one.
    """
    import yaml

    if id(node) in parents:
        raise ValueError(
            f"this file has a part that contains itself in line {node.start_mark.line + 1}; write the values out"
        )
    if id(node) not in counts:
        count = 1
        if isinstance(node, yaml.MappingNode):
            _require_single_fields(node)
        if not isinstance(node, yaml.ScalarNode):
            parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
            count += sum(_count_values(part, counts, parents | {id(node)}) for part in parts)
        counts[id(node)] = count
    return counts[id(node)]


def _require_single_fields(node: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key.value, str):  # a list as the name of a field
            continue
        name, line = (key.tag, key.value), key.start_mark.line + 1
        if name in lines:
            raise ValueError(
                f"this file has the field {key.value[:80]!r} twice, in lines {lines[name]} and {line}; remove one of "
                "them"
            )
        lines[name] = line


def _rounded(count: int) -> str:
    """Return a number that may be astronomical."""
    return f"{count:,}" if count < 10**12 else f"about 10^{len(str(count)) - 1}"


def _not_yaml(error: Exception) -> str:
    return f"this file is not valid YAML: {' '.join(str(error).split())}"
