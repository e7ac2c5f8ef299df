"""Components of a repository on the hub: what of them is fetched, before their weights are needed and when they are."""

from collections.abc import Iterable
from typing import Any

from modules.model.component_files import choose_weights, settings_of, shards_of
from modules.model.hub import SETTINGS, Snapshot
from modules.util.UserError import UserError


def fetch_settings(snapshot: Snapshot, folders: Iterable[str]) -> None:
    """Brings everything but weights here. Raises UserError if it can't be had.

    Args:
        snapshot: the repository.
        folders: of its components, tokenizers and scheduler; empty for the repository's own.
    """
    files = [_inside(folder, file) for folder in folders for file in settings_of(snapshot.names(folder))]
    snapshot.fetch(files, SETTINGS)


def fetch_component(snapshot: Snapshot, folder: str, of_diffusers: bool, component: str) -> dict[str, Any]:
    """Brings the weights of a component here; returns what its library must be told to load these.

    Args:
        snapshot: the repository.
        folder: of the component; empty where the repository is the component.
        of_diffusers: which of the two libraries loads it, see `choose_weights`.
        component: its name for people.

    Raises:
        UserError: there are none, or they can't be had.
    """
    choice = choose_weights(snapshot.names(folder), of_diffusers)
    if choice is None:
        usual = _inside(folder, "diffusion_pytorch_model.safetensors" if of_diffusers else "model.safetensors")
        words = f"has no weights of {component} that can be read here. Expected a file such as {usual}."
        raise snapshot.lack(f"the weights of {component}", words)
    files = [choice.file]
    if choice.is_index:
        index = _inside(folder, choice.file)
        snapshot.fetch([index], SETTINGS)
        try:
            files = shards_of((snapshot.folder / index).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{snapshot.key}: {snapshot} is broken: {index}: {error}. Name another model.") from error
    snapshot.fetch([_inside(folder, file) for file in files], component)
    return choice.options


def _inside(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file
