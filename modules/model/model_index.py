"""The list of a model's components in diffusers' layout. Modular pipelines have one of their own, in another form."""

from collections.abc import Collection, Mapping
from typing import Any

INDEX = "model_index.json"
# beside library and class, entries of it say where each component is loaded from
MODULAR_INDEX = "modular_model_index.json"
# a key that only the latter has
_BLOCKS = "_blocks_class_name"


def index_name(names: Collection[str]) -> str | None:
    """Which of a folder's files is the list of its components; None if it has none."""
    return next((name for name in (INDEX, MODULAR_INDEX) if name in names), None)


def is_component(entry: object) -> bool:
    """Whether an entry is [library, class], [null, null] if it was left out; else an option."""
    return isinstance(entry, list) and len(entry) == 2 and all(word is None or isinstance(word, str) for word in entry)


def plain_index(index: Mapping[str, Any]) -> dict[str, Any]:
    """An index without the places of components, which are folders of their names."""
    if _BLOCKS not in index:
        return dict(index)
    return {name: entry[:2] if isinstance(entry, list) else entry for name, entry in index.items()}


def index_file(index: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and content of the file for a plain index, in the form that the model's pipeline reads.

    The base's places must not stay: an older diffusers would load the base's weights from there.
    """
    if _BLOCKS not in index:
        return INDEX, dict(index)
    written = {}
    for name, entry in index.items():
        if is_component(entry):
            place = {"pretrained_model_name_or_path": ".", "subfolder": name, "variant": None, "revision": None}
            entry = [*entry, {"type_hint": entry, **place}]
        written[name] = entry
    return MODULAR_INDEX, written
