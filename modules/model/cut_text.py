LONGEST_TEXT = 100_000
"""Characters of a caption or prompt that tokenizers see. What they make of it is longer than any encoder reads."""


def cut_text(text: str) -> str:
    """A caption or prompt without what no text encoder reads, so that tokenizing has a bound on its time."""
    return text[:LONGEST_TEXT]
