"""Writing a run's results without losing older ones."""

import filecmp
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from modules.util.atomic_file import write_failure
from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.field_type import field_type, option_of
from modules.util.config.load import pack
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.whole_file import sync_folder
from modules.util.enum.ConfigPart import ConfigPart
from modules.util.write_place import check_output_place

Warn = Callable[[str], None]
# options that hold a text, or the name of a file with texts
_TEXTS_OR_PATHS = ("tag_dropout_special_tags",)


def set_aside(paths: Sequence[Path], warn: Warn) -> dict[Path, Path]:
    """Renames existing files or folders to `name-1`, `name-2` …, so that nothing a user made is overwritten.

    Returns what was renamed, with what each is called now.

    Args:
        paths: of what belongs together and gets one number; some may not be there.
        warn: is told what the first of them that is there is called now.
    """
    there = [path for path in paths if path.exists()]
    if not there:
        return {}
    for path in there:
        check_output_place(path, "output")
    number = 1
    while any(_numbered(path, number).exists() for path in paths):
        number += 1
    for path in there:
        try:
            os.replace(path, _numbered(path, number))
        except OSError as error:
            raise write_failure(_numbered(path, number), error) from error
    kept = _numbered(there[0], number)
    warn(f"{there[0]} existed; the older {'folder' if kept.is_dir() else 'file'} is kept as {kept}.")
    return {path: _numbered(path, number) for path in there}


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def replace_output(
    path: Path, write: Callable[[Path], None], warn: Warn, companion: Callable[[Path], Path] | None = None
) -> None:
    """Writes a file or folder under another name first: the older one keeps its own until the new one is safely there.

    Args:
        path: where it shall be. Nothing happens to what is there if it is the same.
        write: gets the other name and writes there.
        warn: is told where an older one went.
        companion: name -> that of something beside it, which belongs to it and which `write` may write as well.
    """
    fresh = path.with_name(f".{path.stem}.new{path.suffix}")
    pairs = [(fresh, path), *([(companion(fresh), companion(path))] if companion else [])]
    try:
        for new, _ in pairs:
            # left by a run that was killed
            _remove(new)
        write(fresh)
        if all(_same(new, old) for new, old in pairs):
            # a finished run that is run again: nothing is new
            return
        set_aside([old for _, old in pairs], warn)
        # the companion first, so that the other is never there without it
        for new, old in reversed(pairs):
            if new.exists():
                os.replace(new, old)
        sync_folder(path.parent)
    except OSError as error:
        raise write_failure(path, error) from error
    finally:
        for new, _ in pairs:
            _remove(new)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _same(one: Path, other: Path) -> bool:
    """Whether both are the same file, folders of the same files, or not there."""
    if one.is_dir() and other.is_dir():
        files, others = ({file.relative_to(root) for file in root.rglob("*")} for root in (one, other))
        return files == others and all(_same(one / file, other / file) for file in files if (one / file).is_file())
    if one.is_file() and other.is_file():
        return filecmp.cmp(one, other, shallow=False)
    return not one.exists() and not other.exists()


def config_comment(config: TrainConfig) -> str:
    """The config as JSON, as far as `include_train_config` wants it in what is written; "" for not at all.

    No times of this run: the same run gives the same bytes. Of absolute paths the last name alone, as files are shared
    and folders tell of their owner.
    """
    if config.include_train_config == ConfigPart.NONE:
        return ""
    full = pack(config) if config.include_train_config == ConfigPart.ALL else config
    settings = full.to_dict(sparse=True)
    # whether the run was resumed is no property of its result
    settings.pop("continue_last_backup", None)
    return json.dumps(_without_places(settings, TrainConfig), sort_keys=True)


def _without_places(data: Mapping[str, Any], config_class: type[BaseConfig]) -> dict[str, Any]:
    found = {name: _last_names(value) for name, value in data.items() if name not in config_class.model_fields}
    for name in config_class.model_fields.keys() & data.keys():
        found[name] = data[name]
        kind, value = field_type(config_class, name), data[name]
        if kind.is_config and isinstance(value, dict):
            found[name] = _without_places(value, kind.kind)
        elif kind.item is not None and isinstance(value, list):
            found[name] = [_without_places(item, kind.item) if isinstance(item, dict) else item for item in value]
        elif option_of(config_class, name).path or name in _TEXTS_OR_PATHS:
            found[name] = _last_names(value)
    return found


def _last_names(value: Any) -> Any:
    """JSON with the last name of each absolute path in the place of it."""
    if isinstance(value, Mapping):
        return {key: _last_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_last_names(item) for item in value]
    if not isinstance(value, str):
        return value
    absolute = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute() or value.startswith("~")
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if absolute else value
