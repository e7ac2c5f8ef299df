"""Remarks about layers for people: each once, with the first layer, and how many more it is about."""

from collections.abc import Iterable


def summarized(notes: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each topic.

    Args:
        notes: (topic, remark that names its layer), in the order of the layers.
    """
    found: dict[str, list[str]] = {}
    for topic, remark in notes:
        found.setdefault(topic, []).append(remark)
    return [_one_line(remarks) for remarks in found.values()]


def _one_line(remarks: list[str]) -> str:
    more = len(remarks) - 1
    return remarks[0] if not more else f"{remarks[0]}; {more} more {'layer' if more == 1 else 'layers'} likewise"
