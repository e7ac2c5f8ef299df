"""Words about options, made from their declarations: tables for the documentation, comments for default files."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.errors import ConfigError
from modules.util.config.field_type import default_of, expected_text, field_type, option_of
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.OptionGroup import OptionGroup

BEGIN, END = "<!-- options: generated, do not edit by hand -->", "<!-- end of options -->"


def option_comment(config_class: type[BaseConfig], name: str) -> str:
    """What an option does, its unit and its allowed values, in one line."""
    declared, kind = option_of(config_class, name), field_type(config_class, name)
    self_evident = kind.is_config or kind.kind in (bool, str)
    facts = [] if self_evident else [expected_text(config_class, name)]
    if declared.unit:
        facts.insert(0, f"unit: {declared.unit}")
    facts += [f"suggestions: {', '.join(declared.choices)}"] if declared.choices else []
    return f"{declared.title}. {declared.help}" + (f" [{'; '.join(facts)}]" if facts else "")


def commented_config() -> dict[str, Any]:
    """The default config, with a comment before each option. Secrets are left out."""
    return _commented(TrainConfig(), {})


def commented_concepts() -> list[dict[str, Any]]:
    """A list of one default concept, with comments."""
    return [_commented(ConceptConfig(), {})]


def commented_samples() -> list[dict[str, Any]]:
    """A list of one default sample, with comments."""
    return [_commented(SampleConfig(), {})]


def _commented(config: BaseConfig, seen: dict[type, str]) -> dict[str, Any]:
    """Comments on each class once; `seen` says where."""
    data = {}
    written = config.to_dict()
    for name, value in written.items():
        if name in type(config).model_fields:
            comment, child = option_comment(type(config), name), getattr(config, name)
            if isinstance(child, BaseConfig):
                if type(child) in seen:
                    comment += f" Options as in {seen[type(child)]}."
                else:
                    seen[type(child)] = name
                    value = _commented(child, seen)
            data[f"//{name}"] = comment
        data[name] = value
    return data


def options_markdown() -> str:
    """Every option of every kind of config, as Markdown tables."""
    lines = []
    for config_class, places in config_classes().items():
        lines += ["", f"### {config_class.__name__}", "", f"{(config_class.__doc__ or '').strip()} {places}".strip()]
        groups = {option_of(config_class, name).group for name in config_class.model_fields}
        for group in (group for group in OptionGroup if group in groups):
            if len(groups) > 1:
                lines += ["", f"**{group.value}**"]
            lines += ["", "| key | default | values | what it does |", "|---|---|---|---|"]
            lines += [
                _row(config_class, name)
                for name in config_class.model_fields
                if option_of(config_class, name).group == group
            ]
    return "\n".join(lines).strip() + "\n"


def update_document(path: str | Path, tables: str | None = None) -> bool:
    """Writes the tables between their two markers in a Markdown file.

    Args:
        path: of the file.
        tables: what comes between the markers; None: `options_markdown()`.

    Returns:
        whether the file was out of date.

    Raises:
        ConfigError: if the file lacks the markers.
    """
    old = Path(path).read_text(encoding="utf-8")
    new = with_current_tables(old, str(path), tables)
    if new != old:
        Path(path).write_text(new, encoding="utf-8", newline="\n")
    return new != old


def with_current_tables(text: str, source: str, tables: str | None = None) -> str:
    """A Markdown text with the tables between its markers made anew."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ConfigError(f"expected one line {BEGIN!r} and, below it, one line {END!r}", source)
    before, _, rest = text.partition(BEGIN)
    new = options_markdown() if tables is None else tables
    return f"{before}{BEGIN}\n\n{new}\n{END}{rest.partition(END)[2]}"


def config_classes() -> dict[type[BaseConfig], str]:
    """Each kind of config and, in words, the keys that hold one."""
    keys: dict[type[BaseConfig], list[str]] = {TrainConfig: [], ConceptConfig: [], SampleConfig: []}
    for owner, name, child in _nested(TrainConfig, set()):
        keys.setdefault(child, []).append(name if owner is TrainConfig else f"{name} of {owner.__name__}")
    return {
        config_class: f"In {', '.join(f'`{key}`' for key in names)}." if names else ""
        for config_class, names in sorted(keys.items(), key=lambda entry: entry[0] is not TrainConfig)
    }


def _nested(owner: type[BaseConfig], visited: set) -> Iterator[tuple[type[BaseConfig], str, type[BaseConfig]]]:
    visited.add(owner)
    for name in owner.model_fields:
        kind = field_type(owner, name)
        child = kind.kind if kind.is_config else kind.item
        if child is not None:
            yield owner, name, child
            if child not in visited:
                yield from _nested(child, visited)


def _row(config_class: type[BaseConfig], name: str) -> str:
    declared, kind, default = (
        option_of(config_class, name),
        field_type(config_class, name),
        default_of(config_class, name),
    )
    if isinstance(default, BaseConfig):
        default_text = ", ".join(f"{key}: {json.dumps(value)}" for key, value in declared.sparse.items())
        values = f"see {kind.kind.__name__}"
    else:
        default_text, values = json.dumps(default, ensure_ascii=False), expected_text(config_class, name)
    values += f"; unit: {declared.unit}" if declared.unit else ""
    words = declared.help + (f" Only with {_conditions(declared.visible_when)}." if declared.visible_when else "")
    inner: dict[str, list[str]] = {}
    for key, conditions in declared.inner_visible_when.items():
        inner.setdefault(_conditions(conditions), []).append(f"`{key}`")
    words += "".join(f" Only with {conditions}: {', '.join(keys)}." for conditions, keys in inner.items())
    words += f" Without effect: {', '.join(f'`{key}`' for key in declared.unused)}." if declared.unused else ""
    return f"| `{name}` | {_cell(default_text)} | {_cell(values)} | **{_cell(declared.title)}.** {_cell(words)} |"


def _conditions(visible_when: Mapping[str, tuple]) -> str:
    return " and ".join(
        f"`{key}` {' or '.join(_plain(value) for value in allowed)}" for key, allowed in visible_when.items()
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    return re.sub(r"([|<>])", r"\\\1", text).replace("\n", " ")
