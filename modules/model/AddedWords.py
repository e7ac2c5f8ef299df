"""Words that a text encoder learns beside its vocabulary (textual inversion, arXiv 2208.01618).

Axes: `b` batch, `t` tokens of a text, `n` tokens of all added words, `w` width of the text encoder.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transformers import AddedToken, PreTrainedTokenizerBase

# gives an added word's vectors as they are now, `[its tokens, w]`
Vectors = Callable[[], Tensor]


class AddedWords:
    """The added words of one text encoder. Each stands for one or several tokens with vectors of their own.

    The encoder's own table of token vectors is neither changed nor extended: the vectors of added tokens are put in
    behind the look-up, so that gradients reach them and nothing else. The encoder itself never sees the new tokens'
    numbers, as some encoders take the highest one for the end of the text.

    Args:
        tokenizer: the encoder's; gets a token for each vector.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._words: dict[str, tuple[list[str], Vectors]] = {}
        self._first = 0
        self._pattern: re.Pattern[str] | None = None
        self._ids: Tensor | None = None

    def __bool__(self) -> bool:
        return bool(self._words)

    def add(self, word: str, vectors: Vectors) -> None:
        """Makes `word` stand for `vectors()`, whose number must never change.

        See `word_pattern` for where the word is found.
        """
        key = word.lower()
        assert key and key not in self._words, f"{word!r} is there already"
        names = [f"{key}#{index}" for index in range(len(vectors()))]
        self.tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
        ids = self.tokenizer.convert_tokens_to_ids(names)
        self._first = self._first or ids[0]
        total = sum(len(others) for others, _ in self._words.values())
        expected = list(range(self._first + total, self._first + total + len(names)))
        assert ids == expected, f"the tokenizer numbers new tokens {ids}, expected {expected}"
        self._words[key] = names, vectors
        self._pattern = word_pattern(self._words)

    def expand(self, text: str) -> str:
        """The text with the tokens of every added word in the word's place."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda found: f" {' '.join(self._words[found[0].lower()][0])} ", text)

    def vectors_of(self, encoder: nn.Module, text: str) -> Tensor:
        """The vectors of a text's tokens in the encoder's own table, `[t, w]`, float32, without gradient."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return encoder.get_input_embeddings().weight.detach()[ids].float()

    def fingerprint(self) -> str:
        """A hash of words and vectors, for keys of encoded captions; "" if there are none."""
        if not self._words:
            return ""
        digest = hashlib.sha256()
        for word, (_, vectors) in self._words.items():
            data = vectors().detach().float().cpu().contiguous()
            digest.update(f"{word} {tuple(data.shape)}".encode())
            digest.update(data.numpy().tobytes())
        return f" {digest.hexdigest()[:16]}"

    def hook(self, encoder: nn.Module) -> None:
        """Lets an encoder know the words, also those that are added later. To be called once for each encoder."""
        table = encoder.get_input_embeddings()
        look_up = table.forward
        encoder.register_forward_pre_hook(self._hide, with_kwargs=True)
        table.forward = lambda ids: self._put_in(look_up(ids))

    def _hide(self, encoder: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple, dict]:
        """Gives the encoder the number of a usual token for each added one."""
        ids = arguments[0] if arguments else options.pop("input_ids")
        self._ids = ids
        return (ids.masked_fill(ids >= self._first, 0), *arguments[1:]), options

    def _put_in(self, usual: Tensor) -> Tensor:
        """`[b, t, w]` with the vectors of added tokens in their places; gradients flow to these alone."""
        assert self._ids is not None and self._ids.shape == usual.shape[:-1], "the encoder is called by a part of it"
        place = self._ids - self._first
        vectors = torch.cat([vectors() for _, vectors in self._words.values()]).to(usual)
        added = F.embedding(place.clamp(min=0), vectors)
        return torch.where((place >= 0).unsqueeze(-1), added, usual)


def word_pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Finds words in a text: in any capitals, and not as a part of another word, if they begin or end like one."""
    # of two words of which one begins like the other, the longer one is meant
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(_whole_word, longest_first)), re.IGNORECASE)


def _whole_word(word: str) -> str:
    """A pattern for the word, but not inside of another one."""
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.search(r"\w$", word) else ""
    return before + re.escape(word) + after
