import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.forgetting.anchors import measure_anchors, relative_distance
from benchmarks.forgetting.drawings import write_ordinary, write_unseen_concept
from benchmarks.forgetting.pictures import PictureJudge
from benchmarks.forgetting.Setting import Setting
from benchmarks.forgetting.tasks import (
    ALONE,
    BESIDE,
    CONCEPT_FOLDER,
    ORDINARY_FOLDER,
    ORDINARY_PASSES,
    TRAINED_FOLDERS,
    TaskSize,
)
from benchmarks.training.sweep import COMPONENT, Sweep
from benchmarks.transfer.tasks import LAYERS, PRESET, WARMUP, silent
from modules.dataLoader.prepare_data import prepare_data
from modules.dataLoader.TrainingData import TrainingData
from modules.module.AdapterSet import AdapterSet
from modules.module.dense_weight import dense_weight
from modules.trainer.TrainedSet import TrainedSet
from modules.trainer.validation import validation_loss
from modules.util.config.load import load_train_config, resolve_concepts

import torch
from torch import Tensor, nn

# of the loss that benchmarks/tinyBase/build.py trains the base with
BASE_WEIGHTING, BASE_GAMMA = "MIN_SNR_GAMMA", 5
# what a training came to, by name; as it goes to the file
Measures = dict[str, Any]


class Learner:
    """Trains the concept on one base model again and again, and measures what was learned and what was kept.

    Losses are weighted as those that the base was made with. By any other weighting the base is not at its best, so
    training on anything would seem to improve what it knows.

    Args:
        base: folder of the model.
        folder: for drawings and encoded images.
        size: how much is trained and measured.
        beside: what is trained beside the concept, a key of `BESIDE`; as many pictures as of the concept, in twice the
            steps, so that each picture of the concept is seen as often as without.

    Attributes:
        base_measures: losses of the base model itself: `training` and `held_out` of the concept, `ordinary`, and
            `exchanged` of the same scenes with captions of others.
    """

    def __init__(self, base: Path, folder: Path, size: TaskSize, beside: str = ALONE) -> None:
        write_unseen_concept(folder / "unseen", size.held_out)
        write_ordinary(folder / "ordinary", size.ordinary)
        write_ordinary(folder / "exchanged", size.ordinary, exchanged=True)
        names = ("unseen", "ordinary", "exchanged")
        unseen, ordinary, exchanged = (_concepts_file(folder / name, beside) for name in names)
        changes = [
            f"base_model_name={base}", f"concept_file_name={unseen}", f"cache_dir={folder / 'cache'}",
            f"layer_filter={LAYERS}", "layer_filter_preset=custom", f"loss_weight_fn={BASE_WEIGHTING}",
            f"loss_weight_strength={BASE_GAMMA}", "learning_rate_scheduler=CONSTANT",
            f"learning_rate_warmup_steps={WARMUP}",
        ]  # fmt: skip
        config = load_train_config(PRESET, changes, warn=silent)
        steps = size.steps if beside == ALONE else 2 * size.steps
        self.sweep = Sweep(config, steps, silent, held_out=False, draws=size.draws)
        self.size, self._judge = size, PictureJudge(base, size)
        named = {"held_out": unseen, "ordinary": ordinary, "exchanged": exchanged}
        self._measured_sets = {name: self._measured(path) for name, path in named.items()}
        self.base_measures: Measures = {"training": self.sweep.untrained[0], **self._losses()}

    def _measured(self, concepts: Path) -> TrainingData:
        config = self.sweep.config.model_copy(update={"concept_file_name": str(concepts)})
        listed = resolve_concepts(config, warn=silent)
        return prepare_data(config, listed, self.sweep.model, cache_text=True, validation=True, warn=silent)

    def _losses(self) -> dict[str, float]:
        # the same noise and timesteps for the same scenes, with their own captions and with exchanged ones
        return {
            name: validation_loss(self.sweep.model, data, self.sweep.config.seed, self.size.draws)
            for name, data in self._measured_sets.items()
        }

    def measure(self, setting: Setting, rate: float, seed: int) -> Measures:
        """One training.

        Args:
            setting: what is trained; its task, width and `beside` are those of this learner.
            rate: learning rate, reached after a short warm-up.
            seed: of noise, timesteps, order and adapters.

        Returns:
            losses as in `base_measures`; `drift`, ‖W − W₀‖ over ‖W₀‖ of the weights of the trained layers; `anchor`,
            see `AnchorMeasures`, or None; `pictures` and `base_pictures`, see `PictureJudge`, where the setting wants
            them; `seconds` of the steps. Losses of a run that diverged are not finite.
        """
        found: Measures = {}
        starts: dict[nn.Parameter, Tensor] = {}

        def observe(parameters: Sequence[nn.Parameter]) -> Callable[[int], AbstractContextManager[Any]]:
            starts.update((parameter, parameter.detach().clone()) for parameter in parameters)
            return lambda step: nullcontext()

        def examine(trained: TrainedSet, optimizer: torch.optim.Optimizer) -> None:
            found.update(self._losses(), drift=drift(trained, starts))
            anchor = measure_anchors(optimizer, starts, setting.mode)
            found["anchor"] = anchor and asdict(anchor)
            if setting.pictures:
                found["pictures"] = self._judge.rates(self.sweep.model.components[COMPONENT])

        options = {**setting.options(), "seed": seed}
        base_pictures = self._judge.base_rates(self.sweep.model.components[COMPONENT]) if setting.pictures else None
        outcome = self.sweep.run(options, rate, observe=observe, examine=examine)
        found |= {"training": outcome.training, "seconds": round(outcome.seconds, 1)}
        if base_pictures is not None:
            found["base_pictures"] = base_pictures
        return found


@torch.no_grad()
def drift(trained: TrainedSet, starts: dict[nn.Parameter, Tensor]) -> float:
    """‖W − W₀‖ over ‖W₀‖ of all weights of linear layers and convolutions that are trained, adapters merged."""
    if isinstance(trained, AdapterSet):
        pairs = [(own.delta_weight(), dense_weight(own.layer)) for own in trained.adapters.values()]
    else:
        pairs = [(p - start, start) for p, start in starts.items() if p.dim() > 1]
    return relative_distance(pairs)


def finite(measures: Measures) -> Measures:
    """The same for a JSON file: numbers rounded to six digits, None where they are not finite."""

    def told(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: told(own) for name, own in value.items()}
        if isinstance(value, float):
            return float(f"{value:.6g}") if math.isfinite(value) else None
        return value

    return told(measures)


def _concepts_file(measured: Path, beside: str) -> Path:
    """Writes a concepts file beside a folder: what is trained on, and that folder to measure on."""
    listed = [_concept(CONCEPT_FOLDER / name, "STANDARD") for name in TRAINED_FOLDERS]
    if BESIDE[beside]:
        listed.append(_concept(CONCEPT_FOLDER / ORDINARY_FOLDER, BESIDE[beside]) | {"balancing": ORDINARY_PASSES})
    path = measured.with_suffix(".json")
    path.write_text(json.dumps([*listed, _concept(measured, "VALIDATION")]), encoding="utf-8")
    return path


def _concept(folder: Path, kind: str) -> dict[str, Any]:
    return {"name": folder.name, "path": str(folder), "type": kind, "text": {"prompt_source": "sample"}}
