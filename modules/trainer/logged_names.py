"""What runs and their pictures are called in logs that other programs show."""

from pathlib import Path
from typing import Any

from modules.trainer.Logger import DrawnRound, LoggedRun


def logged_config(run: LoggedRun) -> dict[str, Any]:
    """The config as JSON, without secrets, and without what only says how its file is to be read."""
    return {key: value for key, value in run.config.to_dict().items() if not key.startswith("_")}


def run_title(run: LoggedRun) -> str:
    """The name that the config gives to a run, or that of its output."""
    return run.config.logger_run_name or Path(run.config.output_model_destination).stem


def pictures_by_prompt(drawn: DrawnRound) -> dict[str, tuple[str, Path]]:
    """Key of a prompt -> prompt and file. The same key in each round, so that a slider goes over the steps."""
    kind = "samples" if drawn.averaged else "samples no-ema"
    return {f"{kind}/{path.parent.name}": (prompt, path) for prompt, path in drawn.pictures}
