"""Which files of a component are needed: in a folder on this machine and in a repository on the hub alike."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

# half-precision copies that are taken where there is nothing else, the better ones first
VARIANTS = ("fp16", "bf16")
# ending of weight files -> their stem for diffusers and for transformers, the better ending first
_STEMS = {
    ".safetensors": ("diffusion_pytorch_model", "model"),
    ".bin": ("diffusion_pytorch_model", "pytorch_model"),
}
_INDEX = ".index"
# endings of files beside weights that a tokenizer, a scheduler or a configuration may have
_SMALL = (".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class WeightChoice:
    """The weights of a component that are loaded.

    Attributes:
        file: their only file, or the list of the files that they are shared among.
        options: what the libraries must be told to take these.
    """

    file: str
    options: dict[str, Any]

    @property
    def is_index(self) -> bool:
        return self.file.endswith(".json")


def choose_weights(names: Collection[str], of_diffusers: bool) -> WeightChoice | None:
    """The weights among the files of a component: whole safetensors, else half-precision ones, else pickled ones.

    Args:
        names: file names in the component's folder.
        of_diffusers: whether diffusers loads it, which calls files otherwise than transformers, and takes several files
            rather than one where both are there.
    """
    for ending, stems in _STEMS.items():
        pickled = {"use_safetensors": False} if ending == ".bin" else {}
        for variant in ("", *VARIANTS):
            single, index = _file_names(stems[0 if of_diffusers else 1], ending, variant)
            for name in (index, single) if of_diffusers else (single, index):
                if name in names:
                    return WeightChoice(name, {**pickled, **({"variant": variant} if variant else {})})
    return None


def _file_names(stem: str, ending: str, variant: str) -> tuple[str, str]:
    mark = f".{variant}" if variant else ""
    return f"{stem}{mark}{ending}", f"{stem}{ending}{_INDEX}{mark}.json"


def shards_of(index: str) -> list[str]:
    """The files that the text of an index names. Raises ValueError if it is none."""
    try:
        files = set(json.loads(index)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("the list of its weight files can't be read") from error
    # a name with a folder in it would lead elsewhere
    endings = tuple(_STEMS)
    if not files or not all(isinstance(file, str) and file.endswith(endings) and "/" not in file for file in files):
        raise ValueError("the list of its weight files names none")
    return sorted(files)


def settings_of(names: Collection[str]) -> list[str]:
    """Of the files of a component, those beside its weights: configuration, vocabulary, templates."""
    return sorted(name for name in names if name.endswith(_SMALL) and _INDEX not in name)
