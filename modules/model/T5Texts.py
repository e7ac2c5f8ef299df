"""How families read captions with T5, token by token."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modules.model.cut_text import cut_text
from modules.model.ModelSource import ModelSource
from modules.model.native_file import NativeTensor, fill_from_file
from modules.model.TransformerModel import TransformerModel
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch
from torch import nn

from transformers import BatchEncoding

# T5 has one embedding, which files have under one of these names or under both
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")


class T5Texts(TransformerModel):
    """The text encoder of `long_text_encoder` is T5. Its tokens end with one that says so, which counts among them."""

    @property
    @abstractmethod
    def prompt_tokens(self) -> int:
        """That the published models were trained with."""

    @classmethod
    def open_file(cls, path: Path, config: TrainConfig) -> ModelSource:
        *others, last = list(cls.modules)[1:]
        raise UserError(
            f"base_model_name: {path} is a file, which has no tokenizer of T5. Name a diffusers folder (or hub name) "
            f"of {cls.title} here, and this file as transformer.model_name. If it is a whole checkpoint, name it as "
            f"the model_name of {', '.join(others)} and {last} as well: the folder's weights are not needed then."
        )

    def read_t5(self, path: Path, dtype: torch.dtype) -> nn.Module:
        """T5 from a file; UserError if it can't be read."""
        first, second = (
            lambda name, own=own: NativeTensor(own if name in _EMBEDDINGS else name) for own in _EMBEDDINGS
        )
        return fill_from_file(path, self.source.empty(self.long_text_encoder), dtype, first, _EMBEDDINGS, (second,))

    def read_as(self, text: str) -> str:
        """What T5 sees of a text."""
        return cut_text(text)

    def tokens(self, component: str, captions: Sequence[str], length: int) -> BatchEncoding:
        """`input_ids` and `attention_mask` `[b, length]`, on the CPU; what is longer loses its end.

        Args:
            component: the text encoder.
            captions: the texts.
            length: tokens of each.
        """
        return self.tokenizer_of[component](
            list(map(self.read_as, captions)), padding="max_length", truncation=True, max_length=length,
            return_tensors="pt",
        )  # fmt: skip

    def t5_length(self, length: int | None) -> int:
        """Tokens that T5 reads, where `length` are wanted."""
        return length or self.prompt_tokens

    def text_limits(self) -> dict[str, int]:
        return {self.long_text_encoder: self.t5_length(self.text_length()) - 1}

    def count_tokens(self, component: str, texts: Sequence[str]) -> list[int]:
        own = list(map(self.read_as, texts))
        return [
            len(ids) for ids in self.tokenizer_of[component](own, add_special_tokens=False, verbose=False).input_ids
        ]

    def read_more(self, component: str, tokens: int) -> str:
        return f"{self.long_text_encoder}_sequence_length to {tokens + 1}"

    def text_settings(self, component: str) -> list[Any]:
        return [self.t5_length(self.text_length())]
