from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from modules.dataLoader.DatasetReport import DatasetReport
from modules.model.BaseModel import BaseModel, family_of
from modules.model.cut_text import LONGEST_TEXT
from modules.model.hub import Hub
from modules.model.StandardSource import FullLengthTokenizer, StandardSource
from modules.trainer.long_texts import count_texts, tell_long_texts
from modules.trainer.trained import methods_of
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TextLength:
    """How long a text is for the text encoder that loses most of it, or comes nearest to that.

    Attributes:
        tokens: of the text, of which the first `LONGEST_TEXT` characters count.
        limit: tokens that are read. Those that every text has count in neither.
        is_cut: whether what is behind is not read.
        advice: what to set so that all is read, as `BaseModel.read_more` says it; empty if nothing is cut or helps.
    """

    tokens: int
    limit: int
    is_cut: bool = False
    advice: str = ""


class CaptionReader:
    """Counts how much of captions the model of a config reads, before a run.

    It needs what is on this disk and no more: nothing is asked for on the network, and no weights are read. Of families
    whose models all have CLIP's vocabulary, which is a part of this program, the model need not be there.

    Args:
        config: of the run.

    Raises:
        UserError: the tokenizers of this model are not here, or the config can't be trained in a way that decides
            how captions are read.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._model = _model_on_disk(config)
        for method in methods_of(config):
            method.add_placeholders(self._model, config)
        self._limits = self._model.text_limits()

    def lengths(self, texts: Iterable[str]) -> dict[str, TextLength]:
        """How long each text is. Tags and capitals are counted as the text has them."""
        found: dict[str, TextLength] = {}
        model, texts = self._model, list(dict.fromkeys(texts))
        for component, limit in self._limits.items():
            for text, tokens in count_texts(model, component, texts).items():
                known = found.get(text)
                if known is None or tokens - limit > known.tokens - known.limit:
                    is_cut = tokens > limit or len(text) > LONGEST_TEXT
                    advice = model.read_more(component, tokens) if is_cut else ""
                    found[text] = TextLength(tokens, limit, is_cut, advice)
        return found

    def remarks(self, report: DatasetReport) -> list[str]:
        """What a run will say of captions that are cut, a line each."""
        lines: list[str] = []
        tell_long_texts(self._model, report, (), lines.append)
        return lines


def _model_on_disk(config: TrainConfig) -> BaseModel:
    """The model of a config without weights, from this disk; where it is not there, any of its type if all read alike.

    Raises:
        UserError: see `CaptionReader`.
    """
    config = config.model_copy(update={"offline_mode": True})
    family = family_of(config)
    try:
        return family.load(config, CPU, Hub(config, settings_only=True))
    except UserError:
        if Path(config.base_model_name).expanduser().exists():
            raise
        model = family(config, StandardSource(config.model_type, config.base_model_name), CPU)
        if any(isinstance(tokenizer, FullLengthTokenizer) for tokenizer in model.tokenizer_of.values()):
            raise
        return model
