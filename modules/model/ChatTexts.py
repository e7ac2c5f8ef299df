"""How families read captions with a language model that was trained on conversations."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from modules.model.cut_text import cut_text
from modules.model.FlowModel import FlowModel

from torch import nn

from transformers import BatchEncoding, PreTrainedTokenizerBase


class ChatTexts(FlowModel):
    """Each caption is what a user says in a conversation of the one text encoder; its hidden states are read.

    Attributes:
        prompt_tokens: that the published models were trained with; the marks of the conversation are among them.
    """

    prompt_tokens: ClassVar[int] = 512

    @abstractmethod
    def chat(self, caption: str) -> list[dict[str, Any]]:
        """A caption as the conversation that the text encoder was trained on."""

    @property
    @abstractmethod
    def template(self) -> Mapping[str, bool]:
        """Options of the tokenizer's chat template."""

    @property
    def text_encoder(self) -> nn.Module:
        return self.components["text_encoder"]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.tokenizer_of["text_encoder"]

    def tokenize(self, captions: Sequence[str], length: int | None, **options: Any) -> BatchEncoding:
        """`input_ids` and `attention_mask` `[b, n]`; what is longer loses its end, the template's own tokens included.

        Args:
            captions: the texts.
            length: the most tokens of a text; None: `prompt_tokens`.
            options: of the tokenizer's `apply_chat_template`.
        """
        return self.tokenizer.apply_chat_template(
            self._chats(captions), tokenize=True, return_dict=True, return_tensors="pt", truncation=True,
            max_length=length or self.prompt_tokens, **options, **self.template,
        ).to(self.device)  # fmt: skip

    def text_limits(self) -> dict[str, int]:
        length = self.config.text_encoder_sequence_length or self.prompt_tokens
        return {"text_encoder": max(0, length - len(self._bare_ids([""])[0]))}

    def count_tokens(self, component: str, texts: Sequence[str]) -> list[int]:
        empty = len(self._bare_ids([""])[0])
        return [len(ids) - empty for ids in self._bare_ids(texts)]

    def read_more(self, component: str, tokens: int) -> str:
        return f"text_encoder_sequence_length to {tokens + len(self._bare_ids([''])[0])}"

    def _bare_ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Ids of captions as conversations, however many."""
        options = {**self.template, "tokenizer_kwargs": {"verbose": False}}
        chats = self._chats(captions)
        return self.tokenizer.apply_chat_template(chats, tokenize=True, return_dict=True, **options)["input_ids"]

    def _chats(self, captions: Sequence[str]) -> list[list[dict[str, Any]]]:
        return [self.chat(cut_text(caption)) for caption in captions]
