from collections.abc import Callable
from typing import Any

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.errors import ConfigError, Problem, join_path
from modules.util.config.field_type import default_of, field_type, option_of
from modules.util.texts import all_of, any_of, tr
from modules.viewModel.expected_words import refusal
from modules.viewModel.field_text import in_words, parse_text, text_of
from modules.viewModel.FormField import FormField, form_fields, form_sections
from modules.viewModel.option_titles import in_titles, problem_line, title_of_path

Listener = Callable[[frozenset[str]], None]


class FormModel:
    """A config that is being edited: what stands in each field, what is wrong there, and who wants to know of changes.

    The config is valid at any time. A text that it refuses is kept beside it with the reason, until it is mended.

    Args:
        config: edited in place.

    Attributes:
        fields: every option by its path, in the order of declaration.
        sections: the same by heading.
    """

    def __init__(self, config: BaseConfig) -> None:
        self.config = config
        self.fields: dict[str, FormField] = {one.path: one for one in form_fields(type(config))}
        self.sections = form_sections(type(config), list(self.fields.values()))
        self._defaults = type(config)()
        self._drafts: dict[str, tuple[str, str]] = {}
        # path -> what was typed, and the usual text of the value that it stands for
        self._typed: dict[str, tuple[str, str]] = {}
        self._found: dict[str, str] = {}
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` with the paths that changed; "" among them means all. Returns what ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def changed(self, *paths: str) -> None:
        """Tells the listeners; needed by whoever changes `config` past this class."""
        for listener in list(self._listeners):
            listener(frozenset(paths))

    def replace(self, config: BaseConfig) -> None:
        """Edits another config from now on."""
        self.config = config
        self._drafts.clear()
        self._typed.clear()
        self._found.clear()
        self.changed("")

    def value(self, path: str) -> Any:
        """The value of an option; None inside a config that is null."""
        return _read(self.config, path)

    def default(self, path: str) -> Any:
        """Its value in a config that mentions nothing."""
        owner = _read(self._defaults, self.fields[path].parent)
        return (
            default_of(self.fields[path].owner, self.fields[path].name)
            if owner is None
            else _read(owner, path.rpartition(".")[2])
        )

    def is_modified(self, path: str) -> bool:
        """Whether it has another value than the default, or a text that was refused."""
        return path in self._drafts or self.value(path) != self.default(path)

    def text(self, path: str) -> str:
        """What stands in the field: what was typed there, as long as it is refused or means the value of now; otherwise
        the value as text.
        """
        if path in self._drafts:
            return self._drafts[path][0]
        usual = text_of(self.value(path))
        # "1." means 1 and is on its way to 1.5: nobody's typing is put in other words
        typed, stands_for = self._typed.get(path, ("", None))
        return typed if stands_for == usual else usual

    def error(self, path: str) -> str:
        """Why the text in the field was refused, with what is expected; empty if it was not."""
        return self._drafts[path][1] if path in self._drafts else ""

    def set_text(self, path: str, text: str) -> str:
        """Takes what a person typed. Returns the error, empty if the config has the value now."""
        if text == self.text(path):
            return self.error(path)
        try:
            value = parse_text(self.fields[path].kind, text)
        except ConfigError as error:
            return self._refuse(path, text, str(error))
        return self.set_value(path, value, text)

    def set_value(self, path: str, value: Any, text: str | None = None) -> str:
        """Sets a value; JSON forms as the config reads them. Returns the error, empty if it was taken.

        Args:
            text: that was typed, and stays in the field; None: made from the value.
        """
        try:
            owner = self._make_owner(self.fields[path].parent)
            setattr(owner, self.fields[path].name, value)
        except ConfigError as error:
            reason = self.words("\n".join(refusal(self.fields[path], problem.text) for problem in error.problems))
            return self._refuse(path, text_of(value) if text is None else text, reason)
        self._forget(path)
        self._drop_empty(self.fields[path].parent)
        if text is not None:
            self._typed[path] = text, text_of(self.value(path))
        self.changed(path)
        return ""

    def set_values(self, values: dict[str, Any]) -> None:
        """Sets several values that are known to be allowed, and tells of them at once.

        Raises:
            ConfigError: one of them is not allowed.
        """
        for path, value in values.items():
            setattr(self._make_owner(self.fields[path].parent), self.fields[path].name, value)
            self._forget(path)
        for parent in {self.fields[path].parent for path in values}:
            self._drop_empty(parent)
        self.changed(*values)

    def reset(self, path: str) -> None:
        """Gives an option its default again."""
        self.set_value(path, self.default(path))

    def discard(self, prefix: str) -> None:
        """Forgets what was typed for all options whose path begins so, refused or not."""
        for path in [path for path in self._drafts | self._typed if path.startswith(prefix)]:
            self._forget(path)

    @property
    def has_refused_texts(self) -> bool:
        """Whether something stands in a field that the config does not hold, as it was refused."""
        return bool(self._drafts)

    def applies(self, path: str) -> bool:
        """Whether an option matters, given the values of others."""
        return not self.conditions(path)

    def is_unused(self, path: str) -> bool:
        """Whether an option means nothing where it stands, whatever others are, as the guidance scale of a U-Net."""
        outer, _, name = path.rpartition(".")
        place, _, key = outer.rpartition(".")
        owner = _read(self._defaults, place) if outer else None
        return owner is not None and name in option_of(type(owner), key).unused

    def conditions(self, path: str) -> list[str]:
        """What would have to be otherwise for an option to matter, in words: “Training method” LORA."""
        missing, owner, keys = [], self.config, path.split(".")
        for depth, key in enumerate(keys):
            if owner is None or key not in type(owner).model_fields:
                break
            declared, inner = option_of(type(owner), key), keys[depth + 1] if key != keys[-1] else ""
            for sibling, allowed in (
                *declared.visible_when.items(),
                *declared.inner_visible_when.get(inner, {}).items(),
            ):
                if getattr(owner, sibling) not in allowed:
                    words = any_of([in_words(value) for value in allowed])
                    missing.append(f"“{self.title(join_path(*keys[:depth], sibling))}” {words}")
            owner = getattr(owner, key)
        # one that was set all the same must be seen, to be set back
        if self.is_unused(path) and not self.is_modified(path):
            missing.append(tr("another component than {component}", component=self.title(path.rpartition(".")[0])))
        return missing

    def check(self) -> list[Problem]:
        """`problems`, which from now on are shown at their fields, too."""
        found = self.problems()
        before, self._found = self._found, {}
        for problem in found:
            # what leads into a list is shown at the list
            path = problem.path
            while path and path not in self.fields:
                path = path.rpartition(".")[0]
            self._found.setdefault(path, problem.text)
        changed = [path for path in before.keys() | self._found if before.get(path) != self._found.get(path)]
        if changed:
            self.changed(*changed)
        return found

    def complaint(self, path: str) -> str:
        """What is wrong with an option: why its text was refused, or what `check` found last; empty if nothing."""
        return self.error(path) or self.words(self._found.get(path, ""))

    def title(self, path: str) -> str:
        """What an option is called, with the config that it stands in: "U-Net › Learning rate"."""
        return title_of_path(type(self.config), path)

    def words(self, text: str) -> str:
        """A text of the config or the trainer, for people who see this form and no JSON."""
        return in_titles(type(self.config), text)

    def line(self, problem: Problem) -> str:
        """The same of a problem, with the option's title."""
        return problem_line(type(self.config), problem)

    def needs(self, path: str) -> str:
        """The same in one line, empty if it matters."""
        return all_of(self.conditions(path))

    def problems(self) -> list[Problem]:
        """Everything that is wrong now, in the order of the fields."""
        return [
            Problem(path, self._drafts[path][1]) for path in self.fields if path in self._drafts and self.applies(path)
        ]

    def _forget(self, path: str) -> None:
        """What was wrong with an option's old value says nothing of its new one."""
        self._drafts.pop(path, None)
        self._typed.pop(path, None)
        self._found.pop(path, None)

    def _refuse(self, path: str, text: str, reason: str) -> str:
        self._drafts[path] = (text, reason)
        self.changed(path)
        return reason

    def _make_owner(self, parent: str) -> BaseConfig:
        """The config at a path, made where it was null."""
        owner = self.config
        for key in parent.split(".") if parent else ():
            if getattr(owner, key) is None:
                setattr(owner, key, field_type(type(owner), key).kind())
            owner = getattr(owner, key)
        return owner

    def _drop_empty(self, parent: str) -> None:
        """A config that may be null and holds nothing but defaults becomes null again."""
        outer, _, key = parent.rpartition(".")
        if not parent:
            return
        owner = _read(self.config, outer)
        kind, value = field_type(type(owner), key), getattr(owner, key)
        if kind.nullable and value is not None and value == kind.kind():
            setattr(owner, key, None)


def _read(config: BaseConfig | None, path: str) -> Any:
    for key in path.split(".") if path else ():
        if config is None:
            return None
        config = getattr(config, key)
    return config
