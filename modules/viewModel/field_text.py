"""Between what a person types and what a config holds."""

import json
import math
import re
from enum import Enum
from typing import Any

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.errors import ConfigError
from modules.util.config.field_type import FieldType
from modules.util.config.read_json import parse_json
from modules.util.texts import tr

TRUE, FALSE = "true", "false"


def text_of(value: Any) -> str:
    """A value as a form shows it; null is the empty text. `parse_text` gives the same value again."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return TRUE if value else FALSE
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return number_text(value)
    if isinstance(value, (list, dict, BaseConfig)):
        return json.dumps(json_value(value), ensure_ascii=False)
    return str(value)


def in_words(value: Any) -> str:
    """A value for people who see switches."""
    return (tr("on") if value else tr("off")) if isinstance(value, bool) else text_of(value)


def shown_value(value: Any) -> str:
    """A value in a sentence, where an empty field has a word, too."""
    return tr("empty") if value in (None, "", []) else in_words(value)


def number_text(value: float) -> str:
    """The shortest text of a float that reads back as the same number: 200, 0.999, 3e-6."""
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    digits, _, exponent = repr(value).partition("e")
    return f"{digits.removesuffix('.0')}{f'e{int(exponent)}' if exponent else ''}"


def json_value(value: Any) -> Any:
    """A list or dict of configs as JSON, sparse, secrets included."""
    if isinstance(value, BaseConfig):
        return value.to_dict(secrets=True, sparse=True)
    if isinstance(value, list):
        return [json_value(item) for item in value]
    if isinstance(value, dict):
        return {key: json_value(item) for key, item in value.items()}
    return value.value if isinstance(value, Enum) else value


def parse_text(kind: FieldType, text: str) -> Any:
    """The value that a text stands for; a text that stands for none stays one, for the config to refuse.

    Raises:
        ConfigError: JSON that can't be read.
    """
    bare = text.strip()
    if kind.nullable and not bare:
        return None
    if kind.kind is bool:
        return {TRUE: True, FALSE: False}.get(bare.lower(), text)
    if kind.kind in (int, float):
        return _number(bare.replace("\N{MINUS SIGN}", "-"), text)
    if kind.kind in (list, dict):
        try:
            return parse_json(text, "")
        except ConfigError as error:
            raise ConfigError(error.problems[0].text) from None
    return text


def _number(bare: str, text: str) -> Any:
    try:
        return int(bare)
    except ValueError:
        pass
    try:
        value = float(bare)
    except ValueError:
        return text
    # the config knows the words "inf" and "-inf", and where they mean something
    return value if math.isfinite(value) else str(value)


def empty_meaning(help: str) -> str:
    """What an option's help says of an empty field: "the run's learning_rate"; "" if it says nothing.

    Args:
        help: in the language of the window, in which "Empty: …" has the same form.
    """
    empty = re.escape(tr("Empty"))
    match = re.search(rf"\b(?:null|Empty|{empty})(?:, or [^:]*)?: ([^.;]+)", help)
    return match[1].replace("`", "") if match else ""


def in_form_words(help: str) -> str:
    """English help or a message, for people who see a form: null is an empty field there."""
    text = re.sub(r"\bnull\b", lambda match: "Empty" if _begins_sentence(help, match.start()) else "empty", help)
    return text.replace("`", "")


def _begins_sentence(text: str, place: int) -> bool:
    return not text[:place].strip() or text[:place].rstrip().endswith(".")
