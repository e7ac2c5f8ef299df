from enum import StrEnum


class PromptSource(StrEnum):
    """Where captions come from: a text file beside each image, one file of prompts, or the file name."""

    SAMPLE = "sample"
    CONCEPT = "concept"
    FILENAME = "filename"
