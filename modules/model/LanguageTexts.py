"""How families read captions with a language model."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from modules.model.FlowModel import FlowModel

from torch import Tensor, nn

from transformers import BatchEncoding, PreTrainedTokenizerBase


class LanguageTexts(FlowModel):
    """Each caption stands in a text that the one text encoder was trained on; its hidden states are read.

    Attributes:
        prompt_tokens: that the published models were trained with; those around the caption are among them.
        cut_tokens: the first ones of every text, of which the transformer sees nothing. Lengths do not count them.
    """

    prompt_tokens: ClassVar[int] = 512
    cut_tokens: ClassVar[int] = 0

    @abstractmethod
    def read(self, captions: Sequence[str], **options: Any) -> BatchEncoding:
        """Tokens of captions, and of what stands around each.

        Args:
            captions: the texts, of which `cut_text` counts.
            options: of the tokenizer's call.
        """

    @property
    def text_encoder(self) -> nn.Module:
        return self.components["text_encoder"]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.tokenizer_of["text_encoder"]

    def tokenize(self, captions: Sequence[str], length: int | None, **options: Any) -> BatchEncoding:
        """`input_ids` and `attention_mask` `[b, n]`; what is longer loses its end.

        Args:
            captions: the texts.
            length: the most tokens of a text; None: `prompt_tokens`.
            options: of the tokenizer's call.
        """
        most = (length or self.prompt_tokens) + self.cut_tokens
        return self.read(captions, return_tensors="pt", truncation=True, max_length=most, **options).to(self.device)

    def read_layer(self, captions: Sequence[str], length: int | None, layer: int) -> dict[str, Tensor]:
        """`hidden` `[b, n, d]`, a layer's output in the text encoder's format, zero where `mask` `[b, n]` is False.

        Args:
            captions: the texts; n is the number of tokens of the longest.
            length: see `tokenize`.
            layer: of the hidden states, the last being the normalised one.
        """
        tokens = self.tokenize(captions, length, padding="longest", padding_side="right")
        states = self.text_encoder(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        mask = tokens.attention_mask.bool()
        return {"hidden": states[layer] * mask[..., None], "mask": mask}

    def text_limits(self) -> dict[str, int]:
        length = self.text_length() or self.prompt_tokens
        return {"text_encoder": max(0, length - self._tokens_around())}

    def count_tokens(self, component: str, texts: Sequence[str]) -> list[int]:
        around = self._tokens_around() + self.cut_tokens
        return [len(ids) - around for ids in self._bare_ids(texts)]

    def read_more(self, component: str, tokens: int) -> str:
        return f"text_encoder_sequence_length to {tokens + self._tokens_around()}"

    def _tokens_around(self) -> int:
        """Tokens beside a caption's own that lengths count."""
        return len(self._bare_ids([""])[0]) - self.cut_tokens

    def _bare_ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Ids of whole texts, however many."""
        return self.read(captions, verbose=False)["input_ids"]
