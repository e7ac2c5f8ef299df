"""The variants of a config that a coordinate check compares: methods, and their sizes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from modules.tool.coord_check.methods import BLOCK, BLOCKS, CHECKED, RANK, RANKS
from modules.trainer.optimizer_checks import check_lora_options, optimizer_problems
from modules.util.config.errors import Remedy
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainModelPartConfig import TrainModelPartConfig
from modules.util.enum.PeftType import PeftType
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.found_problems import raise_problems
from modules.util.UserError import UserError

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Variant:
    """A config that is measured.

    Attributes:
        method: key of `CHECKED`.
        size: rank or block size; None if the method has none.
        config: of the run.
        is_reference: whether it is the user's config as it is.
    """

    method: str
    size: int | None
    config: TrainConfig = field(repr=False)
    is_reference: bool = False

    @property
    def name(self) -> str:
        """`LoRA rank 16`."""
        method = CHECKED[self.method]
        return f"{method.title} {method.size_name} {self.size}" if method.size else method.title


def method_of(config: TrainConfig) -> str:
    """The key in `CHECKED` of what a config trains.

    Raises:
        UserError: it trains no layers.
    """
    if config.training_method == TrainingMethod.FINE_TUNE:
        return "full"
    if config.training_method != TrainingMethod.LORA:
        raise UserError(
            f"training_method: {config.training_method} has neither adapters nor weights of layers to train, so there "
            "is nothing to measure. Expected LORA or FINE_TUNE.",
            Remedy.of({"training_method": "LORA"}),
            Remedy.of({"training_method": "FINE_TUNE"}),
        )
    # kinds without a magnitude leave `lora_decompose` alone
    decomposes = config.lora_decompose and config.peft_type in (PeftType.LORA, PeftType.OFT_2)
    kinds = {(own.options.get("peft_type"), own.options.get("lora_decompose")): name for name, own in CHECKED.items()}
    if (config.peft_type, decomposes) not in kinds:
        raise UserError(f"peft_type: {config.peft_type} is not supported; expected one of {', '.join(PeftType)}.")
    return kinds[config.peft_type, decomposes]


def prepared(config: TrainConfig, rate: float | None, warn: Warn) -> TrainConfig:
    """The config without what a coordinate check leaves out.

    Args:
        config: of the run.
        rate: learning rate, more than 0; None: the config's. A component's own rate keeps its ratio to it.
        warn: gets a line for each option that does not count.
    """
    changes: dict[str, Any] = {}
    if config.lora_model_name:
        warn(f"lora_model_name: {config.lora_model_name} is left out; every variant starts with a fresh adapter.")
        changes["lora_model_name"] = ""
    if config.additional_embeddings:
        warn("additional_embeddings: left out; their words are read as plain text.")
        changes["additional_embeddings"] = []
    if config.optimizer.fused_back_pass:
        # the same step; a layer is measured before and after it
        changes["optimizer"] = config.optimizer.model_copy(update={"fused_back_pass": False})
        if config.clip_grad_norm is not None:
            warn("optimizer.fused_back_pass: off in a coordinate check, so clip_grad_norm limits the whole gradient.")
    if rate is not None:
        changes["learning_rate"] = rate
        for name in type(config).model_fields:
            component = getattr(config, name)
            if isinstance(component, TrainModelPartConfig) and component.learning_rate is not None:
                ratio = component.learning_rate / config.learning_rate if config.learning_rate else 1.0
                changes[name] = component.model_copy(update={"learning_rate": ratio * rate})
    return config.model_copy(update=changes)


def variants_of(
    config: TrainConfig, methods: Sequence[str], ranks: Sequence[int] = RANKS, blocks: Sequence[int] = BLOCKS
) -> list[Variant]:
    """The config as it is, and the same with each method and size.

    alpha/rank stays what it is in a config with factors, and is 1 otherwise.

    Args:
        config: of the run.
        methods: keys of `CHECKED`.
        ranks: of methods that have a rank, each at least 1.
        blocks: block sizes of methods that have these, each at least 2.
    """
    own = method_of(config)
    size, size_name = CHECKED[own].size, CHECKED[own].size_name
    found = [Variant(own, getattr(config, size) if size else None, config, is_reference=True)]
    strength = config.lora_alpha / getattr(config, size) if size_name == RANK else 1.0
    sizes = {RANK: ranks, BLOCK: blocks, "": (None,)}
    for name in dict.fromkeys(methods):
        method = CHECKED[name]
        for one in sorted(set(sizes[method.size_name]), key=lambda value: value or 0):
            if (name, one) == (found[0].method, found[0].size):
                continue
            changes = {**method.options, **({method.size: one} if method.size else {})}
            if method.size_name == RANK:
                changes["lora_alpha"] = strength * one
            found.append(Variant(name, one, config.model_copy(update=changes)))
    return found


def check_variant(variant: Variant, warn: Warn) -> None:
    """Raises UserError if the optimizer can't train this variant."""
    if variant.config.training_method == TrainingMethod.LORA:
        check_lora_options(variant.config, warn)
    raise_problems(optimizer_problems(variant.config, warn))


def comparable(planned: Sequence[tuple[str, Variant]]) -> bool:
    """Whether any two of (base model, variant) differ in the size, or in the base model, alone."""
    sizes = {(base, variant.method) for base, variant in planned}
    widths = {(variant.method, variant.size) for _, variant in planned}
    return len(sizes) < len(planned) or len(widths) < len(planned)
