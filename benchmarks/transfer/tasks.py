"""What is learned in the measurement of transfer: three tasks, one of them on models of four widths, and twice as long.

- lumo: the tiny diffusion model learns the README's concept. 40 steps of 8 images at a constant rate after a warm-up.
- longer: the same with 80 steps, for rules that 40 steps leave undecided.
- second: the first with another concept, another object and another style.
- sentence: a pretrained sentence model learns to classify sentences; the rate falls linearly to zero.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.quality.SentenceTask import SentenceSize, SentenceTask
from benchmarks.training.sweep import Sweep
from modules.util.config.load import load_train_config
from modules.util.UserError import UserError

ROOT = Path(__file__).resolve().parents[2]
PRESET = ROOT / "training_presets" / "Tiny" / "#tiny LoRA.json"
STEPS, LONGER = 40, 80
WARMUP = 5
# of noise for each of the 48 images that a training is measured on
DRAWS = 2
# the attention blocks, as OneTrainer's preset of that name; half of a training's time is theirs
LAYERS = "attentions"
SENTENCE = SentenceSize(
    steps=60, batch=16, train=100, tuning=30, validation=1, layers=("layer.3", "layer.4", "layer.5")
)
ONE = "1"
# width -> folder of the base model, and the command that makes it
WIDTHS: Mapping[str, str] = {
    "1/4": "workspace/tiny_widths/quarter", "1/2": "workspace/tiny_widths/half", ONE: "models/tiny_sd",
    "2": "workspace/tiny_widths/double",
}  # fmt: skip
MAKE_WIDTHS = "./run-cmd.sh make_tiny_widths"
DEMO = "training_concepts/tiny_concept.json"
SECOND = "workspace/second_concept.json"
MAKE_SECOND = "./run-cmd.sh make_tiny_concept --concept boat"


class Learner(Protocol):
    """A task on one base model, ready to be trained again and again from the start.

    Attributes:
        untrained: the loss before any training.
    """

    untrained: float

    def train(self, options: Mapping[str, Any], rate: float, seed: int) -> float:
        """One training with options of a `TrainConfig`; the same arguments give the same result.

        Returns:
            the loss on data with draws of noise that no step saw; infinite if the run diverged.
        """


class DiffusionLearner:
    """A concept on a small diffusion model.

    Args:
        base: folder of the model.
        concepts: file with the list of concepts.
        cache: folder for encoded images.
        steps: of each training.
    """

    def __init__(self, base: Path, concepts: Path, cache: Path, steps: int = STEPS) -> None:
        changes = [
            f"base_model_name={base}", f"concept_file_name={concepts}", f"cache_dir={cache}",
            f"layer_filter={LAYERS}", "layer_filter_preset=custom", "loss_weight_fn=CONSTANT",
            "learning_rate_scheduler=CONSTANT", f"learning_rate_warmup_steps={WARMUP}",
        ]  # fmt: skip
        config = load_train_config(PRESET, changes, warn=silent)
        self.sweep = Sweep(config, steps, silent, held_out=False, draws=DRAWS)
        self.untrained = self.sweep.untrained[0]

    def train(self, options: Mapping[str, Any], rate: float, seed: int) -> float:
        return self.sweep.run({**options, "seed": seed}, rate).training


class SentenceLearner:
    """Sentences on a pretrained sentence model; untrained, the classifier alone has learned."""

    def __init__(self, size: SentenceSize = SENTENCE) -> None:
        self.task = SentenceTask(size)
        self.untrained = self.train({"lora_rank": 1, "lora_alpha": 1.0}, 0.0, 0)

    def train(self, options: Mapping[str, Any], rate: float, seed: int) -> float:
        return self.task.train(options, rate, seed).tuning


@dataclass(frozen=True)
class TransferTask:
    """A task and how it is made ready.

    Attributes:
        title: in tables and pictures.
        widths: of the bases that it can be trained on.
        make: width and a folder for caches -> learner.
    """

    title: str
    widths: tuple[str, ...]
    make: Callable[[str, Path], Learner]


def base_folder(width: str) -> Path:
    """Of the base model of a width; UserError if it was not made yet."""
    folder = ROOT / WIDTHS[width]
    if not folder.is_dir():
        raise UserError(f"{WIDTHS[width]} is not there, the base model of width {width}. Make it: {MAKE_WIDTHS}")
    return folder


def present_widths() -> list[str]:
    """The widths whose base models are there, the usual one always."""
    return [width for width in WIDTHS if width == ONE or (ROOT / WIDTHS[width]).is_dir()]


def _concept(path: str, steps: int = STEPS) -> Callable[[str, Path], Learner]:
    def make(width: str, cache: Path) -> Learner:
        base = base_folder(width)
        if not (ROOT / path).is_file():
            raise UserError(f"{path} is not there, the list of a concept. Make it: {MAKE_SECOND}")
        return DiffusionLearner(base, ROOT / path, cache / base.name, steps)

    return make


# a new task is one line here
TASKS: Mapping[str, TransferTask] = {
    "lumo": TransferTask("demo concept", tuple(WIDTHS), _concept(DEMO)),
    "longer": TransferTask(f"demo concept, {LONGER} steps", (ONE,), _concept(DEMO, LONGER)),
    "second": TransferTask("second concept", (ONE,), _concept(SECOND)),
    "sentence": TransferTask("sentences", (ONE,), lambda width, cache: SentenceLearner()),
}


def silent(text: str) -> None:
    """What the trainer remarks would be said again at each of hundreds of runs."""
