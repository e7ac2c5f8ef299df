from dataclasses import dataclass, field


@dataclass
class StepTimes:
    """How long the steps of a session took.

    Attributes:
        seconds: of each step.
        waited: how much of them it waited for data.
    """

    seconds: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)

    def add(self, seconds: float, waited: float) -> float:
        """Adds a step; returns its seconds."""
        self.seconds.append(seconds)
        self.waited.append(waited)
        return seconds

    @property
    def waiting_share(self) -> float | None:
        """0 to 1, of all steps; None before the first."""
        return sum(self.waited) / sum(self.seconds) if self.seconds else None
