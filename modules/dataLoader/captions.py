"""Where an image's caption comes from, and what it is at each use."""

import csv
import os
from functools import lru_cache
from pathlib import Path

from modules.dataLoader.keyed_random import keyed_random
from modules.dataLoader.tags import drop_tags, shuffle_tags, vary_capitals
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.ConceptTextConfig import ConceptTextConfig
from modules.util.config.patterns import Pattern, PatternError, find_pattern, split_patterns
from modules.util.enum.PromptSource import PromptSource
from modules.util.UserError import UserError

LIST_SUFFIXES = (".txt", ".csv")


class CaptionError(ValueError):
    """A caption file that cannot be used. The text is the reason, for a person."""


def read_lines(path: str | Path) -> tuple[str, ...]:
    """The lines of a UTF-8 text file that are not empty, without space around them.

    Raises:
        FileNotFoundError: if there is no such file.
        CaptionError: if it cannot be read or is not UTF-8.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CaptionError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise CaptionError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if "\0" in text:
        raise CaptionError(f"{path} is not text: it holds zero bytes")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def find_captions(concept: ConceptConfig, path: str, shared: tuple[str, ...]) -> tuple[tuple[str, ...], str | None]:
    """The captions of an image, and a warning or None.

    Args:
        concept: its concept.
        path: the image file.
        shared: the lines of the concept's prompt file, if it has one.

    Raises:
        CaptionError: if its caption file cannot be used.
    """
    if concept.text.prompt_source == PromptSource.FILENAME:
        return (Path(path).stem,), None
    if concept.text.prompt_source == PromptSource.CONCEPT:
        return shared, None
    caption_path = os.path.splitext(path)[0] + ".txt"
    try:
        return read_lines(caption_path) or ("",), None
    except FileNotFoundError:
        return ("",), f"{caption_path}: no such caption file; {os.path.basename(path)} is used with an empty caption"


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
