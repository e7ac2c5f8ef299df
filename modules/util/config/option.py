"""The one declaration of an option: its default, bounds and words, read by validation, GUI and docs alike."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modules.util.enum.OptionGroup import OptionGroup

from pydantic import Field


@dataclass(frozen=True)
class Option:
    """What a field of a config says about itself.

    Attributes:
        title: short name for a form.
        help: what it does and when to change it.
        group: section in which it is shown.
        unit: unit of the value, or the sibling key that holds it; empty if it has none.
        advanced: hidden until the user asks for more.
        visible_when: sibling key -> values; the option matters only if every named sibling has one of its values.
        affects_result: False if the trained weights do not depend on it; such options stay out of `config_hash`.
        choices: suggestions for a text field; other texts are allowed too.
        path: "file", "output" (a file that is written), "folder" or "model" (file, folder or name on a hub) if the text
            is a path.
        ge, gt, le, lt: bounds of a number.
        infinite: whether inf is a meaningful value (written as "inf" in JSON).
        secret: never printed, and written only on request.
        sparse: for a nested config, the values in which its default differs from its class's defaults.
        unused: for a nested config, those of its keys that mean nothing in this place.
        inner_visible_when: for a nested config, key of it -> `visible_when` with siblings of the nested config.
    """

    title: str
    help: str
    group: OptionGroup
    unit: str = ""
    advanced: bool = False
    visible_when: Mapping[str, tuple] = field(default_factory=dict)
    affects_result: bool = True
    choices: tuple[str, ...] = ()
    path: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    infinite: bool = False
    secret: bool = False
    sparse: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    inner_visible_when: Mapping[str, Mapping[str, tuple]] = field(default_factory=dict)


def option(default: Any, title: str, help: str, group: OptionGroup, **facts: Any) -> Any:
    """Declares a field of a config.

    Args:
        default: the value of a file that does not mention the key; a class or function is called to make it.
        title, help, group, facts: see `Option`.
    """
    declared = Option(title=title, help=help, group=group, **facts)
    limits = {name: getattr(declared, name) for name in ("ge", "gt", "le", "lt") if getattr(declared, name) is not None}
    limits |= {"allow_inf_nan": True} if declared.infinite else {}
    limits |= {"repr": False} if declared.secret else {}
    default = {"default_factory": default} if callable(default) else {"default": default}
    return Field(json_schema_extra={"option": declared}, **default, **limits)


def nested(
    config_class: type, title: str, help: str, group: OptionGroup, facts: Mapping[str, Any] | None = None, **sparse: Any
) -> Any:
    """Declares a field that holds another config, whose defaults may differ from its class's in `sparse`."""
    return option(lambda: config_class(**sparse), title, help, group, sparse=sparse, **(facts or {}))
