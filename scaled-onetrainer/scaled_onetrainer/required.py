"""What a preset of ours names as its learning rate scheduler, so that it does not run where the plugin is missing."""

from typing import Any


class ScaledOneTrainer:
    """Stops the run: with the plugin at work, OneTrainer never comes here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            "This preset trains with an optimizer of scaled-onetrainer, which is installed but not at work. Unset the "
            "environment variable SCALED_ONETRAINER, or choose another optimizer and learning rate scheduler."
        )
