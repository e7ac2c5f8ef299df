from collections.abc import Mapping
from typing import Any

from modules.trainer.logged_names import logged_config, pictures_by_prompt, run_title
from modules.trainer.Logger import DrawnRound, LoggedRun, RunEnd


class TrackioLogger:
    """trackio, through its package, which is imported when a run begins. It keeps the files of all runs in one place.

    A resumed run goes on with the run of the name that is kept in backups.
    """

    name = "trackio"

    def __init__(self) -> None:
        self._run_name = ""
        self._run: Any = None
        self._trackio: Any = None
        self._draws = False

    def begin(self, run: LoggedRun) -> None:
        import trackio

        self._trackio, self._draws = trackio, run.config.samples_to_tensorboard
        known = run.kept.get("name")
        self._run_name = known or f"{run_title(run)} {run.name}"
        self._run = trackio.init(
            project=run.config.logger_project, name=self._run_name, config=logged_config(run),
            resume="allow" if known else "never", embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def pictures(self, drawn: DrawnRound) -> None:
        if self._draws:
            found = pictures_by_prompt(drawn)
            shown = {key: self._trackio.Image(str(path), caption=prompt) for key, (prompt, path) in found.items()}
            self._run.log(shown, step=drawn.step)

    def kept(self) -> dict[str, Any]:
        return {"name": self._run_name}

    def end(self, state: RunEnd) -> None:
        if self._run is not None:
            self._run.finish()
