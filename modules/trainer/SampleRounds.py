from collections.abc import Callable, Sequence
from pathlib import Path

from modules.model.BaseModel import BaseModel
from modules.trainer.events import TrainEvents
from modules.trainer.Logger import DrawnRound
from modules.trainer.sampling import draw_samples, file_name, make_grid, save_picture
from modules.trainer.TrainProgress import TrainProgress
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from modules.util.World import ALONE, World

from PIL import Image

# a sample is never worth a run
FAILURES = (OSError, RuntimeError, ValueError, MemoryError, UserError)


class SampleRounds:
    """Draws the samples of a run and keeps them: a folder for each prompt, a grid for each round.

    Files go to `<workspace>/samples/`: `<n> - <prompt>/step-<step>`, and `grid/step-<step>` with all of a round.

    Args:
        model: draws.
        samples: what to draw.
        config: image format and seed.
        workspace: the run's folder.
        progress: gets a record of every round, so that a resumed run knows the earlier ones.
        events: are told of every picture.
        world: the processes, each of which draws a part of the samples. The one that leads keeps and tells them.
        in_step: whether all draw every sample, as they can only call the model together. What fails then ends the run.
        stopped: whether the run is to end. Then the rest of a round is left out, where one process draws it.
    """

    def __init__(
        self,
        model: BaseModel,
        samples: Sequence[SampleConfig],
        config: TrainConfig,
        workspace: Path,
        progress: TrainProgress,
        events: TrainEvents,
        world: World = ALONE,
        in_step: bool = False,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model, self.samples, self.config = model, list(samples), config
        self.folder, self.workspace = workspace / "samples", workspace
        self.progress, self.events, self.world, self.in_step = progress, events, world, in_step
        # what one process draws alone is kept as it is drawn; what several draw, when all are done
        self._alone, self._stopped = world.alone, stopped if world.alone else lambda: False

    def draw(self, suffix: str = "") -> DrawnRound | None:
        """One round with the weights as they are; returns it in the process that leads, if anything was drawn.

        Args:
            suffix: tells it from the round of the averaged weights at the same step.
        """
        if not self.samples:
            return None
        step = self.progress.step
        kind, name = self.config.sample_image_format, f"step-{step:06d}{'-' + suffix if suffix else ''}"
        kept: dict[int, str] = {}

        def keep(index: int, picture: Image.Image) -> None:
            path = save_picture(picture, self.folder / file_name(index, self.samples[index].prompt) / name, kind)
            kept[index] = str(path)
            self.events.emit("sample", step=step, path=str(path))

        pictures = self._draw(keep if self._alone else lambda index, picture: None)
        if not self.world.leads or pictures is None:
            return None
        try:
            for index, picture in enumerate(pictures):
                if picture is not None and index not in kept:
                    keep(index, picture)
            files = [kept[index] for index in sorted(kept)]
            drawn = [(self.samples[index].prompt, Path(kept[index])) for index in sorted(kept)]
            if not files or self._stopped() and len(files) < len(pictures):
                return DrawnRound(step, drawn, None, not suffix) if files else None
            grid = make_grid([(f"step {step}", pictures)], [sample.prompt for sample in self.samples])
            grid_path = save_picture(grid, self.folder / "grid" / name, kind)
        except FAILURES as error:
            self.events.emit("warning", text=self._failed(str(error)))
            return None
        record = {"step": step, "grid": str(grid_path), "files": files}
        if not suffix:
            self.progress.samples = [r for r in self.progress.samples if r["step"] != step] + [record]
        return DrawnRound(step, drawn, grid_path, not suffix)

    def _draw(self, take: Callable[[int, Image.Image], None]) -> list[Image.Image | None] | None:
        """The pictures of all samples, in the process that leads; None for those that can't be drawn.

        None in place of all: the only process could not draw or keep them, which was told.

        Args:
            take: gets each that this process draws, and its number, as soon as it is there.
        """
        step, warnings = self.progress.step, []
        own = range(len(self.samples)) if self.in_step else self.world.own(range(len(self.samples)))
        drawn: list[Image.Image | None] = [None] * len(own)
        failed = False
        try:
            drawn = draw_samples(
                self.model, [self.samples[index] for index in own], self.config.seed, step, warnings.append,
                lambda done, total: self.events.emit("progress", stage="sampling", done=done, total=total),
                list(own), self.in_step, take, self._stopped,
            )  # fmt: skip
        except FAILURES as error:
            if self.in_step:
                raise
            failed = self._alone
            warnings.append(self._failed(str(error)))
        finally:
            self.model.rest()
        if self.in_step:
            found = [(dict(zip(own, drawn, strict=True)), warnings)]
        else:
            found = self.world.gather((dict(zip(own, drawn, strict=True)), warnings))
        for text in dict.fromkeys(text for _, texts in found for text in texts):
            self.events.emit("warning", text=text)
        if failed:
            return None
        pictures = {index: picture for some, _ in found for index, picture in some.items()}
        return [pictures[index] for index in range(len(self.samples))]

    def _failed(self, why: str) -> str:
        return f"The samples of step {self.progress.step} failed: {why}"

    def tell_before_after(self) -> None:
        """Saves and tells a picture of the first round above the last one, if there are two."""
        path = self._before_after()
        if path is not None:
            self.events.emit("sample", step=self.progress.step, path=str(path))

    def _before_after(self) -> Path | None:
        rounds = sorted(self.progress.samples, key=lambda record: record["step"])
        rounds = [record for record in rounds if record["files"]]
        if len(rounds) < 2 or rounds[0]["step"] == rounds[-1]["step"]:
            return None
        first, last = rounds[0], rounds[-1]
        try:
            rows = [
                (name, [Image.open(file).convert("RGB") for file in record["files"]])
                for name, record in (("before", first), (f"after {last['step']} steps", last))
            ]
        except OSError as error:
            self.events.emit("warning", text=f"No before/after picture: {error}")
            return None
        if len({len(row) for _, row in rows}) != 1:
            return None
        captions = [Path(file).parent.name.split(" - ", 1)[-1] for file in last["files"]]
        return save_picture(make_grid(rows, captions), self.workspace / "before_after", self.config.sample_image_format)
