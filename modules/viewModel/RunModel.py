import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules.run.RunProcess import Event, RunProcess
from modules.util.texts import later, tr
from modules.viewModel.run_texts import run_text
from modules.viewModel.Worker import Worker

SMOOTHING = 0.95
# the pace of the last this many reports says how long the rest will take; with pauses for samples and backups in it
PACE_WINDOW = 500
LOG_LINES = 2000
# share of the time in which a run waits for data from which the window says so
SHOWN_WAIT = 0.01

# stage of a `progress` event -> what a bar is called; the rest is shown as it is
STAGES = {
    "check": later("Checking images"),
    "latents": later("Encoding images"),
    "masks": later("Preparing masks"),
    "conditioning": later("Encoding conditioning images"),
    "captions": later("Encoding captions"),
    "training": later("Steps"),
    "sampling": later("Sampling"),
}


ENDS = {"finished": later("Finished."), "stopped": later("Stopped.")}
FAILED = later("The run failed.")


@dataclass
class Bar:
    """How far something is.

    Attributes:
        title: what.
        done, total: of its steps.
        begin: steps that were done before it began.
        unit: "bytes" where it counts those.
        marks: (time in seconds, done) of the latest reports, from the end of the first step on.
    """

    title: str
    done: int = 0
    total: int = 0
    begin: int = 0
    unit: str = ""
    marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=PACE_WINDOW))

    def report(self, done: int, total: int, at: float) -> None:
        if done < self.done:
            # it begins anew, as each round of samples does
            self.marks.clear()
        if self.marks and self.marks[0][1] == self.begin < done:
            # what comes before the end of the first step, as samples and warming up do, does not come again
            self.marks.clear()
        self.done, self.total = done, total
        self.marks.append((at, done))

    @property
    def share(self) -> float:
        """0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def seconds_left(self) -> float | None:
        """None until two reports allow a guess."""
        if len(self.marks) < 2 or self.marks[-1][1] == self.marks[0][1]:
            return None
        (start, before), (end, done) = self.marks[0], self.marks[-1]
        return (end - start) / (done - before) * (self.total - done)

    @property
    def count(self) -> str:
        """How far it is, of something that goes on no more."""
        done, total = (file_size(n) if self.unit == "bytes" else str(n) for n in (self.done, self.total))
        return tr("{title}: {done} of {total}", title=run_text(self.title), done=done, total=total)

    @property
    def text(self) -> str:
        left = self.seconds_left
        if left is None or self.done >= self.total:
            return self.count
        return tr("{count} · {time} left", count=self.count, time=duration(left))


def file_size(count: int) -> str:
    """Bytes for people: `640 KB`, `7 MB`, `6.94 GB`."""
    for unit, size, digits in (("GB", 1e9, 2), ("MB", 1e6, 0)):
        if count >= size:
            return f"{count / size:.{digits}f} {unit}"
    return f"{count / 1e3:.0f} KB"


def duration(seconds: float) -> str:
    """Seconds for people: `42 s`, `3 min 05 s`, `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass(frozen=True)
class SamplePicture:
    """A picture that a run has drawn.

    Attributes:
        step: after which it was drawn.
        path: of the file.
        prompt: the name of its folder, which begins with the prompt's number, and what else tells its kind.
    """

    step: int
    path: Path
    prompt: str


class RunModel:
    """What a window shows of a run: state, bars, curves, pictures, log. Needs no display.

    Args:
        history: backup -> what was told up to it, for the curves and pictures of a run that goes on from there; called
            on a thread of its own.

    Attributes:
        run: the process, None before the first start.
        state: "idle", "running" or "ended".
        status: one line.
        outcome: of a run that ended: "finished", "stopped" or "failed".
        reason: why it failed; empty otherwise.
        bars: by stage, in the order of their first report.
        losses, smoothed, validation: (step, loss) each.
        rates: trained set -> (step, learning rate).
        samples: in the order in which they came.
        log: lines for people, the newest last.
        saved: what it has saved last, None before.
        results: count of samples, backups and saved models.
    """

    def __init__(self, history: Callable[[Path], list[Event]] = lambda backup: []) -> None:
        self._history, self._worker, self._recalled = history, Worker(), False
        self.forget()

    def forget(self) -> None:
        """Shows no run, as before the first start."""
        self.run: RunProcess | None = None
        self.state, self._status, self.outcome, self.reason = "idle", later("Nothing runs."), "", ""
        self.results = 0
        self.bars: dict[str, Bar] = {}
        self.losses: list[tuple[int, float]] = []
        self.smoothed: list[tuple[int, float]] = []
        self.validation: list[tuple[int, float]] = []
        self.rates: dict[str, list[tuple[int, float]]] = {}
        self.samples: list[SamplePicture] = []
        self.log: list[str] = []
        self.saved: Path | None = None
        self.report: dict[str, Any] = {}
        self.epoch = 0
        self.last_stage = ""
        # (seconds, seconds of them in which it waited for data) of the latest steps
        self._times: deque[tuple[float, float]] = deque(maxlen=PACE_WINDOW)

    def follow(self, run: RunProcess) -> None:
        """Shows this run from now on, from its first event."""
        self.forget()
        self.run, self.state, self._status = run, "running", later("Starting")

    def tick(self) -> bool:
        """Takes in what is new; True if anything changed. To be called a few times each second."""
        # it may bring what led to the backup that is continued
        self._worker.poll()
        recalled, self._recalled = self._recalled, False
        return self._tick() or recalled

    def _tick(self) -> bool:
        if self.run is None or self.state != "running":
            return False
        # asked first: what a run tells before its end must not be missed
        running = self.run.running
        events = self.run.events()
        for kind, values in events:
            self._take(kind, values)
        if not running:
            self._end()
        return bool(events) or not running

    def _take(self, kind: str, values: dict[str, Any]) -> None:
        take: Callable[[dict[str, Any]], None] | None = getattr(self, f"_take_{kind}", None)
        if take is not None:
            take(values)

    def _take_status(self, values: dict[str, Any]) -> None:
        self._status = values["text"]
        self._note(run_text(values["text"]))

    def _take_warning(self, values: dict[str, Any]) -> None:
        self._note(tr("warning: {text}", text=values["text"]))

    def _take_progress(self, values: dict[str, Any]) -> None:
        # the first report comes before the first step, which is not step 1 where a backup is continued
        self._report(values["stage"], values["done"], values, begin=values["done"])

    def _report(self, stage: str, done: int, values: dict[str, Any], begin: int = 0) -> None:
        # names in it stay as they are
        title = STAGES.get(stage, stage[:1].upper() + stage[1:])
        bar = self.bars.setdefault(stage, Bar(title, begin=begin, unit=values.get("unit", "")))
        bar.report(done, values["total"], values.get("time", time.time()))
        self.last_stage = stage
        if stage != "training":
            self._status = bar.title

    def _take_step(self, values: dict[str, Any]) -> None:
        self._report("training", values["step"], values)
        self.epoch = values["epoch"]
        if "epoch_batches" in values:
            self._take_epoch(values)
        else:
            self._status = tr("Training, epoch {epoch}", epoch=self.epoch + 1)
        if "data_wait" in values:
            self._times.append((values["seconds"], values["data_wait"]))
        if self.waiting_share >= SHOWN_WAIT:
            waits = tr("{share:.0%} of the time waiting for data", share=self.waiting_share)
            self._status += f" · {waits}"
        self._add_step(values)

    def _add_loss(self, step: int, loss: float) -> None:
        before = self.smoothed[-1][1] if self.smoothed else loss
        self.losses.append((step, loss))
        self.smoothed.append((step, SMOOTHING * before + (1 - SMOOTHING) * loss))

    def _add_step(self, values: dict[str, Any]) -> None:
        step = values["step"]
        self._add_loss(step, values["loss"])
        for name, rate in values["learning_rates"].items():
            self.rates.setdefault(name, []).append((step, rate))

    def _take_epoch(self, values: dict[str, Any]) -> None:
        """The place in the epoch of the last batch: one that is complete counts as present until the next begins."""
        done, total = values["epoch_batches"]
        epoch = values["epoch"] + (done < total)
        self._status = tr("Training, epoch {epoch} of {epochs}", epoch=epoch, epochs=values["epochs"])
        bar = self.bars.setdefault("epoch", Bar(""))
        bar.title = tr("Epoch {epoch} of {epochs}", epoch=epoch, epochs=values["epochs"])
        bar.report(done, total, values.get("time", time.time()))

    def _take_resumed(self, values: dict[str, Any]) -> None:
        """Curves and pictures go on from those that led to the backup, where they are still known."""
        run, path = self.run, Path(values["path"])

        def adopt(past: list[Event]) -> None:
            if self.run is run:
                self._put_before(past)

        def failed(error: Exception) -> None:
            self._note(tr("what led to {backup} cannot be shown: {error}", backup=path, error=error))

        self._worker.run(lambda: self._history(path), adopt, failed)

    def _put_before(self, past: list[Event]) -> None:
        now = self.losses, self.validation, self.rates, self.samples
        self.losses, self.smoothed, self.validation, self.rates, self.samples = [], [], [], {}, []
        for kind, values in past:
            if kind == "step":
                self._add_step(values)
            elif kind == "validation":
                self._add_validation(values)
            elif kind == "sample":
                self._add_sample(values)
        losses, validation, rates, samples = now
        for step, loss in losses:
            self._add_loss(step, loss)
        for name, points in rates.items():
            self.rates.setdefault(name, []).extend(points)
        self.validation += validation
        self.samples += samples
        self._recalled = True

    def _add_validation(self, values: dict[str, Any]) -> None:
        self.validation.append((values["step"], values["loss"]))

    def _take_validation(self, values: dict[str, Any]) -> None:
        self._add_validation(values)
        self._note(tr("validation loss after step {step}: {loss:.5f}", step=values["step"], loss=values["loss"]))

    def _take_sample(self, values: dict[str, Any]) -> None:
        self._add_sample(values)
        self.results += 1

    def _add_sample(self, values: dict[str, Any]) -> None:
        self.samples.append(picture_of(values["step"], Path(values["path"])))

    def _take_backup(self, values: dict[str, Any]) -> None:
        self._note(tr("backup: {path}", path=values["path"]))
        self.results += 1

    def _take_saved(self, values: dict[str, Any]) -> None:
        self._note(tr("saved: {path}", path=values["path"]))
        self.saved = Path(values["path"])
        self.results += 1

    def _take_finished(self, values: dict[str, Any]) -> None:
        self.report = values["report"]

    def _note(self, text: str) -> None:
        self.log = [*self.log, text][-LOG_LINES:]

    def _end(self) -> None:
        self.state = "ended"
        self.outcome, self.reason = self.run.outcome()
        self._status = ENDS.get(self.outcome, FAILED)
        if self.reason:
            self._note(self.reason)

    @property
    def status(self) -> str:
        """Kept in English where it has no values, so that another language can be chosen while it stands."""
        return run_text(self._status)

    @property
    def waiting_share(self) -> float:
        """0 to 1: how much of the latest steps was waiting for data."""
        seconds = sum(seconds for seconds, _ in self._times)
        return sum(waited for _, waited in self._times) / seconds if seconds else 0.0

    @property
    def failed(self) -> bool:
        return self.state == "ended" and self.outcome == "failed"

    @property
    def line(self) -> str:
        """State and progress in one line, for where the run itself can't be seen."""
        bar = self.bars.get(self.last_stage) if self.state == "running" else None
        reason = self.reason.splitlines()[0] if self.reason else ""
        return " · ".join(text for text in (self.status, bar.text if bar else reason) if text)

    @property
    def current_bars(self) -> list[Bar]:
        """The bars that say something now: stages that go on, and once it trains, epoch and steps."""
        return [
            bar for stage, bar in self.bars.items()
            if stage in ("training", "epoch", self.last_stage) or bar.done < bar.total
        ]  # fmt: skip

    def prompts(self) -> list[str]:
        """The prompts of which there are pictures, in their order."""
        return sorted({picture.prompt for picture in self.samples}, key=_prompt_order)

    def pictures(self, prompt: str) -> list[SamplePicture]:
        """All pictures of a prompt by step; of a step that was drawn twice the last."""
        newest = {picture.step: picture for picture in self.samples if picture.prompt == prompt}
        return [newest[step] for step in sorted(newest)]


def picture_of(step: int, path: Path) -> SamplePicture:
    """A picture by the step after which it was drawn, and its file."""
    # the picture of before and after stands in the workspace itself
    numbered = path.parent.name.split(" ", 1)[0].isdigit()
    # "step-000012-no-ema": drawn beside those of the averaged weights
    other = path.stem.split("-", 2)[2:]
    return SamplePicture(step, path, " · ".join([path.parent.name, *other]) if numbered else path.stem)


def _prompt_order(prompt: str) -> tuple[int, str]:
    number = prompt.split(" ", 1)[0]
    return (int(number), prompt) if number.isdigit() else (1 << 30, prompt)
