"""Models of transformers that tools look at images with: found, read and loaded without running code of theirs."""

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modules.model.component_files import choose_weights
from modules.model.hub import Snapshot
from modules.model.hub_components import fetch_component
from modules.model.load_errors import LOAD_ERRORS
from modules.tool.model_place import KEY
from modules.util.out_of_memory import is_out_of_memory
from modules.util.UserError import UserError

import torch

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

LOCAL = {"local_files_only": True, "trust_remote_code": False}


def read_config(name: str, folder: Path, expected: str, hints: Mapping[str, str]) -> tuple[PreTrainedConfig, str]:
    """A model's configuration, and what to add where it can't be loaded.

    Args:
        name: as the user wrote it.
        folder: of its files.
        expected: which models can be named.
        hints: `model_type` -> what to say of a model of this type that brings code along; "" of any other.

    Raises:
        UserError: there is none, or it can't be read.
    """
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{KEY}: {name} has no config.json. Expected {expected}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{KEY}: {name}: its config.json can't be read: {error}") from None
    raw = raw if isinstance(raw, dict) else {}
    remark = ""
    if "auto_map" in raw:
        remark = " It was made for code that it brings along, which is never run here."
        remark += hints.get(str(raw.get("model_type")), hints.get("", ""))
    with told(name, remark):
        return AutoConfig.from_pretrained(folder, **LOCAL), remark


def find_weights(place: Path | Snapshot, names: list[str], what: str) -> dict[str, Any]:
    """Sees to it that the weights are here; what transformers must be told to load these.

    Args:
        place, names: of the model, see `file_names`.
        what: is loaded, for people.

    Raises:
        UserError: they can't be had.
    """
    if isinstance(place, Snapshot):
        return fetch_component(place, "", False, what)
    choice = choose_weights(names, False)
    return choice.options if choice else {}


def load_weights(
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    folder: Path,
    weights: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
) -> PreTrainedModel:
    """A model in eval mode.

    Args:
        kind: its class.
        config: see `read_config`.
        folder: of its files.
        weights: see `find_weights`.
        device: that computes.
        dtype: in which it computes.

    Raises:
        ValueError: a weight is missing; and what transformers raises.
    """
    model, found = kind.from_pretrained(
        folder, config=config, dtype=dtype, output_loading_info=True, local_files_only=True, **weights
    )
    # transformers makes missing weights up and tells of it only here
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"it lacks the weight {missing[0]}")
    return model.to(device).eval()


@contextmanager
def told(name: str, remark: str) -> Iterator[None]:
    """Says in one line that a model can't be loaded, and why."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{KEY}: {name} can't be loaded: a .bin file of it is damaged, or holds Python objects beside tensors, and "
            "loading those can run any code. Get a version of it with safetensors files."
        ) from error
    except (*LOAD_ERRORS, ImportError, MemoryError) as error:
        if is_out_of_memory(error):
            raise UserError(
                f"{KEY}: there is too little memory for {name}. Take a smaller model, or compute with --device cpu."
            ) from error
        raise UserError(f"{KEY}: {name} can't be loaded: {reason(error)}.{remark}") from error


def reason(error: BaseException) -> str:
    """The first sentence of an error, without its full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0].rstrip(".")
