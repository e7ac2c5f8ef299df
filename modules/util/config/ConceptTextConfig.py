from functools import partial

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
text_option = partial(option, group=G)
dropout_option = partial(option, group=G, visible_when=DROPOUT)
advanced_dropout_option = partial(option, group=G, visible_when=DROPOUT, advanced=True)
advanced_caps_option = partial(option, group=G, visible_when=CAPS, advanced=True)


class ConceptTextConfig(BaseConfig):
    """Where the captions of a concept come from and how they are varied."""

    prompt_source: PromptSource = text_option(
        PromptSource.SAMPLE,
        "Caption source",
        "sample: a text file beside each image; concept: one file with a prompt a line; filename: the image's name.",
    )
    prompt_path: str = dropout_option(
        "",
        "Prompt file",
        "The file of prompts, one of which is drawn for each image.",
        path="file",
        visible_when={"prompt_source": (PromptSource.CONCEPT,)},
    )
    caption_lines: CaptionLines = dropout_option(
        CaptionLines.DRAW,
        "Lines of a caption file",
        "DRAW: a file of several lines holds several captions, of which one is drawn; JOIN: it is one caption, its "
        "lines joined by a space; JOIN_TAGS: by the tag delimiter and a space.",
        visible_when={"prompt_source": (PromptSource.SAMPLE,)},
    )
    enable_tag_shuffling: bool = text_option(
        False, "Shuffle tags", "Puts the tags of a caption in a new order each time. For captions made of tags."
    )
    tag_delimiter: str = text_option(",", "Tag delimiter", "The text between two tags.")
    keep_tags_count: int = text_option(
        1, "Kept tags", "Tags at the start that keep their place and are never dropped.", ge=0, unit="tags"
    )
    tag_dropout_enable: bool = text_option(False, "Drop tags", "Leaves tags out at random.")
    tag_dropout_mode: TagDropoutMode = dropout_option(
        TagDropoutMode.FULL,
        "Dropout mode",
        "FULL: all tags behind the kept ones together; RANDOM: each tag for itself; "
        "RANDOM WEIGHTED: later tags more often.",
    )
    tag_dropout_probability: float = dropout_option(
        0.0, "Dropout probability", "How likely tags are left out.", ge=0, le=1
    )
    tag_dropout_special_tags_mode: TagDropoutSpecialTagsMode = advanced_dropout_option(
        TagDropoutSpecialTagsMode.NONE,
        "Special tags",
        "WHITELIST: the tags below are never dropped; BLACKLIST: only they are.",
    )
    tag_dropout_special_tags: str = advanced_dropout_option(
        "", "Special tag list", "Tags with the delimiter between them, or a .txt or .csv file with one a line."
    )
    tag_dropout_special_tags_regex: bool = advanced_dropout_option(
        False, "Special tags are patterns", "Reads the special tags as regular expressions."
    )
    caps_randomize_enable: bool = text_option(
        False, "Vary capitals", "Changes upper and lower case of tags at random.", advanced=True
    )
    caps_randomize_mode: str = advanced_caps_option(
        "capslock, title, first, random",
        "Capital styles",
        "Comma-separated styles to draw from: capslock, title, first, random.",
    )
    caps_randomize_probability: float = advanced_caps_option(
        0.0, "Capitals probability", "How likely a tag's case is changed.", ge=0, le=1
    )
    caps_randomize_lowercase: bool = advanced_caps_option(
        False, "Lower case first", "Turns captions to lower case before capitals are varied."
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
