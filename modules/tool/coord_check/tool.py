"""What `scripts/coord_check.py` does: how much one optimizer step changes, over methods, sizes and widths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from modules.model.hub import Progress
from modules.model.model_name import short_name
from modules.tool.coord_check.CheckedBase import CheckedBase
from modules.tool.coord_check.methods import BATCH, BLOCKS, CHECKED, RANKS, USUAL, WARM
from modules.tool.coord_check.report import Row, Spread, spreads
from modules.tool.coord_check.variants import Variant, check_variant, comparable, method_of, prepared, variants_of
from modules.trainer.devices import resolve_device
from modules.util.config.load import load_train_config
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.release_memory import release_memory
from modules.util.UserError import UserError

import torch

Say = Callable[[str], None]


@dataclass(frozen=True)
class CheckWishes:
    """What the command line asked for.

    Attributes:
        config: a preset or config.
        overrides: texts `path=value`, see `load_train_config`; they hold for every config.
        methods: keys of `CHECKED`; None: those of `USUAL` that the optimizer can train.
        ranks: of methods with factors, each at least 1.
        blocks: block sizes of rotations, each at least 2.
        widths: further configs (.json), or base models with which `config` is measured.
        rate: learning rate; None: that of each config.
        warm: numbers of steps before the one that is measured, each at least 0.
        batch: images of a batch, at least 1.
    """

    config: Path
    overrides: Sequence[str] = ()
    methods: Sequence[str] | None = None
    ranks: Sequence[int] = RANKS
    blocks: Sequence[int] = BLOCKS
    widths: Sequence[str] = ()
    rate: float | None = None
    warm: Sequence[int] = WARM
    batch: int = BATCH


@dataclass
class CheckResult:
    """What was measured.

    Attributes:
        title: of the config and its optimizer.
        device: on which it was measured.
        rows: of all bases and variants, the config as it is first.
        spreads: over sizes and widths.
    """

    title: str
    device: torch.device
    rows: list[Row] = field(default_factory=list)
    spreads: list[Spread] = field(default_factory=list)

    def beyond(self, bound: float) -> list[Spread]:
        """The spreads above a bound, the largest first."""
        return sorted((one for one in self.spreads if one.value > bound), key=lambda one: -one.value)

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "rows": [row.to_json() for row in self.rows],
            "spreads": [one.to_json() for one in self.spreads],
        }


def check_coordinates(
    wishes: CheckWishes,
    say: Say,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_download: Progress = lambda stage, done, total: None,
) -> CheckResult:
    """Measures every variant of every config. Nothing is written, no cache either.

    Args:
        wishes: of the command line.
        say: gets remarks, each once.
        on_progress: is told of steps, done and in all.
        on_download: is told of what comes from the hub.

    Raises:
        UserError, ConfigError: something can't be read or trained, or there is nothing to compare.
    """
    told: set[str] = set()

    def warn(text: str) -> None:
        if text not in told:
            told.add(text)
            say(f"note: {text}")

    configs = _configs(wishes, warn)
    plans = [(config, _plan(config, wishes, warn)) for config in configs]
    if not comparable([(config.base_model_name, variant) for config, variants in plans for variant in variants]):
        raise UserError("No two variants differ in size or width alone. Give more of --ranks, --blocks or --widths.")
    result = CheckResult(_title(configs[0], wishes), resolve_device(configs[0]))
    steps = max(wishes.warm) + 1
    total, begun = steps * sum(len(variants) for _, variants in plans), 0
    for name, (config, variants) in zip(_names(configs), plans, strict=True):
        base = CheckedBase(config, steps, wishes.batch, warn, on_download)
        for variant in variants:
            done = count(begun + 1)
            changes = base.measure(variant, wishes.warm, lambda own=done: on_progress(next(own), total))
            result.rows += [Row(name, base.width, variant, warm, changes[warm]) for warm in sorted(changes)]
            # also where training ended early
            begun += steps
            on_progress(begun, total)
        # the next one needs its memory
        del base
        release_memory(result.device)
    result.spreads = spreads(result.rows)
    return result


def _configs(wishes: CheckWishes, warn: Say) -> list[TrainConfig]:
    first = load_train_config(wishes.config, wishes.overrides, warn=warn)
    found = [first]
    for place in wishes.widths:
        if place.lower().endswith(".json"):
            found.append(load_train_config(place, wishes.overrides, warn=warn))
        else:
            found.append(first.model_copy(update={"base_model_name": place}))
    for config in found:
        method_of(config)
    if any(config.train_dtype != DataType.FLOAT_32 for config in found):
        warn(
            f"train_dtype: {found[0].train_dtype} rounds predictions, so small changes of them are partly rounding; "
            "layers are measured in FLOAT_32. --override train_dtype=FLOAT_32 measures both."
        )
    return [prepared(config, wishes.rate, warn) for config in found]


def _names(configs: Sequence[TrainConfig]) -> list[str]:
    """What each base model is called in tables: without its place, unless two would have one name then."""
    places = [config.base_model_name for config in configs]
    if len(set(places)) < len(places):
        raise UserError(f"--widths: expected a base model of its own for each, found {', '.join(places)}.")
    short = [short_name(place) for place in places]
    return short if len(set(short)) == len(short) else places


def _plan(config: TrainConfig, wishes: CheckWishes, warn: Say) -> list[Variant]:
    """The variants that the optimizer can train. One that was asked for and that it can't train is an error."""
    found = []
    for variant in variants_of(
        config, USUAL if wishes.methods is None else wishes.methods, wishes.ranks, wishes.blocks
    ):
        try:
            check_variant(variant, warn)
        except UserError as error:
            if variant.is_reference or wishes.methods is not None:
                raise UserError(f"{variant.name}: {error}") from error
            warn(f"{CHECKED[variant.method].title} is left out: {error}")
            continue
        found.append(variant)
    # full fine-tuning changes the weights, after which the base model is read again
    return sorted(found, key=lambda variant: (not variant.is_reference, variant.method == "full"))


def _title(config: TrainConfig, wishes: CheckWishes) -> str:
    own = config.optimizer
    scaled = (f" scaled ({own.scale_law})" if own.scale_law else " scaled") if own.scaled_optm else ""
    return f"{wishes.config.stem}: {own.optimizer}{scaled}, rate {config.learning_rate:g}"
