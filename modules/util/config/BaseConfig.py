import copy
import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, ClassVar, Self

from modules.util.config.errors import ConfigError, Problem, nearest
from modules.util.config.field_type import default_of, field_type, option_of
from modules.util.config.hidden_values import without_hidden
from modules.util.config.problems import find_problems

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

VERSION_KEY = "__version"
COMMENT_PREFIXES = ("//", "__comment")


def is_comment(key: str) -> bool:
    """Whether a key of a JSON object is a comment, which is kept and never reported."""
    return key.startswith(COMMENT_PREFIXES)


class BaseConfig(BaseModel):
    """A section of the config: strict about the options it declares, keeps the keys that it does not know.

    Every field is declared with `option` or `nested`, which also carry its title, help and bounds. Assigning a wrong
    value, or to a name that is not an option, raises.
    """

    model_config = ConfigDict(
        extra="allow", strict=True, validate_assignment=True, allow_inf_nan=False, protected_namespaces=()
    )

    FORMAT_VERSION: ClassVar[int | None] = None
    """Version of the JSON that OneTrainer's current files carry; None if this section has none worth writing."""

    MIGRATIONS: ClassVar[Mapping[int, Callable[[dict], dict]]] = {}
    """Version -> function that turns JSON of that version into JSON of the next one."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "") -> Self:
        """Validates parsed JSON; keys that it lacks take their defaults.

        Raises:
            ConfigError: naming every wrong key.
        """
        if isinstance(data, cls):
            data = data.to_dict(secrets=True)
        try:
            return cls.model_validate(copy.deepcopy(data))
        except ValidationError as error:
            raise ConfigError(find_problems(cls, error), source) from None

    @classmethod
    def upgrade(cls, data: dict) -> dict:
        """Brings the JSON of an older version to the current one. JSON without a version counts as current."""
        data = dict(data)
        version = data.pop(VERSION_KEY, None)
        if version is None:
            return data
        if isinstance(version, bool) or not isinstance(version, int) or version < 0:
            raise ConfigError(Problem(VERSION_KEY, f"found {version!r}, expected a whole number of at least 0"))
        while version in cls.MIGRATIONS:
            data = cls.MIGRATIONS[version](data)
            version += 1
        return data

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Default of every option, by its name."""
        return {name: default_of(cls, name) for name in cls.model_fields}

    def applies(self, name: str) -> bool:
        """Whether an option matters, given the values of the options that its `visible_when` names."""
        return all(getattr(self, key) in values for key, values in option_of(type(self), name).visible_when.items())

    def to_dict(self, secrets: bool = False, sparse: bool = False) -> dict[str, Any]:
        """The config as JSON: options in the order of their declaration, then unknown keys in the file's order.

        Args:
            secrets: includes options that are declared secret, and what looks like a secret in unknown keys.
            sparse: leaves out options that have their default value, as presets do.
        """
        return self._to_dict(secrets, sparse, {})

    def _to_dict(self, secrets: bool, sparse: bool, sparse_defaults: Mapping[str, Any]) -> dict[str, Any]:
        extra = dict(self.__pydantic_extra__ or {})
        data = {VERSION_KEY: self.FORMAT_VERSION} if self.FORMAT_VERSION is not None and not sparse else {}
        for name in type(self).model_fields:
            declared, value = option_of(type(self), name), getattr(self, name)
            if declared.secret and not secrets:
                continue
            comment = f"//{name}"
            if isinstance(value, BaseConfig):
                written = value._to_dict(secrets, sparse, declared.sparse)
                if sparse and not written:
                    if default_of(type(self), name) is not None:
                        continue
                    # an empty object would be read as null
                    first = next(iter(type(value).model_fields))
                    written = {first: _to_json(getattr(value, first), secrets, sparse)}
            else:
                default = sparse_defaults[name] if name in sparse_defaults else default_of(type(self), name)
                if sparse and value == default:
                    continue
                written = _to_json(value, secrets, sparse)
            if comment in extra:
                data[comment] = extra.pop(comment)
            data[name] = written
        return data | (copy.deepcopy(extra) if secrets else without_hidden(extra))

    @model_validator(mode="before")
    @classmethod
    def _upgrade_json(cls, data: Any) -> Any:
        if not isinstance(data, dict) or VERSION_KEY not in data:
            return data
        try:
            return cls.upgrade(data)
        except ConfigError as error:
            raise PydanticCustomError("config", "{text}", {"text": str(error)}) from None

    @field_validator("*", mode="before")
    @classmethod
    def _read_json(cls, value: Any, info: ValidationInfo) -> Any:
        """Accepts what JSON writes differently: enum values, 1.0 for a whole number, "inf", sparse objects."""
        kind, declared = field_type(cls, info.field_name), option_of(cls, info.field_name)
        if kind.is_enum and isinstance(value, str) and value in kind.values:
            return kind.kind(value)
        if declared.path and isinstance(value, str) and "\0" in value:
            raise PydanticCustomError("config", "found a text with a null byte, which no path can have")
        if kind.kind is int and isinstance(value, float) and value.is_integer():
            return int(value)
        if kind.kind is float and declared.infinite and isinstance(value, str) and value in ("inf", "-inf"):
            return float(value)
        if kind.kind is float and isinstance(value, float) and math.isnan(value):
            raise PydanticCustomError("finite_number", "not a number")
        if kind.is_config and isinstance(value, dict):
            return {**declared.sparse, **value} if value or not kind.nullable else None
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in type(self).model_fields:
            near = nearest(name, type(self).model_fields)
            raise AttributeError(
                f"{type(self).__name__} has no option {name!r}" + (f"; did you mean {near!r}?" if near else "")
            )
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            raise ConfigError(find_problems(type(self), error)) from None


def _to_json(value: Any, secrets: bool, sparse: bool) -> Any:
    if isinstance(value, BaseConfig):
        return value.to_dict(secrets, sparse)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    if isinstance(value, list):
        return [_to_json(item, secrets, sparse) for item in value]
    if isinstance(value, dict):
        kept = value if secrets else without_hidden(value)
        return {key: _to_json(item, secrets, sparse) for key, item in kept.items()}
    return value
