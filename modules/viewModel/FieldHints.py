from dataclasses import dataclass
from typing import Any

from modules.util.texts import all_of, tr
from modules.viewModel.expected_words import expected_words
from modules.viewModel.field_text import FALSE, TRUE, empty_meaning, in_words
from modules.viewModel.FormModel import FormModel
from modules.viewModel.value_names import value_name


@dataclass(frozen=True)
class Choice:
    """One of the values that a field offers.

    Attributes:
        text: for `FormModel.set_text`.
        label: what the list shows.
        why_not: why it cannot be chosen now, empty if it can.
    """

    text: str
    label: str
    why_not: str = ""


@dataclass(frozen=True)
class Note:
    """What stands below a field.

    Attributes:
        text: for people; empty: nothing.
        warns: whether it is hardly ever meant as it is.
    """

    text: str
    warns: bool = False


NOTHING = Note("")


class FieldHints:
    """What a form shows beside the values: what can be chosen, what an empty field stands for, and help.

    Args:
        form: whose fields these are.
    """

    def __init__(self, form: FormModel) -> None:
        self.form = form

    def default(self, path: str) -> Any:
        """What an option is where nobody says otherwise."""
        return self.form.default(path)

    def default_text(self, path: str) -> str:
        """The same in words."""
        return in_words(self.default(path)) or self.placeholder(path) or tr("empty")

    def choices(self, path: str) -> list[Choice]:
        """What an option can be chosen from; none where anything can be typed."""
        one = self.form.fields[path]
        values = [TRUE, FALSE] if one.kind.kind is bool else list(one.kind.values) or list(one.declared.choices)
        found = [Choice(text, self._label(path, text), self.why_not(path, text)) for text in values]
        empty = [Choice("", self.placeholder(path), "")] if one.kind.nullable and values else []
        return empty + found

    def name(self, path: str, text: str) -> str:
        """What a value of an option is called."""
        return value_name(self.form.fields[path].kind.kind, text)

    def _label(self, path: str, text: str) -> str:
        """The same in a list, where the value stands beside its name."""
        name = self.name(path, text)
        return name if name == text else f"{name}   ·   {text}"

    def why_not(self, path: str, text: str) -> str:
        """Why an option cannot be chosen together with all others; empty if it can."""
        return ""

    def note(self, path: str) -> Note:
        """What a person should know of the value of now, to stand below the field."""
        return NOTHING

    def placeholder(self, path: str) -> str:
        """What an empty field stands for."""
        one = self.form.fields[path]
        return self.form.words(empty_meaning(tr(one.declared.help))) or (tr("not set") if one.kind.nullable else "")

    def shown_text(self, path: str) -> str:
        """What counts now: the text, or the default that an empty field stands for, where that is known."""
        return self.form.text(path)

    def help(self, path: str) -> str:
        """What an option does, what it may be and when it matters, for people who see a form and no JSON."""
        one = self.form.fields[path]
        # a list shows what can be chosen itself
        evident = one.kind.kind in (bool, str) or one.kind.is_enum
        facts = [] if evident else [tr("Expected: {what}.", what=expected_words(one))]
        default = in_words(self.default(path))
        facts += [tr("Default: {value}.", value=default)] if default else []
        conditions = self.form.conditions(path)
        facts += [tr("Matters only with {needs}.", needs=all_of(conditions))] if conditions else []
        return "\n".join([self.form.words(tr(one.declared.help)), *facts])
