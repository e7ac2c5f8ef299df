"""Single values set from the command line: optimizer.beta1=0.95"""

from collections.abc import Sequence
from typing import Any

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.errors import ConfigError, Problem, join_path, nearest, show_value
from modules.util.config.field_type import FieldType, field_type
from modules.util.config.problems import is_finite_number
from modules.util.config.read_json import loads


def apply_overrides(data: dict, config_class: type[BaseConfig], overrides: Sequence[str]) -> None:
    """Sets values in the JSON of a config.

    Args:
        data: the JSON, changed in place.
        config_class: the config that it will be read as.
        overrides: texts `path=value`. The path has dots between keys and list indices; the value is JSON, or else
            taken as a text.

    Raises:
        ConfigError: for a text without "=", an unknown key or an index that is out of range.
    """
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"override {show_value(text)}: expected key=value, as in optimizer.beta1=0.95")
        keys = path.strip().split(".")
        try:
            _set_in_config(data, config_class, keys, value, "")
        except ConfigError as error:
            raise error.within("override") from None


def _set_in_config(data: dict, config_class: type[BaseConfig], keys: list[str], value: str, path: str) -> None:
    key, rest = keys[0], keys[1:]
    if key not in config_class.model_fields:
        near = nearest(key, config_class.model_fields)
        hint = f"; did you mean {join_path(path, near)}?" if near else ""
        raise ConfigError(Problem(join_path(path, key), f"there is no such option{hint}"))
    kind, path = field_type(config_class, key), join_path(path, key)
    if not rest:
        data[key] = _parse(value, kind)
    elif kind.is_config:
        if data.get(key) is None:
            data[key] = {}
        _set_in_config(_require(data[key], dict, path), kind.kind, rest, value, path)
    elif kind.kind is list:
        if data.get(key) is None:
            raise ConfigError(Problem(path, "is not in this file, so its entries cannot be changed one by one"))
        _set_in_list(_require(data[key], list, path), kind.item, rest, value, path)
    elif kind.kind is dict:
        if data.get(key) is None:
            data[key] = {}
        _set_in_dict(_require(data[key], dict, path), kind.item, rest, value, path)
    else:
        raise ConfigError(Problem(path, f"holds a single value and has no option {'.'.join(rest)!r}"))


def _set_in_list(data: list, item: type[BaseConfig] | None, keys: list[str], value: str, path: str) -> None:
    # Python reads no number of thousands of digits
    if not (keys[0].isascii() and keys[0].isdigit() and len(keys[0]) < 10 and int(keys[0]) < len(data)):
        has = f"entries 0 to {len(data) - 1}" if data else "no entries"
        raise ConfigError(Problem(join_path(path, keys[0]), f"there is no such entry; {path} has {has}"))
    _set_item(data, int(keys[0]), item, keys[1:], value, join_path(path, keys[0]))


def _set_in_dict(data: dict, item: type[BaseConfig] | None, keys: list[str], value: str, path: str) -> None:
    if keys[1:]:
        data.setdefault(keys[0], {})
    _set_item(data, keys[0], item, keys[1:], value, join_path(path, keys[0]))


def _set_item(data: Any, key: Any, item: type[BaseConfig] | None, rest: list[str], value: str, path: str) -> None:
    if not rest:
        data[key] = _parse(value, None)
    elif item is not None:
        _set_in_config(_require(data[key], dict, path), item, rest, value, path)
    elif isinstance(data[key], list):
        _set_in_list(data[key], None, rest, value, path)
    else:
        _set_in_dict(_require(data[key], dict, path), None, rest, value, path)


def _require(value: Any, kind: type, path: str) -> Any:
    if not isinstance(value, kind):
        raise ConfigError(
            Problem(path, f"holds {show_value(value)}, expected {'an object' if kind is dict else 'a list'}")
        )
    return value


def _parse(text: str, kind: FieldType | None) -> Any:
    try:
        value = loads(text)
    except (ValueError, RecursionError):
        # .5 and 1. are numbers to people, if not to JSON
        return float(text) if kind is not None and kind.kind in (int, float) and is_finite_number(text) else text
    if kind is not None and kind.kind is str and not isinstance(value, str) and not (value is None and kind.nullable):
        return text
    return value
