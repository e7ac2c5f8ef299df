from enum import StrEnum


class CaptionLines(StrEnum):
    """What the lines of an image's caption file are: captions of which one is drawn, or parts of one caption."""

    DRAW = "DRAW"
    JOIN = "JOIN"
    JOIN_TAGS = "JOIN_TAGS"
