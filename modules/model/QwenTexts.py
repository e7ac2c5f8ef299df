"""How Qwen-Image and its relatives read captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modules.model.cut_text import cut_text
from modules.model.LanguageTexts import LanguageTexts
from modules.model.ModelSource import ModelSource
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

from transformers import BatchEncoding, Qwen3VLTextModel

# the text that the models were trained with, around the caption
BEFORE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
# what files of the text encoder hold beside: its half for images, and the head
BESIDE_TEXT = ("visual.", "model.visual.", "lm_head.weight")
NOT_READ = [rf"^{name}" for name in BESIDE_TEXT]
"""The same as patterns, for classes that read folders."""


class Qwen3VLText(Qwen3VLTextModel):
    """The language model out of Qwen3-VL. What its files hold beside is left in them."""

    _keys_to_ignore_on_load_unexpected = NOT_READ

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """As usual, of a folder with the whole model: with a head or without."""
        return super().from_pretrained(*arguments, key_mapping={r"^(model\.)?language_model\.": ""}, **options)


class QwenTexts(LanguageTexts):
    """The text encoder is the language model out of one for images and text. What stands before the caption is cut."""

    cut_tokens = 34
    hides_padding = True

    @classmethod
    def open_file(cls, path: Path, config: TrainConfig) -> ModelSource:
        raise UserError(
            f"base_model_name: {path} is a file, which has no tokenizer. Name a diffusers folder (or hub name) of "
            f"{cls.title} here, and files as transformer.model_name, text_encoder.model_name and vae.model_name; one "
            "file may be all three."
        )

    @property
    def before(self) -> str:
        """What stands before a caption."""
        return BEFORE

    def read(self, captions: Sequence[str], **options: Any) -> BatchEncoding:
        return self.tokenizer([f"{self.before}{cut_text(caption)}{AFTER}" for caption in captions], **options)

    def text_settings(self, component: str) -> list[Any]:
        return [self.config.text_encoder_sequence_length, self.before, AFTER, self.cut_tokens]
