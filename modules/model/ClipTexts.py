"""How families with CLIP text encoders read captions.

Axes: `b` batch, `t` tokens of a chunk, `d` width of a text encoder.
"""

import math
from collections.abc import Mapping, Sequence

from modules.model.AddedWords import AddedWords
from modules.model.BaseModel import BaseModel
from modules.model.cut_text import cut_text
from modules.model.ModelSource import ModelSource
from modules.model.single_file import TOKENIZERS
from modules.util.config.errors import Remedy
from modules.util.config.field_type import option_of
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

from transformers import PreTrainedTokenizerBase


class ClipTexts(BaseModel):
    """Captions as chunks of 75 tokens, each with its start and end, each read by itself.

    The hidden states of a caption's chunks stand one behind the other. Of a batch all captions have as many chunks as
    the longest one, up to `prompt_chunks`; those that are missing are the empty caption's. So do ComfyUI and A1111;
    kohya's trainers leave out the inner starts and ends.

    Attributes:
        tokenizer_of: text encoder -> its tokenizer.
    """

    reads_chunks = True

    def __init__(self, config: TrainConfig, source: ModelSource, device: torch.device) -> None:
        super().__init__(config, source, device)
        self.tokenizer_of = {TOKENIZERS[name]: source.tokenizer(name) for name in self.tokenizers}
        self.added_words = {component: AddedWords(self.tokenizer_of[component]) for component in self.embedding_keys}

    def _length(self, component: str, length: int | None) -> int:
        """Tokens of a chunk, with its start and end; `length` as in the config, None: the encoder's own."""
        return clip_length(self.tokenizer_of[component], self.layers_of(component), length)

    def _texts(self, component: str, captions: Sequence[str]) -> list[str]:
        # a word may stand for many tokens
        return [cut_text(self.added_words[component].expand(cut_text(caption))) for caption in captions]

    def _bare_ids(self, component: str, captions: Sequence[str]) -> list[list[int]]:
        """Ids of the captions themselves, however many, without start and end."""
        texts = self._texts(component, captions)
        return self.tokenizer_of[component](texts, add_special_tokens=False, verbose=False).input_ids if texts else []

    def chunks_of(self, captions: Sequence[str], lengths: Mapping[str, int | None]) -> int:
        """How many chunks the longest of some captions has, at most `prompt_chunks`.

        Args:
            captions: that are read together.
            lengths: text encoder -> its length in the config.
        """
        most = self.config.prompt_chunks
        if most == 1:
            return 1
        found = 1
        for component, length in lengths.items():
            room = max(1, self._length(component, length) - 2)
            longest = max(map(len, self._bare_ids(component, captions)), default=0)
            found = max(found, math.ceil(longest / room))
        return min(found, most)

    def tokens(self, component: str, captions: list[str], length: int | None, chunks: int = 1) -> Tensor:
        """`[b·chunks, length]` ids for a text encoder, on its device; see `_length`. Each chunk has start and end."""
        tokenizer, length = self.tokenizer_of[component], self._length(component, length)
        if chunks == 1:
            texts = self._texts(component, captions)
            return tokenizer(
                texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            ).input_ids.to(self.device)
        room, rows = max(1, length - 2), []
        for ids in self._bare_ids(component, captions):
            for start in range(0, chunks * room, room):
                row = [tokenizer.bos_token_id, *ids[start : start + room], tokenizer.eos_token_id][:length]
                rows.append(row + [tokenizer.pad_token_id] * (length - len(row)))
        return torch.tensor(rows, device=self.device)

    def text_limits(self) -> dict[str, int]:
        chunks = self.config.prompt_chunks
        return {
            component: chunks * max(0, self._length(component, self._own_length(component)) - 2)
            for component in self.tokenizer_of
        }

    def count_tokens(self, component: str, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._bare_ids(component, texts)]

    def read_more(self, component: str, tokens: int) -> str:
        room = max(1, self._length(component, self._own_length(component)) - 2)
        needed, most = math.ceil(tokens / room), option_of(type(self.config), "prompt_chunks").le
        chunks = min(needed, most)
        if chunks <= self.config.prompt_chunks:
            return ""
        return f"prompt_chunks to {chunks}" + (", which is the most there is" if needed > most else "")

    def _own_length(self, component: str) -> int | None:
        return getattr(self.config, f"{component}_sequence_length")


def clip_length(tokenizer: PreTrainedTokenizerBase, encoder: nn.Module, length: int | None) -> int:
    """Tokens that CLIP reads at once, with start and end, where `length` are wanted; None: as many as it can."""
    # the encoder has no positions beyond its own; the option's default is that of families with longer captions
    most = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    return min(length or most, most)


def join_chunks(states: Tensor, chunks: int) -> Tensor:
    """Hidden states of chunks `[b·chunks, t, d]` one behind the other, `[b, chunks·t, d]`."""
    return states if chunks == 1 else states.unflatten(0, (-1, chunks)).flatten(1, 2)


def layer_output(component: str, states: tuple[Tensor, ...], skip: int, unused: int = 0) -> Tensor:
    """What comes out of a text encoder's last layer but `skip`; UserError if it has not that many.

    Args:
        component: the text encoder's name.
        states: its hidden states, the embeddings first.
        skip: layers that the user wants left out.
        unused: last layers that the family never uses.
    """
    check_skip(component, len(states) - 1, skip, unused)
    return states[-1 - skip - unused]


def check_skip(component: str, layers: int, skip: int, unused: int = 0) -> None:
    """UserError if a text encoder of so many layers can't leave out `skip` beside those that are `unused`."""
    if skip + unused > layers:
        least = f", of which the last {unused} is never used" if unused else ""
        raise UserError(
            f"{component}_layer_skip: found {skip}, but the text encoder has only {layers} layers{least}.",
            Remedy.of({f"{component}_layer_skip": 0}),
        )


def side_by_side(states: Sequence[Tensor], family: str) -> Tensor:
    """Hidden states of the first two text encoders, `[b, t, d]` each, as one of both widths.

    Raises:
        UserError: the config lets them read different numbers of tokens.
    """
    first, second = (own.shape[1] for own in states)
    if first != second:
        raise UserError(
            f"text_encoder_sequence_length and text_encoder_2_sequence_length: found {first} and {second} tokens, "
            f"but {family} needs as many from both encoders. Set both to 77, or to null."
        )
    return torch.cat(list(states), dim=-1)
