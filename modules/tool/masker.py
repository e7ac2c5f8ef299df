"""Models that find something in a picture: background removal, CLIPSeg by a text, and segmentation by labels.

Configuration, processor and model are of the classes that transformers has for the type in `config.json`, or the model
is an ONNX file. Code that a model brings along (`auto_map`) is never run.
"""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from modules.model.hub import Hub, Snapshot
from modules.model.hub_components import fetch_settings
from modules.tool.mask_names import KINDS
from modules.tool.matting_net import SETTINGS_FILE, MattingNet
from modules.tool.model_place import KEY, file_names, find_model
from modules.util.UserError import UserError

import torch

import numpy as np
from PIL import Image

ONNX = ".onnx"


class Masker(Protocol):
    """Finds something in pictures."""

    def segment(self, image: Image.Image) -> np.ndarray:
        """float32 `[h, w]` in the model's size, from 0 to 1: how surely each pixel of an 8-bit RGB image is part of it.

        Raises:
            UserError: memory is too little, or its files do not fit one another.
        """


def load_masker(name: str, device: torch.device, hub: Hub, prompt: str) -> Masker:
    """A model that makes masks, ready to segment.

    Args:
        name: a folder, an ONNX file, a name on the hub, or that of an ONNX file there: OWNER/NAME/path/FILE.onnx.
        device: that computes, in float32; ONNX models always compute on the CPU.
        hub: as the run sees it.
        prompt: what is looked for: of CLIPSeg texts, of segmentation labels, with commas between. Models that remove
            backgrounds take none.

    Raises:
        UserError: it can't be had or loaded, is of no kind that is known here, or can't be asked this.
    """
    file = _hub_file(name)
    place = find_model(name.removesuffix(f"/{file}") if file else name, hub, KINDS)
    if isinstance(place, Path) and not place.is_dir():
        if place.suffix.lower() != ONNX:
            raise UserError(f"{KEY}: {name} is a file, expected {KINDS}, or its name on the hub.")
        _check_unasked(name, prompt)
        return MattingNet(place, _settings_of(place))
    names = file_names(place)
    if file or not _is_of_transformers(place, names):
        if found := file or _choose_onnx(name, names, place):
            _check_unasked(name, prompt)
            return _matting_net(place, names, found)
    if isinstance(place, Snapshot):
        fetch_settings(place, [""])
    # it takes seconds, and most masks are made without it
    from modules.tool.segmenter import load_segmenter

    return load_segmenter(name, place, names, device, prompt)


def _hub_file(name: str) -> str:
    """The part of a hub name that is the path of an ONNX file there; "" if there is none, or it is a path here."""
    parts = name.strip().split("/")
    if not name.lower().endswith(ONNX) or len(parts) < 3 or "://" in name or Path(name).expanduser().exists():
        return ""
    return "/".join(parts[2:]) if all(parts) and not parts[0].startswith((".", "~")) else ""


def _is_of_transformers(place: Path | Snapshot, names: Sequence[str]) -> bool:
    """Whether a repository, which may hold copies of one model in several forms, has one that runs without its code."""
    endings = (".safetensors", ".bin")
    if "config.json" not in names or not any("/" not in name and name.endswith(endings) for name in names):
        return False
    if isinstance(place, Snapshot):
        fetch_settings(place, [""])
    try:
        folder = place.folder if isinstance(place, Snapshot) else place
        return "auto_map" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return True


def _choose_onnx(name: str, names: Sequence[str], place: Path | Snapshot) -> str:
    """The ONNX file of a model: the only one, or the one in full precision; "" if there is none."""
    if isinstance(place, Path):
        below = place / "onnx"
        names = [*names, *(f"onnx/{path.name}" for path in below.glob(f"*{ONNX}"))]
    found = sorted(one for one in names if one.lower().endswith(ONNX))
    for usual in ("onnx/model.onnx", "model.onnx"):
        if usual in found:
            return usual
    if len(found) > 1:
        some = ", ".join(found[:5])
        raise UserError(f"{KEY}: {name} has {len(found)} ONNX files: {some}. Name one of them: {name}/{found[0]}.")
    return found[0] if found else ""


def _settings_of(file: Path) -> Path | None:
    """Beside an ONNX file, or beside its folder where that is named as on the hub."""
    places = [file.parent, *([file.parent.parent] if file.parent.name == "onnx" else [])]
    return next((place / SETTINGS_FILE for place in places if (place / SETTINGS_FILE).is_file()), None)


def _matting_net(place: Path | Snapshot, names: Sequence[str], file: str) -> MattingNet:
    if not isinstance(place, Snapshot):
        return MattingNet(place / file, _settings_of(place / file))
    # weights beyond 2 GB lie in files of their own beside it
    stem = str(PurePosixPath(file))
    wanted = [file, *(one for one in names if one.startswith((f"{stem}_data", f"{stem}.data")))]
    wanted += [SETTINGS_FILE] if SETTINGS_FILE in names else []
    place.fetch(wanted, "the mask model")
    return MattingNet(place.folder / file, place.folder / SETTINGS_FILE if SETTINGS_FILE in names else None)


def _check_unasked(name: str, prompt: str) -> None:
    if prompt:
        raise UserError(
            f"--prompt: {name} finds the subject of a picture and can't be asked anything. Leave the prompt out, or "
            "take a model that reads one, such as CIDAS/clipseg-rd64-refined."
        )
