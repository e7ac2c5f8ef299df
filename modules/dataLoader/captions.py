"""Where an image's caption comes from, and what it is at each use."""

import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from modules.dataLoader.Companions import Beside
from modules.dataLoader.tags import drop_tags, shuffle_tags, vary_capitals
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.ConceptTextConfig import ConceptTextConfig
from modules.util.config.patterns import Pattern, PatternError, find_pattern, split_patterns
from modules.util.enum.CaptionLines import CaptionLines
from modules.util.enum.PromptSource import PromptSource
from modules.util.keyed_random import keyed_random
from modules.util.regular_file import read_regular
from modules.util.UserError import UserError

LIST_SUFFIXES = (".txt", ".csv")
SHOWN_NAMES = 8
LINE_END = re.compile(r"\r\n|\r|\n")
JSON_KEYS = ("caption", "prompt", "tags", "text", "description")

LARGEST_CAPTION = 1 << 20
"""Bytes of an image's caption file. A larger one is something else."""

LARGEST_LIST = 64 << 20
"""Bytes of a file with a prompt or tag a line."""


class CaptionError(ValueError):
    """A caption file that cannot be used. The text is the reason, for a person."""


class NoPlainCaption(ValueError):
    """A file beside an image whose text is no caption, or not plainly. The text is the reason."""


@dataclass(frozen=True)
class FoundCaptions:
    """The captions of an image.

    Attributes:
        texts: of which one is drawn at each use; at least one, possibly "".
        path: of the file that they come from, "" if there is none.
        lines: of that file, as long as it is the image's own.
        passed: names of other caption files of the image, which are not read.
        unread: names of files beside the image, and why they are no captions, where it has none.
    """

    texts: tuple[str, ...]
    path: str = ""
    lines: int = 1
    passed: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def read_lines(path: str | Path, most: int = LARGEST_LIST) -> tuple[str, ...]:
    """The lines of a UTF-8 text file that are not empty, without space around them.

    Raises:
        FileNotFoundError: if there is no such file.
        CaptionError: if it cannot be read, is larger than `most` bytes, or is not UTF-8.
    """
    return split_lines(read_text(path, most))


def read_text(path: str | Path, most: int) -> str:
    """The content of a UTF-8 text file; raises as `read_lines` does."""
    try:
        text = read_regular(path, most).decode("utf-8-sig")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CaptionError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise CaptionError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if "\0" in text:
        raise CaptionError(f"{path} is not text: it holds zero bytes")
    return text


def split_lines(text: str) -> tuple[str, ...]:
    """The lines that are not empty, without space around them. Only line feeds and carriage returns end a line."""
    return tuple(line.strip() for line in LINE_END.split(text) if line.strip())


def find_captions(concept: ConceptConfig, path: str, shared: tuple[str, ...], beside: Beside) -> FoundCaptions:
    """The captions of an image.

    Args:
        concept: its concept.
        path: the image file.
        shared: the lines of the concept's prompt file, if it has one.
        beside: the files that belong to the image.

    Raises:
        CaptionError: if its caption file cannot be used.
    """
    if concept.text.prompt_source == PromptSource.FILENAME:
        return FoundCaptions((Path(path).stem,), path)
    if concept.text.prompt_source == PromptSource.CONCEPT:
        return FoundCaptions(shared, concept.text.prompt_path)
    unread = []
    for name in beside.captions:
        own = os.path.join(os.path.dirname(path), name)
        try:
            if name.lower().endswith(".json"):
                lines = split_lines(read_json_caption(own))
            else:
                lines = read_lines(own, LARGEST_CAPTION)
        except NoPlainCaption as error:
            unread.append(f"{name} ({error})")
            continue
        except FileNotFoundError:
            # removed since the folder was listed
            continue
        passed = tuple(other for other in beside.captions if other != name and not other.lower().endswith(".json"))
        return FoundCaptions(join_lines(concept.text, lines), own, lines=len(lines), passed=passed)
    return FoundCaptions(("",), lines=0, unread=(*unread, *beside.others))


def no_caption(path: str, unread: Sequence[str]) -> str:
    """What a person is told of an image without a caption, and of the files beside it that are none."""
    missing, name = os.path.splitext(path)[0] + ".txt", os.path.basename(path)
    return f"{missing}: no such caption file; {name} is used with an empty caption{not_read(unread)}"


def not_read(names: Sequence[str]) -> str:
    """The end of a sentence that names files beside images; empty without any."""
    return f"; beside it, but not read: {few(names)}" if names else ""


def few(names: Iterable[str]) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


def join_lines(text: ConceptTextConfig, lines: tuple[str, ...]) -> tuple[str, ...]:
    """The captions that the lines of a caption file are, at least one."""
    between = {CaptionLines.JOIN: " ", CaptionLines.JOIN_TAGS: f"{(text.tag_delimiter or ',').rstrip()} "}
    if text.caption_lines in between:
        return (between[text.caption_lines].join(lines),)
    return lines or ("",)


def read_json_caption(path: str) -> str:
    """The caption in a JSON file: a text, or an object that has a text (or list of tags) under one of `JSON_KEYS`.

    Raises:
        FileNotFoundError: if there is no such file.
        NoPlainCaption: if it holds none, or several; the text says why.
    """
    try:
        data = json.loads(read_text(path, LARGEST_CAPTION))
    except CaptionError as error:
        raise NoPlainCaption(str(error).removeprefix(f"{path} ")) from None
    except (ValueError, RecursionError):
        raise NoPlainCaption("no JSON") from None
    found = {"": data} if not isinstance(data, dict) else {key: data[key] for key in JSON_KEYS if data.get(key)}
    texts = {key: text for key, value in found.items() if (text := _plain_text(value))}
    if len(texts) != 1:
        held = " and ".join(texts) or "no text"
        raise NoPlainCaption(f"it holds {held}, expected one of {', '.join(JSON_KEYS)}")
    return next(iter(texts.values()))


def _plain_text(value: object) -> str:
    if isinstance(value, list) and all(isinstance(tag, str) for tag in value):
        value = ", ".join(tag.strip() for tag in value if tag.strip())
    return value.strip() if isinstance(value, str) and "\0" not in value else ""


def read_prompt_file(concept: ConceptConfig, label: str) -> tuple[str, ...]:
    """The prompts that the images of a concept share; empty if each image has its own.

    Raises:
        UserError: if the file cannot be used.
    """
    if concept.text.prompt_source != PromptSource.CONCEPT:
        return ()
    path = concept.text.prompt_path
    expected = "text.prompt_path must name a UTF-8 text file with a prompt a line, as text.prompt_source is concept"
    if not path:
        raise UserError(f"{label}: no prompt file is given; {expected}")
    try:
        lines = read_lines(path)
    except FileNotFoundError:
        raise UserError(f"{label}: {path}: no such file; {expected}") from None
    except CaptionError as error:
        raise UserError(f"{label}: {error}; {expected}") from None
    if not lines:
        raise UserError(f"{label}: {path} has no prompts; {expected}")
    return lines


@lru_cache(maxsize=256)
def _read_special_tags(text: str, delimiter: str, patterns: bool) -> tuple[str | Pattern, ...]:
    if text.endswith(LIST_SUFFIXES):
        lines = read_lines(text)
        tags = [row[0].strip() for row in csv.reader(lines) if row] if text.endswith(".csv") else list(lines)
    else:
        tags = split_patterns(text, delimiter) if patterns else [tag.strip() for tag in text.split(delimiter)]
    tags = [tag for tag in tags if tag]
    return tuple(find_pattern(tag) for tag in tags) if patterns else tuple(tags)


def special_tags(text: ConceptTextConfig) -> tuple[str | Pattern, ...]:
    """The special tags of tag dropout, from the text itself or from the file it names."""
    return _read_special_tags(
        text.tag_dropout_special_tags, text.tag_delimiter or ",", text.tag_dropout_special_tags_regex
    )


def check_special_tags(concept: ConceptConfig, label: str) -> None:
    """Raises UserError if a concept drops tags and its special tags cannot be read."""
    if not concept.text.tag_dropout_enable:
        return
    _read_special_tags.cache_clear()
    where = f"{label}: text.tag_dropout_special_tags: "
    try:
        special_tags(concept.text)
    except FileNotFoundError:
        raise UserError(
            f"{where}{concept.text.tag_dropout_special_tags}: no such file; "
            "expected tags, or an existing .txt or .csv file with one a line"
        ) from None
    except CaptionError as error:
        raise UserError(f"{where}{error}") from None
    except PatternError as error:
        raise UserError(f"{where}{error}") from None


def vary_caption(concept: ConceptConfig, name: str, captions: tuple[str, ...], variation: int) -> str:
    """The caption of an image in one variation: a line is drawn, then tags are dropped, recased and shuffled.

    It depends on the concept's seed and text options, the image's name, its captions and `variation`, on nothing else.
    """
    text, delimiter = concept.text, concept.text.tag_delimiter or ","

    def rng(purpose: str):
        return keyed_random("text", purpose, concept.seed, name, variation)

    caption = rng("line").choice(captions)
    if text.tag_dropout_enable and text.tag_dropout_probability > 0:
        caption = drop_tags(
            caption,
            rng("drop"),
            probability=text.tag_dropout_probability,
            mode=text.tag_dropout_mode,
            special=special_tags(text),
            special_mode=text.tag_dropout_special_tags_mode,
            delimiter=delimiter,
            keep=text.keep_tags_count,
        )
    if text.caps_randomize_enable:
        caption = vary_capitals(
            caption,
            rng("capitals"),
            probability=text.caps_randomize_probability,
            styles=[style.strip() for style in text.caps_randomize_mode.split(",")],
            lowercase=text.caps_randomize_lowercase,
            delimiter=delimiter,
        )
    if text.enable_tag_shuffling:
        caption = shuffle_tags(caption, rng("shuffle"), delimiter=delimiter, keep=text.keep_tags_count)
    return caption
