import secrets
from collections.abc import Mapping
from typing import Any

from modules.trainer.logged_names import logged_config, pictures_by_prompt, run_title
from modules.trainer.Logger import DrawnRound, LoggedRun, RunEnd
from modules.util.enum.WandbMode import WandbMode

STEP = "step"
# seconds after which the network is given up: at the start, and for what is left to send at the end
PATIENCE = 60.0


class WandbLogger:
    """Weights & Biases, through its package `wandb`, imported when a run begins. Its files are in the workspace.

    A resumed run goes on with the same run there, by the id that is kept in backups. Its x axis is the run's step, so
    that a run which goes on from an earlier step loses nothing.
    """

    name = "wandb"

    def __init__(self) -> None:
        self._id = ""
        self._run: Any = None
        self._wandb: Any = None
        self._draws = False

    def begin(self, run: LoggedRun) -> None:
        import wandb

        config, self._wandb = run.config, wandb
        self._draws = config.samples_to_tensorboard
        offline = config.offline_mode or config.wandb_mode == WandbMode.OFFLINE
        key = config.secrets.wandb_api_key
        if not offline and not key and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("it knows no API key. Set the API key of wandb, or run `wandb login` once")
        self._id = run.kept.get("id") or secrets.token_hex(4)
        self._run = wandb.init(
            project=config.logger_project, name=run_title(run), id=self._id, resume="allow",
            mode="offline" if offline else "online", dir=str(run.workspace), config=logged_config(run),
            allow_val_change=True,
            # what the program prints and the code that runs are nobody's business there
            settings=wandb.Settings(
                console="off", save_code=False, disable_git=True, init_timeout=PATIENCE, finish_timeout=PATIENCE,
                **({"api_key": key} if key else {}),
            ),
        )  # fmt: skip
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, STEP: step})

    def pictures(self, drawn: DrawnRound) -> None:
        if self._draws:
            found = pictures_by_prompt(drawn)
            shown = {key: self._wandb.Image(str(path), caption=prompt) for key, (prompt, path) in found.items()}
            self._run.log({**shown, STEP: drawn.step})

    def kept(self) -> dict[str, Any]:
        return {"id": self._id}

    def end(self, state: RunEnd) -> None:
        if self._run is not None:
            self._run.summary["state"] = str(state)
            self._run.finish(exit_code=1 if state == RunEnd.FAILED else 0)
