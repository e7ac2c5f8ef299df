"""How families read captions with a language model that was trained on conversations."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from modules.model.cut_text import cut_text
from modules.model.LanguageTexts import LanguageTexts

from transformers import BatchEncoding

# what the chat template's function takes itself; everything else it passes on
_NAMED = ("padding", "truncation", "max_length", "return_tensors")


class ChatTexts(LanguageTexts):
    """Each caption is what a user says in a conversation of the text encoder."""

    @abstractmethod
    def chat(self, caption: str) -> list[dict[str, Any]]:
        """A caption as the conversation that the text encoder was trained on."""

    @property
    @abstractmethod
    def template(self) -> Mapping[str, bool]:
        """Options of the tokenizer's chat template."""

    def read(self, captions: Sequence[str], **options: Any) -> BatchEncoding:
        return self.tokenizer.apply_chat_template(
            [self.chat(cut_text(caption)) for caption in captions], tokenize=True, return_dict=True,
            tokenizer_kwargs={name: value for name, value in options.items() if name not in _NAMED},
            **{name: value for name, value in options.items() if name in _NAMED}, **self.template,
        )  # fmt: skip
