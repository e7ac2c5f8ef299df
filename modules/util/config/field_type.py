"""Reads a field's annotation: what kind of value it holds and what to tell a user who gave another."""

import types
import typing
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

from modules.util.config.option import Option

from pydantic import BaseModel

KIND_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


@dataclass(frozen=True)
class FieldType:
    """The kind of value that a field holds.

    Attributes:
        kind: bool, int, float, str, list, dict, an enum class or a config class.
        item: for lists and dicts of configs, the config class.
        nullable: whether null is allowed.
    """

    kind: type
    item: type | None
    nullable: bool

    @property
    def is_config(self) -> bool:
        return issubclass(self.kind, BaseModel)

    @property
    def is_enum(self) -> bool:
        return issubclass(self.kind, Enum)

    @property
    def values(self) -> tuple[str, ...]:
        """The allowed values of an enum field, none for other fields."""
        return tuple(member.value for member in self.kind) if self.is_enum else ()


@cache
def field_type(config_class: type[BaseModel], name: str) -> FieldType:
    """The type of a declared field."""
    annotation = config_class.model_fields[name].annotation
    nullable = False
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        (annotation,) = (arm for arm in typing.get_args(annotation) if arm is not type(None))
        nullable = True
    kind = typing.get_origin(annotation) or annotation
    items = [arg for arg in typing.get_args(annotation) if isinstance(arg, type) and issubclass(arg, BaseModel)]
    return FieldType(kind, items[0] if items else None, nullable)


def option_of(config_class: type[BaseModel], name: str) -> Option:
    """The declaration of a field."""
    return config_class.model_fields[name].json_schema_extra["option"]


def default_of(config_class: type[BaseModel], name: str) -> Any:
    """A fresh default value of a field."""
    return config_class.model_fields[name].get_default(call_default_factory=True)


def bounds_text(declared: Option) -> str:
    """The bounds of a number in words, empty if there are none."""
    limits = {"at least": declared.ge, "more than": declared.gt, "at most": declared.le, "less than": declared.lt}
    if declared.ge is not None and declared.le is not None:
        return f"from {_number(declared.ge)} to {_number(declared.le)}"
    return " and ".join(f"{words} {_number(limit)}" for words, limit in limits.items() if limit is not None)


def expected_text(config_class: type[BaseModel], name: str) -> str:
    """What a field accepts, in words."""
    kind, declared = field_type(config_class, name), option_of(config_class, name)
    if kind.is_enum:
        text = f"one of {', '.join(kind.values)}"
    elif kind.is_config:
        text = "an object"
    else:
        text = f"{KIND_NAMES[kind.kind]}{' of objects' if kind.item and kind.kind is list else ''}"
    bounds = bounds_text(declared)
    text += f" {'of ' if bounds.startswith('at ') else ''}{bounds}" if bounds else ""
    text += ", inf for no limit" if declared.infinite else ""
    return f"{text}, or null" if kind.nullable else text


def _number(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e6 else str(value)
