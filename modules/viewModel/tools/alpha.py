"""The calculator of another alpha, with everything that has to change with it."""

from typing import Any

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.texts import later, tr
from modules.util.UserError import UserError
from modules.viewModel.tools.call_script import folded
from modules.viewModel.tools.Tool import Tool
from modules.viewModel.tools.ToolResult import ToolResult

ALPHA = later("alpha calculator")
G = OptionGroup.ADAPTER


class AlphaInput(BaseConfig):
    """What the alpha calculator starts from."""

    lora_rank: int = option(16, "Rank", "Rank of the adapter. It is not changed.", G, ge=1)
    lora_alpha: float = option(1.0, "Alpha now", "Alpha that the other values belong to.", G, gt=0)
    learning_rate: float = option(3e-4, "Learning rate now", "Learning rate that goes with it.", G, ge=0)
    optimizer: Optimizer = option(
        Optimizer.ADAMW, "Optimizer", "How steps go with the gradient's size depends on it.", G
    )
    new_alpha: float = option(16.0, "New alpha", "Alpha that training is to have, with all else equivalent.", G, gt=0)


def alpha_input(config: TrainConfig) -> AlphaInput:
    """What the run's config has now, with alpha = rank as the wish."""
    return AlphaInput(
        lora_rank=config.lora_rank, lora_alpha=config.lora_alpha, learning_rate=config.learning_rate,
        optimizer=config.optimizer.optimizer, new_alpha=float(config.lora_rank),
    )  # fmt: skip


def alpha_start(config: TrainConfig) -> tuple[TrainingMethod, AlphaInput]:
    """What of a config changes what the calculator starts from."""
    return config.training_method, alpha_input(config)


def rebase(config: TrainConfig, wish: AlphaInput) -> ToolResult:
    """Another alpha, and everything that has to change with it so that training stays what it was. Loads torch.

    Args:
        config: of the run: its adapter and the options of its optimizer count, if it is the wished one.
        wish: what is to be changed.

    Raises:
        UserError: the adapter has no alpha, or the optimizer knows no other alpha.
    """
    if wish.new_alpha == wish.lora_alpha:
        return ToolResult(tr("The new alpha is the one that it has now; nothing changes."))
    from modules.tool.rebase_config import rebase_config

    old = config.model_copy(deep=True)
    old.training_method = TrainingMethod.LORA
    old.lora_rank, old.lora_alpha, old.learning_rate = wish.lora_rank, wish.lora_alpha, wish.learning_rate
    if old.optimizer.optimizer != wish.optimizer:
        old.optimizer = type(old.optimizer)(optimizer=wish.optimizer)
    remarks: list[str] = []
    new = rebase_config(old, wish.new_alpha, remarks.append)
    changes = dict(_changes(old, new))
    lines = [f"{tr('option'):<34}{tr('now'):>14}{tr('then'):>14}"]
    lines += [f"{path:<34}{_number(before):>14}{_number(after):>14}" for path, (before, after) in changes.items()]
    strength = [alpha / wish.lora_rank for alpha in (wish.lora_alpha, wish.new_alpha)]
    told = tr(
        "alpha / rank goes from {before:.4g} to {after:.4g}.\nTraining stays the same with these values, but for "
        "rounding.",
        before=strength[0], after=strength[1],
    )  # fmt: skip
    lines += ["", told, *(tr("note: {text}", text=remark) for remark in remarks)]
    applies = config.training_method == TrainingMethod.LORA and config.optimizer.optimizer == wish.optimizer
    values = {path: after for path, (_, after) in changes.items()} if applies else {}
    return ToolResult(folded("\n".join(lines)), values={"lora_rank": wish.lora_rank, **values} if values else {})


def values_for(config: TrainConfig, wish: AlphaInput, found: ToolResult) -> dict[str, Any]:
    """The values that `rebase` has found, for the config as it is now.

    Raises:
        UserError: they would be others now.
    """
    if rebase(config, wish).values != found.values:
        raise UserError(tr("The config has changed since. Calculate again."))
    return found.values


def _changes(old: BaseConfig, new: BaseConfig, prefix: str = ""):
    for name in type(old).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, BaseConfig) and isinstance(after, BaseConfig):
            yield from _changes(before, after, f"{prefix}{name}.")
        elif before != after and not isinstance(after, (BaseConfig, list, dict)):
            yield f"{prefix}{name}", (before, after)


def _number(value: Any) -> str:
    return tr("default") if value is None else f"{value:.6g}" if isinstance(value, (int, float)) else str(value)


def tool() -> Tool:
    """What the window needs to know of it."""
    return Tool(
        ALPHA,
        help="Another alpha, with the learning rate and start values that go with it.",
        do="Calculate",
        promise="What changes with alpha appears here, and can be taken into the config.",
        form=alpha_input,
        run=lambda call: rebase(call.config, call.wish),
        has_process=False,
    )
