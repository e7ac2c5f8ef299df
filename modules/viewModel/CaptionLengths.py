import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modules.dataLoader.captions import join_lines, read_prompt_file, split_lines
from modules.model.cut_text import LONGEST_TEXT
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.PromptSource import PromptSource
from modules.util.texts import tr, tr_n
from modules.viewModel.option_titles import title_of_path

if TYPE_CHECKING:
    from modules.trainer.CaptionReader import CaptionReader, TextLength

# texts that are counted at once, so that the first numbers come soon: it takes a millisecond each
AT_ONCE = 500
# what `TextLength.advice` begins with
_ADVICE = re.compile(r"(\w+) to (\d+)")


@dataclass(frozen=True)
class CaptionLength:
    """How long the captions of a picture are, of which one is drawn at each use.

    Attributes:
        longest: of the one that loses most, or comes nearest to that.
        captions: how many the picture has.
        cut: how many of them are cut.
    """

    longest: "TextLength"
    captions: int = 1
    cut: int = 0

    @property
    def short(self) -> str:
        """How many tokens there are and how many are read, for a mark."""
        return tr("{tokens} / {limit} tokens", tokens=self.longest.tokens, limit=self.longest.limit)

    @property
    def sentence(self) -> str:
        """What is cut, and what to do, for people; empty if nothing is."""
        one = self.longest
        if not self.cut:
            return ""
        if one.tokens <= one.limit:
            return tr("Only the first {count} characters of this caption are read.", count=LONGEST_TEXT)
        if self.captions > 1:
            text = tr_n(
                "{n} of the {all} captions is longer than the {limit} tokens that are read. The longest has {tokens}.",
                "{n} of the {all} captions are longer than the {limit} tokens that are read. The longest has {tokens}.",
                self.cut, all=self.captions, limit=one.limit, tokens=one.tokens,
            )  # fmt: skip
        else:
            text = tr(
                "The caption has {tokens} tokens, and {limit} are read: the rest is cut.",
                tokens=one.tokens, limit=one.limit,
            )  # fmt: skip
        if advice := _ADVICE.match(one.advice):
            option = title_of_path(TrainConfig, advice[1])
            text += " " + tr("Shorten it, or set “{option}” to {value}.", option=option, value=advice[2])
        return text


class CaptionLengths:
    """How much the model of a config reads of captions, as far as that can be told from what is on this disk.

    Args:
        config: of the run.
        concept: whose options say which captions a text is. Nobody else changes either.

    Attributes:
        is_known: whether anything could be told.
    """

    def __init__(self, config: TrainConfig, concept: ConceptConfig) -> None:
        self._config, self._concept = config, concept
        self._shared = concept.text.prompt_source == PromptSource.CONCEPT
        self._reader: CaptionReader | None = None
        self._found: dict[str, CaptionLength | None] = {}
        self._off = False

    @property
    def is_known(self) -> bool:
        return bool(self._found)

    def of(self, text: str) -> CaptionLength | None:
        """The length of what a picture's caption file holds; None where there is none, or it is not known.

        Args:
            text: of the file; of a concept with one prompt file, "".
        """
        return self._found.get(text)

    def count(self, texts: Iterable[str]) -> Callable[[], dict[str, CaptionLength | None]] | None:
        """What counts the next texts, on a worker's thread, one at a time; None if all are known or none can be.

        Args:
            texts: see `of`.
        """
        if self._off:
            return None
        wanted = dict.fromkeys(text for text in texts if text not in self._found and (text or self._shared))
        some = list(wanted)[:AT_ONCE]
        return (lambda: self._count(some)) if some else None

    def take(self, found: Mapping[str, CaptionLength | None] | Exception) -> None:
        """Keeps what was counted. After an error nothing is told, rather than guessed."""
        if isinstance(found, Exception):
            self._off = True
        else:
            self._found |= found

    def begin_anew(self) -> None:
        """Tries again, as files may have changed."""
        self._off = False
        if self._shared:
            self._found.clear()

    def _count(self, texts: list[str]) -> dict[str, CaptionLength | None]:
        # it loads torch and the model's family
        from modules.trainer.CaptionReader import CaptionReader

        if self._reader is None:
            self._reader = CaptionReader(self._config)
        captions = {text: self._captions(text) for text in texts}
        lengths = self._reader.lengths(one for some in captions.values() for one in some)
        return {text: _whole([lengths[one] for one in some]) for text, some in captions.items()}

    def _captions(self, text: str) -> tuple[str, ...]:
        """The captions that a text is, as a run takes them."""
        if self._shared:
            return read_prompt_file(self._concept, "")
        if self._concept.text.prompt_source == PromptSource.FILENAME:
            return (text,)
        return join_lines(self._concept.text, split_lines(text))


def _whole(lengths: list["TextLength"]) -> CaptionLength | None:
    if not lengths:
        return None
    longest = max(lengths, key=lambda one: (one.is_cut, one.tokens - one.limit))
    return CaptionLength(longest, len(lengths), sum(one.is_cut for one in lengths))
