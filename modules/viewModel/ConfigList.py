from pathlib import Path
from typing import Generic, TypeVar

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.errors import ConfigError
from modules.util.config.load import load_concepts, load_samples
from modules.util.config.write_json import write_json
from modules.util.texts import tr
from modules.viewModel.families import sample_defaults_of
from modules.viewModel.option_titles import list_lines
from modules.viewModel.TrainForm import TrainForm

Item = TypeVar("Item", bound=BaseConfig)
FILE_KEYS = {"concepts": "concept_file_name", "samples": "sample_definition_file_name"}
"""List in a config -> the option that names a file that holds it instead."""


class ConfigList(Generic[Item]):
    """A list of configs within a run's config: its concepts, samples or embeddings, wherever it stands.

    Args:
        form: of the run.
        key: of the list.
        item_class: of its items.

    Attributes:
        items: as they are now; change them through the methods.
        error: why the file cannot be read, empty if it can.
    """

    def __init__(self, form: TrainForm, key: str, item_class: type[Item]) -> None:
        self.form, self.key, self.item_class = form, key, item_class
        self.file_key = FILE_KEYS.get(key, "")
        self.items: list[Item] = []
        self.error = ""
        self._file: Path | None = None
        self._content: bytes | None = None
        self.load()

    @property
    def file(self) -> Path | None:
        """The file that the list stands in; None if the config holds it itself, or names none."""
        name = getattr(self.form.config, self.file_key) if self.file_key else ""
        return Path(name) if name and getattr(self.form.config, self.key) is None else None

    def load(self) -> None:
        """Reads the list anew. A file that is not there yet is an empty list."""
        self._file, self._content, self.items, self.error = self._look()

    def differs(self) -> bool:
        """Whether `load` would read something else than the list is now."""
        return self._look() != (self._file, self._content, self.items, self.error)

    def take_into_config(self) -> None:
        """From now on the config holds the list itself; the file stays as it is. ConfigError if it cannot be read."""
        self._check_read()
        self._set(self.items)

    def add(self, item: Item, place: int | None = None) -> int:
        """Puts an item at the end, or at a place. Returns its place.

        Raises (as all that change the list): ConfigError, if the file cannot be written.
        """
        place = len(self.items) if place is None else place
        self._store([*self.items[:place], item, *self.items[place:]])
        return place

    def duplicate(self, place: int) -> int:
        """Puts a copy behind an item. Returns the copy's place."""
        copy = self.items[place].model_copy(deep=True)
        if getattr(copy, "name", ""):
            copy.name = tr("{name} copy", name=copy.name)
        return self.add(copy, place + 1)

    def replace(self, place: int, item: Item) -> None:
        """Puts another item in the place of one."""
        self._store([*self.items[:place], item, *self.items[place + 1 :]])

    def remove(self, place: int) -> None:
        """Takes an item out. Files on the disk stay."""
        self._store([*self.items[:place], *self.items[place + 1 :]])

    def move(self, place: int, by: int) -> None:
        """Moves an item by so many places, up for negative numbers."""
        items = list(self.items)
        items.insert(max(0, min(len(items) - 1, place + by)), items.pop(place))
        self._store(items)

    def _store(self, items: list[Item]) -> None:
        self._check_read()
        if self.file is None:
            self._set(items)
        else:
            if _content_of(self.file) != (self._content if self.file == self._file else None):
                text = tr("{file} was changed by another program; it is not overwritten", file=self.file)
                raise ConfigError(text)
            # what a sample in a file does not mention is the family's business, and another one's may be another
            sparse = self.key != "samples"
            write_json(self.file, [item.to_dict(sparse=sparse) for item in items])
            self._file, self._content, self.items = self.file, _content_of(self.file), list(items)
            self.form.changed(self.file_key)

    def _look(self) -> tuple[Path | None, bytes | None, list[Item], str]:
        """The file and what is in it, the items, and why the file cannot be read."""
        if self.file is None:
            return None, None, [item.model_copy(deep=True) for item in getattr(self.form.config, self.key) or []], ""
        content = _content_of(self.file)
        try:
            return self.file, content, self._read(self.file) if self.file.is_file() else [], ""
        except ConfigError as error:
            return self.file, content, [], "\n".join(list_lines(type(self.form.config), self.key, error))

    def _read(self, file: Path) -> list:
        if self.key == "samples":
            return load_samples(file, sample_defaults_of(self.form.config.model_type), warn=lambda _: None)
        return load_concepts(file, warn=lambda _: None)

    def _check_read(self) -> None:
        if self.error:
            text = tr("{error}\nMend the file, or name another one; it is not overwritten.", error=self.error)
            raise ConfigError(text)

    def _set(self, items: list[Item]) -> None:
        self._file, self._content, self.items = None, None, list(items)
        self.form.set_value(self.key, [item.to_dict(sparse=True) for item in items])


def _content_of(file: Path) -> bytes | None:
    """None if there is no such file, or it cannot be read."""
    try:
        return file.read_bytes()
    except OSError:
        return None
