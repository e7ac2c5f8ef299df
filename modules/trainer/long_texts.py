"""Tells which captions and prompts are longer than the text encoders read."""

from collections.abc import Callable, Iterable, Sequence

from modules.dataLoader.DatasetReport import DatasetReport
from modules.model.BaseModel import BaseModel
from modules.model.cut_text import LONGEST_TEXT
from modules.util.config.SampleConfig import SampleConfig

AT_ONCE = 1000
"""Captions that are tokenized together."""


def tell_long_texts(
    model: BaseModel, report: DatasetReport | None, samples: Sequence[SampleConfig], warn: Callable[[str], None]
) -> None:
    """One line for each kind of text and each limit: how many are cut, and by how much.

    Tags and capitals are counted as the files have them.

    Args:
        model: whose tokenizers count; no weights are needed.
        report: whose images' captions are counted.
        samples: whose prompts are counted.
        warn: gets the lines.
    """
    images = report.images if report else []
    captions = [(text, image.caption_path or image.path) for image in images for text in image.captions]
    prompts = [
        (text, f"the {kind} of sample {index}")
        for index, sample in enumerate(samples, 1)
        for kind, text in (("prompt", sample.prompt), ("negative prompt", sample.negative_prompt))
    ]
    for what, texts in (("captions", captions), ("prompts", prompts)):
        for line in _lines(model, what, texts):
            warn(line)


def count_texts(model: BaseModel, component: str, texts: Iterable[str]) -> dict[str, int]:
    """Text -> its tokens, counted as in `BaseModel.text_limits`; each text once."""
    ordered, counts = list(dict.fromkeys(texts)), {}
    for start in range(0, len(ordered), AT_ONCE):
        some = ordered[start : start + AT_ONCE]
        counts.update(zip(some, model.count_tokens(component, some), strict=True))
    return counts


def _lines(model: BaseModel, what: str, texts: Sequence[tuple[str, str]]) -> list[str]:
    components: dict[str, list[str]] = {}
    for component, limit in model.text_limits().items():
        counts = count_texts(model, component, (text for text, _ in texts))
        cut = [(counts[text], text, where) for text, where in texts if counts[text] > limit or len(text) > LONGEST_TEXT]
        if cut:
            tokens, text, where = max(cut, key=lambda one: (one[0], len(one[1])))
            advice = model.read_more(component, tokens)
            line = (
                f"{limit} tokens are read, and {len(cut)} of {len(texts)} {what} {'has' if len(cut) == 1 else 'have'} "
                f"more: what is behind is cut. The longest has {'more than ' if len(text) > LONGEST_TEXT else ''}"
                f"{tokens}: {where}. Shorten them{f', or set {advice}' if advice else ''}"
            )
            components.setdefault(line, []).append(component)
    # encoders with the same tokenizer say the same
    return [f"{', '.join(names)}: {line}" for line, names in components.items()]
