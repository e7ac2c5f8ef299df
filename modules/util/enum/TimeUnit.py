from enum import StrEnum


class TimeUnit(StrEnum):
    """The unit of an interval. `NEVER` switches the event off, `ALWAYS` makes it happen at every step."""

    EPOCH = "EPOCH"
    STEP = "STEP"
    SECOND = "SECOND"
    MINUTE = "MINUTE"
    HOUR = "HOUR"
    NEVER = "NEVER"
    ALWAYS = "ALWAYS"
