"""Finds keys that have no effect, so that a user is told about each of them."""

from collections.abc import Iterator, Mapping
from typing import Any

from modules.util.config.BaseConfig import BaseConfig, is_comment
from modules.util.config.errors import join_path, nearest
from modules.util.config.field_type import field_type
from modules.util.config.hidden_values import has_hidden
from modules.util.config.migration import OLD_SPELLINGS

UNSUPPORTED = {
    "frames": "25",
    "sample_video_format": "MP4",
    "sample_audio_format": "MP3",
    "tensorboard_always_on": False,
    "gradient_reduce_precision": "FLOAT_32_STOCHASTIC",
    "fused_gradient_reduce": True,
    "async_gradient_reduce": True,
    "async_gradient_reduce_buffer": 100,
    "cloud": {"enabled": False},
}
"""OneTrainer's top-level keys that this trainer has no option for -> a value at which nothing is lost without it."""


HIDDEN = "looks like a secret, so no file gets it: give tokens with --secrets-path or under secrets"


def unknown_keys(config: BaseConfig, path: str = "") -> Iterator[tuple[str, str]]:
    """Path and hint (may be empty) of every key in a config and its sections that no option was declared for."""
    for key, value in (config.__pydantic_extra__ or {}).items():
        if is_comment(key) or (not path and key in UNSUPPORTED and _is_idle(value, UNSUPPORTED[key])):
            continue
        yield join_path(path, key), HIDDEN if has_hidden({key: value}) else _hint(type(config), key, at_top=not path)
    for name in type(config).model_fields:
        value = getattr(config, name)
        items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        for key, item in ((name, value), *((join_path(name, key), item) for key, item in items)):
            if isinstance(item, BaseConfig):
                yield from unknown_keys(item, join_path(path, key))


def unknown_keys_warning(config: BaseConfig | list, source: str) -> str | None:
    """One line that names all unknown keys of a config (or a list of configs) with the nearest spellings, or None."""
    found = (
        list(unknown_keys(config))
        if isinstance(config, BaseConfig)
        else [(path, hint) for index, item in enumerate(config) for path, hint in unknown_keys(item, str(index))]
    )
    if not found:
        return None
    names = ", ".join(f"{path} ({hint})" if hint else path for path, hint in found)
    head = "1 unknown key has" if len(found) == 1 else f"{len(found)} unknown keys have"
    return f"{source}: {head} no effect, but will be kept when the file is saved: {names}"


def _is_idle(value: Any, idle: Any) -> bool:
    if isinstance(idle, dict):
        return isinstance(value, dict) and all(value.get(key, entry) == entry for key, entry in idle.items())
    return value == idle


def _hint(config_class: type[BaseConfig], key: str, at_top: bool) -> str:
    if at_top and key in UNSUPPORTED:
        return "an option of OneTrainer that this trainer does not have"
    if key in OLD_SPELLINGS:
        return f"an old spelling, write {OLD_SPELLINGS[key]}"
    inside = [
        name
        for name in config_class.model_fields
        if field_type(config_class, name).is_config and key in field_type(config_class, name).kind.model_fields
    ]
    if len(inside) == 1:
        return f"it belongs into {inside[0]}: {inside[0]}.{key}"
    near = nearest(key, config_class.model_fields)
    return f"did you mean {near}?" if near else ""
