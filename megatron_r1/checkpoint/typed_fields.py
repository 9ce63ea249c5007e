"""Values out of a JSON file as the fields of a dataclass: of the right type, or one message."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from megatron_r1.errors import CheckpointError, ConfigError

T = TypeVar("T")


def from_json(schema: type[T], values: Any, where: str) -> T:
    """A dataclass of plain fields, enums and further dataclasses.

    Args:
        where: file and place in it, for messages.
    Raises:
        CheckpointError: `values` is no JSON object, has an unknown field or lacks one without a
            default, or a value is of another type or impossible.
    """
    hints = get_type_hints(schema)
    check_type(values, dict, where)
    unknown = values.keys() - hints.keys()
    if unknown:
        raise CheckpointError(f"{where} is damaged: nothing is called {', '.join(sorted(unknown))}")
    fields = {key: _value(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    try:
        return schema(**fields)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{where} is damaged: {error}") from error


def check_type(value: Any, expected: type, where: str) -> None:
    """Refuse a value of another JSON type; a whole number is a float, true is no number."""
    allowed = (int, float) if expected is float else expected
    is_bool = isinstance(value, bool) and expected is not bool
    if is_bool or not isinstance(value, allowed):
        raise CheckpointError(
            f"{where} is damaged: {_shown(value)} instead of {_JSON_NAMES[expected]}. Use another "
            "checkpoint, or convert again"
        )


_JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def _value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        (hint,) = set(get_args(hint)) - {type(None)}
    if get_origin(hint) in (Sequence, tuple, list):
        check_type(value, list, where)
        return tuple(_value(get_args(hint)[0], item, where) for item in value)
    if get_origin(hint) in (Mapping, dict):
        check_type(value, dict, where)
        return {key: _value(get_args(hint)[1], item, where) for key, item in value.items()}
    if issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError as error:
            raise CheckpointError(
                f"{where} is damaged: {_shown(value)} is none of "
                + ", ".join(str(member.value) for member in hint)
            ) from error
    if hint not in _JSON_NAMES:
        return from_json(hint, value, where)
    check_type(value, hint, where)
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
