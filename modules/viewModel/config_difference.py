"""In which options configs differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.field_type import field_type, option_of
from modules.util.config.TrainConfig import TrainConfig
from modules.viewModel.field_text import shown_value
from modules.viewModel.option_titles import title_of_path
from modules.viewModel.value_names import value_name

Defaults = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Difference:
    """An option that is not the same in all configs.

    Attributes:
        path: of the option, by its keys.
        title: for people.
        values: of each config, for people.
        matters: whether the trained weights depend on it.
    """

    path: str
    title: str
    values: tuple[str, ...]
    matters: bool


def differences(configs: Sequence[TrainConfig], defaults: Defaults | None = None) -> list[Difference]:
    """The options that differ, those first that the result depends on, each kind in the order of a form.

    Args:
        configs: two or more.
        defaults: optimizer -> option -> what it works with where the config's own is null; None if that is not known.
    """
    flat = [dict(_flat(config, defaults or {})) for config in configs]
    paths = list(dict.fromkeys(path for one in flat for path in one))
    found = []
    for path in paths:
        values = [one[path][0] if path in one else None for one in flat]
        if any(value != values[0] for value in values[1:]):
            matters = next(one[path][1] for one in flat if path in one)
            there = tuple(one[path][2] if path in one else "–" for one in flat)
            found.append(Difference(path, title_of_path(TrainConfig, path), there, matters))
    return sorted(found, key=lambda one: not one.matters)


def _flat(
    config: BaseConfig, defaults: Defaults, prefix: str = "", matters: bool = True
) -> Iterator[tuple[str, tuple[Any, bool, str]]]:
    """Path -> value, whether it matters, and how it is shown; of lists each item has paths of its own."""
    usual = defaults.get(str(config.optimizer.optimizer), {}) if isinstance(config, TrainConfig) else {}
    for name in type(config).model_fields:
        declared, value, path = option_of(type(config), name), getattr(config, name), f"{prefix}{name}"
        own = matters and declared.affects_result
        if declared.secret or name == "optimizer_defaults":
            # what other optimizers were set to is no part of the run
            continue
        if isinstance(value, BaseConfig):
            yield from _flat_with(value, usual if path == "optimizer" else {}, f"{path}.", own)
        elif isinstance(value, list) and any(isinstance(item, BaseConfig) for item in value):
            for place, item in enumerate(value):
                yield from _flat(item, {}, f"{path}.{place}.", own)
        else:
            yield path, (value, own, _shown(type(config), name, value))


def _flat_with(
    config: BaseConfig, usual: Mapping[str, Any], prefix: str, matters: bool
) -> Iterator[tuple[str, tuple[Any, bool, str]]]:
    """The same of a nested config, with what an optimizer works with in place of null."""
    for path, (value, own, shown) in _flat(config, {}, prefix, matters):
        name = path.removeprefix(prefix)
        if value is None and usual.get(name) is not None:
            value, shown = usual[name], _shown(type(config), name, usual[name])
        yield path, (value, own, shown)


def _shown(owner: type[BaseConfig], name: str, value: Any) -> str:
    named = value_name(field_type(owner, name).kind, str(value)) if isinstance(value, str) else None
    return named or shown_value(value)
