from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.errors import nearest, show_value
from modules.util.config.option import option
from modules.util.enum.CaptionLines import CaptionLines
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.PromptSource import PromptSource
from modules.util.enum.TagDropoutMode import TagDropoutMode
from modules.util.enum.TagDropoutSpecialTagsMode import TagDropoutSpecialTagsMode

from pydantic import field_validator
from pydantic_core import PydanticCustomError

G = OptionGroup.TEXT
DROPOUT = {"tag_dropout_enable": (True,)}
CAPS = {"caps_randomize_enable": (True,)}
CAPS_STYLES = ("capslock", "title", "first", "random")


class ConceptTextConfig(BaseConfig):
    """Where the captions of a concept come from and how they are varied."""

    prompt_source: PromptSource = option(
        PromptSource.SAMPLE,
        "Caption source",
        "sample: a text file beside each image; concept: one file with a prompt a line; filename: the image's name.",
        G,
    )
    prompt_path: str = option(
        "",
        "Prompt file",
        "The file of prompts, one of which is drawn for each image.",
        G,
        path="file",
        visible_when={"prompt_source": (PromptSource.CONCEPT,)},
    )
    caption_lines: CaptionLines = option(
        CaptionLines.DRAW,
        "Lines of a caption file",
        "DRAW: a file of several lines holds several captions, of which one is drawn; JOIN: it is one caption, its "
        "lines joined by a space; JOIN_TAGS: by the tag delimiter and a space.",
        G,
        visible_when={"prompt_source": (PromptSource.SAMPLE,)},
    )
    enable_tag_shuffling: bool = option(
        False, "Shuffle tags", "Puts the tags of a caption in a new order each time. For captions made of tags.", G
    )
    tag_delimiter: str = option(",", "Tag delimiter", "The text between two tags.", G)
    keep_tags_count: int = option(
        1, "Kept tags", "Tags at the start that keep their place and are never dropped.", G, ge=0, unit="tags"
    )
    tag_dropout_enable: bool = option(False, "Drop tags", "Leaves tags out at random.", G)
    tag_dropout_mode: TagDropoutMode = option(
        TagDropoutMode.FULL,
        "Dropout mode",
        "FULL: all tags behind the kept ones together; RANDOM: each tag for itself; "
        "RANDOM WEIGHTED: later tags more often.",
        G,
        visible_when=DROPOUT,
    )
    tag_dropout_probability: float = option(
        0.0, "Dropout probability", "How likely tags are left out.", G, ge=0, le=1, visible_when=DROPOUT
    )
    tag_dropout_special_tags_mode: TagDropoutSpecialTagsMode = option(
        TagDropoutSpecialTagsMode.NONE,
        "Special tags",
        "WHITELIST: the tags below are never dropped; BLACKLIST: only they are.",
        G,
        visible_when=DROPOUT,
        advanced=True,
    )
    tag_dropout_special_tags: str = option(
        "",
        "Special tag list",
        "Tags with the delimiter between them, or a .txt or .csv file with one a line.",
        G,
        visible_when=DROPOUT,
        advanced=True,
    )
    tag_dropout_special_tags_regex: bool = option(
        False,
        "Special tags are patterns",
        "Reads the special tags as regular expressions.",
        G,
        visible_when=DROPOUT,
        advanced=True,
    )
    caps_randomize_enable: bool = option(
        False, "Vary capitals", "Changes upper and lower case of tags at random.", G, advanced=True
    )
    caps_randomize_mode: str = option(
        "capslock, title, first, random",
        "Capital styles",
        "Comma-separated styles to draw from: capslock, title, first, random.",
        G,
        visible_when=CAPS,
        advanced=True,
    )
    caps_randomize_probability: float = option(
        0.0,
        "Capitals probability",
        "How likely a tag's case is changed.",
        G,
        ge=0,
        le=1,
        visible_when=CAPS,
        advanced=True,
    )
    caps_randomize_lowercase: bool = option(
        False,
        "Lower case first",
        "Turns captions to lower case before capitals are varied.",
        G,
        visible_when=CAPS,
        advanced=True,
    )

    @field_validator("caps_randomize_mode")
    @classmethod
    def _check_styles(cls, value: str) -> str:
        for style in (piece.strip() for piece in value.split(",")):
            if style not in CAPS_STYLES:
                near = nearest(style, CAPS_STYLES)
                hint = f'; did you mean "{near}"?' if near else ""
                raise PydanticCustomError(
                    "config",
                    "{text}",
                    {"text": f"found {show_value(style)}, expected styles out of {', '.join(CAPS_STYLES)}{hint}"},
                )
        return value
